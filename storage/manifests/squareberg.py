"""Squareberg's manifest.toml, told in the words of ours."""

from collections.abc import Mapping
from typing import Any

from storage.errors import Invalid

#: Squareberg starts the app's own interpreter, of the app's or of its backend's virtual environment.
_LAUNCH = """\
python=.venv/bin/python
[ -x "$python" ] || python=backend/.venv/bin/python
directory=backend
[ -d "$directory" ] || directory=.
exec "$python" -m uvicorn "$HOSTLER_MODULE" --uds "$HOSTLER_SOCKET" --app-dir "$directory"
"""
#: A release comes without its environment: the install step makes one and puts in what the app asks for.
_INSTALL = """\
set -e
where=.
[ -f backend/requirements.txt ] || [ -f backend/pyproject.toml ] && where=backend
[ -x .venv/bin/python ] || [ -x backend/.venv/bin/python ] && exit 0
python3 -m venv .venv
if [ -f "$where/requirements.txt" ]; then .venv/bin/python -m pip install --quiet -r "$where/requirements.txt"
elif [ -f "$where/pyproject.toml" ]; then .venv/bin/python -m pip install --quiet "./$where"
fi
.venv/bin/python -c 'import uvicorn' 2>/dev/null || .venv/bin/python -m pip install --quiet uvicorn
"""


def translated(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return Squareberg's manifest as a manifest of ours. Raises Invalid."""
    app, backend = _table(data, "app"), _table(data, "backend")
    name = app.get("name")
    if not isinstance(name, str) or not name:
        raise Invalid("The manifest's app.name: is required", details={"app.name": "is required"})
    frontend = _table(data, "frontend")
    active = frontend.get("active", [])
    frontends = {
        each: {
            "path": table.get("path", f"frontend/{each}"),
            "title": table.get("display_name", each),
        }
        for each, table in frontend.items()
        if isinstance(table, Mapping)
    }
    for each in active if isinstance(active, list) else []:  # the page's short form names them only here
        frontends.setdefault(each, {"path": f"frontend/{each}", "title": each})
    return {
        "id": name,
        "name": app.get("display_name", name),
        "version": app.get("version", "0.0.0"),
        "description": app.get("description", ""),
        "kind": "squareberg",
        "install": {"command": _INSTALL},
        "processes": {
            "backend": {
                "command": _LAUNCH,
                "env": {"HOSTLER_MODULE": backend.get("module", "app:app")},
                "socket": True,
                "stop_timeout_s": 5,
                # readiness is the socket's being there; the page's own check is the health probe
                "health": {"kind": "http", "path": "/api/health", "delay_s": 0, "period_s": 10},
            }
        },
        "restart": {"policy": "never"},
        "routes": {"process": "backend", "prefix": "/api"},
        "frontends": frontends,
        "active_frontends": active,
    }


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name, {})
    if not isinstance(found, Mapping):
        raise Invalid(f"The manifest's {name}: must be a table", details={name: "must be a table"})
    return found

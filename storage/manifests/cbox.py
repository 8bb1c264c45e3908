"""cbox-init.yaml, told in the words of ours: one app for each of its processes, and who may speak to its API."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import yaml

from storage.errors import Invalid
from storage.manifests import load
from storage.manifests.parts import HARD_MAX_SCALE, Manifest
from storage.manifests.schemas import circle_of, circle_told

LIMIT_BYTES = 256 * 1024
MOST_PROCESSES = 200
#: Where cbox-init's API is, unless the file says otherwise.
API_PORT = 9180
MOST_PORT = 65_535
#: Beyond any time or number that a file may name, and below what a float cannot hold.
LARGEST = 1e12
#: Of a whole number, a token's; Python writes none of more than 4,300.
MOST_DIGITS = 1000

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|µs|ms|s|m|h)")
#: Runs a command in a directory that need not be one of a release.
_IN_DIRECTORY = ("sh", "-c", 'cd -- "$0" && exec "$@"')


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file asks for; `ignored` names, by their places in it, the settings that have no meaning here."""

    manifests: tuple[Manifest, ...]
    api_enabled: bool
    api_port: int
    api_auth: str | None
    ignored: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Plain data only; what refers to other parts of the file could unfold to more than fits anywhere."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise Invalid("Aliases (*name) are not understood here; write out what they stand for.")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        # what PyYAML makes of a date 2026-13-01, of !!bool maybe and of !!timestamp soon
        refusals = (ValueError, LookupError, AttributeError)
        try:
            found = super().construct_object(node, deep)
            if isinstance(found, int) and abs(found) >= 10**MOST_DIGITS:
                raise ValueError
            return found
        except refusals:
            kind = node.tag.rpartition(":")[2]
            problem = f"'{str(node.value)[:40]}' is no {kind}"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark) from None


@dataclass
class _Table:
    """One mapping of the file; remembers what was asked for, and so what was not understood."""

    data: Mapping[str, Any]
    place: str
    ignored: list[str]
    known: set[str] = field(default_factory=set)

    def take(self, *names: str, default: Any = None) -> Any:
        """Return the value under the first of `names` that is there."""
        self.known |= set(names)
        return next((self.data[name] for name in names if self.data.get(name) is not None), default)

    def table(self, name: str) -> "_Table":
        """Return a mapping inside. Raises Invalid."""
        return _table(self.take(name, default={}), f"{self.place}.{name}".lstrip("."), self.ignored)

    def number(self, *names: str, default: float | None = None) -> float | None:
        """Return a number, or a duration in seconds. Raises Invalid."""
        value = self.take(*names)
        name = next((each for each in names if each in self.data), names[0])
        return default if value is None else _seconds(value, f"{self.place}.{name}")

    def close(self) -> None:
        """Note what nobody asked for."""
        self.ignored += [f"{self.place}.{name}".lstrip(".") for name in self.data if name not in self.known]


def read(raw: bytes) -> Imported:
    """Return what a cbox-init.yaml asks for. Raises Invalid, naming the place."""
    if len(raw) > LIMIT_BYTES:
        raise Invalid("The file is larger than 256 KiB.")
    try:
        data = yaml.load(raw, _Loader)  # noqa: S506  derived from SafeLoader
    except yaml.YAMLError as error:
        raise Invalid(f"The file is no YAML: {_problem(error)}.") from None
    except RecursionError:
        raise Invalid("The file is no YAML of ours: it is nested too deeply.") from None
    ignored: list[str] = []
    whole = _table(data, "", ignored)
    whole.take("version")
    shared, processes = whole.table("global"), whole.table("processes")
    if not processes.data or len(processes.data) > MOST_PROCESSES:
        raise Invalid(f"processes: there must be 1 to {MOST_PROCESSES} of them.")
    manifests = tuple(process(name, processes.data[name], shared, ignored) for name in processes.data)
    needs = {each.id: [*each.processes[0].depends_on] for each in manifests}
    if circle := circle_of(needs):  # names that are not in the file are no keys, and so need nothing
        raise Invalid(f"processes.{min(circle)}.depends_on: {circle_told(circle)}")
    api_enabled = _flag(shared.take("api_enabled", default=False), "global.api_enabled")
    api_port = _port(shared.number("api_port"), "global.api_port")
    api_auth = _token(shared.take("api_auth"))
    shared.close()
    whole.close()
    return Imported(manifests, api_enabled, api_port, api_auth, tuple(ignored))


def _problem(error: yaml.YAMLError) -> str:
    """Return what is wrong and where."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} is none that may stand in it"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "it cannot be read"


def one(name: str, data: Any) -> tuple[Manifest, tuple[str, ...]]:
    """Return the manifest of a process as cbox-init's API is given it, and what of it has no meaning here."""
    ignored: list[str] = []
    return process(name, data, _Table({}, "global", []), ignored), tuple(ignored)


def process(name: str, data: Any, shared: _Table, ignored: list[str]) -> Manifest:
    """Return one process of the file as a manifest. Raises Invalid."""
    table = _table(data, f"processes.{name}", ignored)
    kind = table.take("type", default="scheduled" if table.data.get("schedule") else "longrun")
    if kind == "longrun" and table.data.get("schedule"):
        kind = "scheduled"
    scale = table.take("scale", default=0) or 1
    described: dict[str, Any] = {
        "command": _command(table),
        "type": kind,
        "scale": scale,
        "max_scale": table.take("max_scale", default=0) or _most(shared, scale),
        "port": table.take("port_base", default=0) or None,
        "env": _environment(table),
        "depends_on": table.take("depends_on", default=[]),
        "memory_limit_bytes": _mebibytes(table),
        "initial": table.take("initial_state", default="running"),
        "enabled": _flag(table.take("enabled", default=True), f"{table.place}.enabled"),
        "restart": _restart(table, shared, kind),
        "health": _health(table),
        **_shutdown(table, shared),
        **(_schedule(table) if kind == "scheduled" else {}),
    }
    if kind != "scheduled":
        table.take("schedule_timezone")
    table.close()
    return load(
        {"id": name, "name": name, "kind": "cbox", "version": "0.0.0", "processes": {name: _given(described)}}
    )


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _most(shared: _Table, scale: Any) -> int:
    most = int(shared.number("max_process_scale", default=100) or 100)
    return max(most, scale) if isinstance(scale, int) and scale <= HARD_MAX_SCALE else most


def _command(table: _Table) -> Any:
    command, directory = table.take("command"), table.take("working_dir")
    words = command.split() if isinstance(command, str) else command
    if directory and isinstance(words, list):
        return [*_IN_DIRECTORY, str(directory), *words]
    return words


def _environment(table: _Table) -> dict[str, str]:
    env = table.take("env", default={})
    if not isinstance(env, Mapping):
        raise Invalid(f"{table.place}.env: must be a mapping.")
    return {
        str(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in env.items()
    }


def _mebibytes(table: _Table) -> int | None:
    value = table.number("max_memory_mb")
    return int(value * 1024 * 1024) if value else None


def _restart(table: _Table, shared: _Table, kind: str) -> dict[str, Any]:
    policy = table.take("restart", default=None if kind == "longrun" else "never")
    backoff_s = shared.number("restart_backoff_initial", "restart_backoff", default=5.0) or 5.0
    stability_s = shared.number("restart_stability_window", default=60.0)
    return {
        "policy": policy or shared.take("restart_policy", default="always"),
        "attempts": int(shared.number("max_restart_attempts") or 3),  # 0 is cbox-init's default, not endless
        "backoff_s": backoff_s,
        "max_s": shared.number("restart_backoff_max") or 12 * backoff_s,
        # below zero the attempts do not come back: not within any time that could pass
        "stability_s": 86_400.0 if stability_s is not None and stability_s < 0 else stability_s,
    }


def _shutdown(table: _Table, shared: _Table) -> dict[str, Any]:
    shutdown = table.table("shutdown")
    signal = shutdown.take("signal", default="SIGTERM")
    timeout_s = shutdown.number("timeout") or shared.number("shutdown_timeout") or 30.0
    shutdown.close()
    return {"stop_signal": str(signal).removeprefix("SIG"), "stop_timeout_s": timeout_s}


def _schedule(table: _Table) -> dict[str, Any]:
    zone = table.take("schedule_timezone", default="UTC")
    if zone == "Local":  # a node's own zone is nobody's business but its own
        table.ignored.append(f"{table.place}.schedule_timezone")
    return {
        "schedule": table.take("schedule"),
        "timezone": "UTC" if zone == "Local" else zone,
        "timeout_s": table.number("schedule_timeout"),
        "max_concurrent": table.take("schedule_max_concurrent", default=0),
    }


def _health(table: _Table) -> dict[str, Any] | None:
    """Return a health check, in either of the spellings that cbox-init's documentation and code have."""
    if table.data.get("health_check") is None:
        table.take("health_check")
        return None
    check = table.table("health_check")
    kind = check.take("type")
    address = str(check.take("url", "address", default=""))
    found: dict[str, Any] = {
        "kind": kind,
        "delay_s": check.number("initial_delay"),
        "period_s": check.number("period", "interval"),
        "timeout_s": check.number("timeout"),
        "failures": _whole(check.number("failure_threshold", "retries")),
        "successes": _whole(check.number("success_threshold")),
        "expected_status": _whole(check.number("expected_status")),
        "command": check.take("command"),
    }
    if kind in {"http", "tcp"}:
        found |= _target(address, kind, check.place)
    check.close()
    return _given(found)


def _target(address: str, kind: str, place: str) -> dict[str, Any]:
    try:
        url = urlsplit(address if "//" in address else f"//{address}")
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    except ValueError:
        port = None
    if port is None or (kind == "http" and url.scheme == "https"):
        raise Invalid(f"{place}: '{address}' is no address of a {kind} check.")
    if url.hostname not in {"127.0.0.1", "localhost", "::1", "0.0.0.0", None}:  # noqa: S104  compared, not bound
        raise Invalid(f"{place}: an instance is asked on its own machine, not at '{url.hostname}'.")
    path = f"{url.path or '/'}{'?' + url.query if url.query else ''}"
    return {"port": port, **({"path": path} if kind == "http" else {})}


def _table(data: Any, place: str, ignored: list[str]) -> _Table:
    if data is None:
        data = {}
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise Invalid(f"{place or 'The file'}: must be a mapping.")
    return _Table(data, place, ignored)


def _seconds(value: Any, place: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST:
        return float(value)
    word = str(value).strip()
    sign, parts = (-1.0 if word.startswith("-") else 1.0), _DURATION_PART.findall(word.lstrip("+-"))
    if parts and "".join(number + unit for number, unit in parts) == word.lstrip("+-"):
        return sign * sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    raise Invalid(f"{place}: '{word[:40]}' is no number and no duration like 30s or 5m.")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _port(value: float | None, place: str) -> int:
    port = API_PORT if value is None else value
    if not 1 <= port <= MOST_PORT or port != int(port):
        raise Invalid(f"{place}: must be a whole number from 1 to {MOST_PORT}.")
    return int(port)


def _flag(value: Any, place: str) -> bool:
    if not isinstance(value, bool):
        raise Invalid(f"{place}: must be true or false.")
    return value


def _token(value: Any) -> str | None:
    return str(value) if value not in (None, "") else None

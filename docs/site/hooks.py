"""How `make docs-site` makes a site of the pages here: what is in it, in which order, and its API reference."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

#: The pages of each section. What is not written yet is passed over; what is not named here comes under "More".
SECTIONS: dict[str, tuple[str, ...]] = {
    "Start": ("index.md", "install.md", "cli.md", "page.md", "security.md", "changelog.md"),
    "Operate": (
        "deployment.md", "fleet.md", "systemd.md", "redis-and-s3.md", "heroku.md", "containers.md", "kubernetes.md",
        "helm.md", "balancers.md", "sizing.md", "autoscaling.md", "upgrade.md", "backups.md", "disaster-recovery.md",
        "hardening.md", "observability.md", "troubleshooting.md", "performance.md",
    ),
    "Apps": ("manifest.md", "running-apps.md", "apps-and-requests.md", "listeners.md"),
    "Move here": (
        "migration.md", "migration/rq.md", "migration/celery.md", "migration/supervisord.md", "migration/pm2.md",
        "migration/cmd-executor.md", "migration/cbox-init.md", "migration/squareberg.md", "migration/cuby.md",
        "migration/contextbay.md",
    ),
    "Other systems' APIs": ("cbox.md", "cuby.md", "squareberg.md", "contextbay.md"),
    "Reference": ("guarantees.md", "cli-reference.md", "routes.md"),
    "Design": ("architecture.md", "contributing.md"),
}  # fmt: skip
#: Pages that lie outside of docs/.
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_METHODS = ("get", "post", "put", "patch", "delete", "head", "options")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, those of the API, and the pictures that they show."""
    for source, target in OUTSIDE.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    described = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    for name, text in api_pages(described).items():
        files.append(File.generated(config, name, content=text))
    config.nav = nav([each.src_uri for each in files.documentation_pages()])
    return files


def nav(pages: list[str]) -> list[Any]:
    """Return the navigation over the pages that there are."""
    known = {title: [page for page in wanted if page in pages] for title, wanted in SECTIONS.items()}
    known["Reference"].append("api/index.md")
    known["Design"] += sorted(page for page in pages if page.startswith("decisions/"))
    api = sorted(page for page in pages if page.startswith("api/") and page != "api/index.md")
    named = {page for listed in known.values() for page in listed} | set(api)
    known["More"] = sorted(set(pages) - named)
    sections: list[Any] = [{title: listed} for title, listed in known.items() if listed]
    sections.append({"API": api})
    return sections


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site; what is no page of it becomes plain text."""
    here = page.file.src_uri
    source = next((name for name, target in OUTSIDE.items() if target == here), f"docs/{here}")
    depth = here.count("/")

    def turned(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if not target or re.match(r"[a-z]+:", target):
            return match.group(0)
        meant = (ROOT / source).parent.joinpath(target).resolve()
        if not meant.is_relative_to(ROOT):
            return text
        inside = meant.relative_to(ROOT).as_posix()
        place = OUTSIDE.get(inside) or (inside.removeprefix("docs/") if inside.startswith("docs/") else None)
        if place is not None and files.get_file_from_path(place) is not None:
            return f"{image}[{text}]({'../' * depth}{place}{anchor or ''})"
        return text if not image else ""

    return _LINK.sub(turned, markdown)


# The API


def api_pages(described: dict[str, Any]) -> dict[str, str]:
    """Return a page for each group of endpoints, and one that lists the groups."""
    groups: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method in _METHODS:
            if (operation := methods.get(method)) is not None:
                for tag in operation.get("tags", ["Other"])[:1]:
                    groups.setdefault(tag, []).append(_operation(described, method, path, operation))
    about = {each["name"]: each.get("description", "") for each in described.get("tags", [])}
    pages = {}
    for tag, operations in groups.items():
        pages[f"api/{_slug(tag)}.md"] = "\n\n".join([f"# {tag}", about.get(tag, ""), *operations]) + "\n"
    listed = "\n".join(
        f"- [{tag}]({_slug(tag)}.md): {len(operations)} endpoints"
        for tag, operations in sorted(groups.items())
    )
    pages["api/index.md"] = (
        "# API\n\nEvery endpoint by its group. A running server shows the same at `/api/docs`, to be tried there, and "
        f"describes itself at `/api/openapi.json`.\n\n{listed}\n"
    )
    return pages


def _operation(described: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"## {method.upper()} `{path}`", f"For: **{operation.get('x-role', 'public')}**."]
    parts += [_plain(operation.get(name)) for name in ("summary", "description") if operation.get(name)]
    asked = [
        (each["name"], each["in"], each.get("schema", {}), each) for each in operation.get("parameters", [])
    ]
    if asked:
        rows = (
            f"| `{name}` | {where} | {_type(described, schema)} | {_cell(each.get('description'))} |"
            for name, where, schema, each in asked
        )
        parts.append("\n".join(("| parameter | in | type | |", "|---|---|---|---|", *rows)))
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Takes `{media}`:")
        parts.append(_fields(described, content.get("schema", {})))
    for status, answer in sorted(operation.get("responses", {}).items()):
        told = _resolved(described, answer)
        parts.append(f"Answers **{status}**: {_plain(told.get('description'))}")
        for media, content in told.get("content", {}).items():
            if status.startswith("2"):
                parts.append(f"`{media}`:" if media != "application/json" else "")
                parts.append(_fields(described, content.get("schema", {})))
    return "\n\n".join(part for part in parts if part)


def _fields(described: dict[str, Any], schema: dict[str, Any]) -> str:
    schema = _resolved(described, schema)
    found = dict(schema.get("properties", {}))
    for part in schema.get("allOf", []):
        found |= _resolved(described, part).get("properties", {})
    if not found:
        return ""
    required = set(schema.get("required", []))
    rows = (
        f"| `{name}`{'' if name in required else ' ?'} | {_type(described, each)} | {_meaning(described, each)} |"
        for name, each in found.items()
    )
    return "\n".join(("| field | type | |", "|---|---|---|", *rows))


def _meaning(described: dict[str, Any], schema: dict[str, Any]) -> str:
    choices = schema.get("enum") or []
    told = schema.get("description") or ""
    return _cell(" ".join(part for part in (told, ", ".join(f"`{each}`" for each in choices)) if part))


def _type(described: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "items" in schema:
        return f"list of {_type(described, schema['items'])}"
    kind = schema.get("type", "any")
    return " or ".join(str(each) for each in kind) if isinstance(kind, list) else str(kind)


def _resolved(described: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Any = described
    for part in schema["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return dict(found)


def _plain(text: str | None) -> str:
    """Return text in which nothing is taken for HTML."""
    return re.sub(r"<(?=[A-Za-z/!])", "&lt;", text or "")


def _cell(text: str | None) -> str:
    return " ".join(_plain(text).split()).replace("|", "\\|")


def _slug(tag: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")

"""The files of the page, read once a process: under one digest of them all, packed, with the page that names them."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_REACT = _HERE.parent / "cuby" / "vendored"

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".zip": "application/zip",
}
#: What a browser may need before the first line of the page is drawn, and is told to fetch at once.
_FIRST = ("app.js", "kit.js", "parts.js", "vendor/htm.js", "react.js", "react-dom.js")
#: What products' components import, by name or by the address that docs/cuby.md gives them: the page's own React.
_SHARED = {
    "react": "react.js",
    "react/jsx-runtime": "react-jsx-runtime.js",
    "react-dom": "react-dom.js",
    "react-dom/client": "react-dom.js",
    "/api/shim/react.js": "react.js",
    "/api/shim/react-jsx-runtime.js": "react-jsx-runtime.js",
    "/api/shim/react-dom.js": "react-dom.js",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file: its type, its bytes, and the same packed with gzip where that makes it smaller."""

    content_type: str
    content: bytes
    packed: bytes | None


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one version: `digest` stands for all of its files and is part of their addresses."""

    digest: str
    html: Asset
    policy: str
    assets: dict[str, Asset]


def pack(content_type: str, content: bytes) -> Asset:
    """Return content as it is served."""
    packed = gzip.compress(content, 9, mtime=0)
    return Asset(content_type, content, packed if len(packed) < len(content) * 0.95 else None)


def _files() -> dict[str, bytes]:
    """Return everything the page consists of, by the name it has below its digest."""
    own = {path.relative_to(_HERE / "app").as_posix(): path for path in (_HERE / "app").rglob("*")}
    vendored = {
        f"vendor/{path.name}": path for path in (_HERE / "vendor").iterdir() if path.name != "build.mjs"
    }
    react = {path.name: path for path in _REACT.glob("react*.js")}
    return {
        name: path.read_bytes()
        for name, path in sorted({**own, **vendored, **react}.items())
        if path.suffix in _TYPES and path.is_file()
    }


@cache
def page() -> Page:
    """Return the page that this process serves."""
    files = _files()
    template = (_HERE / "index.html").read_text()
    whole = hashlib.sha256(template.encode())
    for name, content in files.items():
        whole.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    digest = whole.hexdigest()[:20]
    root = f"/page/{digest}"
    imports = json.dumps({"imports": {name: f"{root}/{file}" for name, file in _SHARED.items()}})
    preloads = "\n  ".join(f'<link rel="modulepreload" href="{root}/{name}">' for name in _FIRST)
    html = template.replace("{root}", root).replace("{imports}", imports).replace("{preloads}", preloads)
    return Page(
        digest,
        pack("text/html; charset=utf-8", html.encode()),
        _policy(imports),
        {name: pack(_TYPES[Path(name).suffix], content) for name, content in files.items()},
    )


def _policy(imports: str) -> str:
    """Return the Content-Security-Policy: ourselves alone, nothing inline but the one import map, by its digest."""
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )

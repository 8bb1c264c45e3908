"""A folder of the package that is served as one small page: index.html, and the parts that are named, nothing else."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from falcon.asgi import Response

from storage.errors import NotFound


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


class Folder:
    """Serves `path`: `parts` are its files with their types, `policy` is the Content-Security-Policy of them all."""

    def __init__(self, path: Path, parts: Mapping[str, str], policy: str) -> None:
        self._path, self._parts, self._policy = path, parts, policy

    def page(self, resp: Response) -> None:
        """Answer with the page itself."""
        resp.set_header("Content-Security-Policy", self._policy)
        resp.content_type = "text/html; charset=utf-8"
        resp.data = _read(self._path / "index.html")

    def part(self, resp: Response, name: str) -> None:
        """Answer with a part of the page. Raises NotFound."""
        if name not in self._parts:
            raise NotFound(f"The page has no part {name[:80]!r}.")
        resp.set_header("Content-Security-Policy", self._policy)
        resp.set_header("Cache-Control", "public, max-age=3600")
        resp.content_type = self._parts[name]
        resp.data = _read(self._path / name)

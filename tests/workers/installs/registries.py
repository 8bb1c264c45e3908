"""Registries for tests: one of npm, served on loopback, and one of Python, a folder of wheels."""

import base64
import csv
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class NpmRegistry:
    """Serves the packages that `publish` was given, as https://github.com/npm/registry describes."""

    def __init__(self) -> None:
        self.packages: dict[str, dict[str, object]] = {}
        self.archives: dict[str, bytes] = {}
        self.url = ""

    def publish(
        self,
        name: str,
        version: str,
        files: Mapping[str, str],
        *,
        integrity: str | None = None,
        **about: object,
    ) -> None:
        """Offer a version of a package. `integrity` is what the registry claims, if not the truth."""
        package_json = json.dumps({"name": name, "version": version, **about})
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for path, content in {"package.json": package_json, **files}.items():
                member = tarfile.TarInfo(f"package/{path}")
                member.size, member.mode = len(content.encode()), 0o644
                archive.addfile(member, io.BytesIO(content.encode()))
        data = raw.getvalue()
        digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
        where = f"/-/{name.replace('/', '-')}-{version}.tgz"
        self.archives[where] = data
        told = self.packages.setdefault(name, {"name": name, "dist-tags": {}, "versions": {}})
        dist = {
            "tarball": self.url + where, "integrity": integrity or f"sha512-{digest}",
            "shasum": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        }  # fmt: skip
        told["versions"][version] = {"name": name, "version": version, "dist": dist, **about}  # type: ignore[index]
        told["dist-tags"]["latest"] = version  # type: ignore[index]


@contextmanager
def npm_registry() -> Iterator[NpmRegistry]:
    """Serve a registry until the end of the block."""
    registry = NpmRegistry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path)
            found: bytes | None = registry.archives.get(path)
            if found is None and path[1:] in registry.packages:
                found = json.dumps(registry.packages[path[1:]]).encode()
            self.send_response(404 if found is None else 200)
            body = b"{}" if found is None else found
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """Write a wheel (https://packaging.python.org/specifications/binary-distribution-format/) with these files."""
    about = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        writer.writerow((path, f"sha256={digest}", len(text.encode())))
    writer.writerow((f"{about}/RECORD", "", ""))
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**content, f"{about}/RECORD": rows.getvalue()}.items():
            archive.writestr(member, text)
    return path

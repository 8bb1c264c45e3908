"""The files of the page: what is served how, and that what is vendored is what the manifest says."""

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.page import assets
from settings import Settings

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "api" / "page"


@pytest.fixture
def client(settings: Settings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=create_app(settings))
    return httpx.AsyncClient(transport=transport, base_url="http://hostler.test")


async def test_the_page_allows_no_script_but_its_own(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', answer.text)
    assert set(json.loads(imports)["imports"].values()) <= {
        f"/page/{assets.page().digest}/{name}" for name in assets.page().assets
    }
    assert not re.search(r"<script(?! type=\"(importmap|module)\")|style=|\son\w+=", answer.text)
    again = await client.get("/", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_files_are_kept_for_good_under_their_digest_and_packed(client: httpx.AsyncClient) -> None:
    digest = assets.page().digest
    answer = await client.get(f"/page/{digest}/app.js", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.content == (PAGE / "app" / "app.js").read_bytes()
    plain = await client.get(f"/page/{digest}/app.js", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.content == answer.content
    other = await client.get(f"/page/{'0' * 20}/app.js")
    assert (other.content, other.headers["Cache-Control"]) == (answer.content, "no-store")
    for gone in (
        f"/page/{digest}/nothing.js",
        f"/page/{digest}/vendor/build.mjs",
    ):
        assert (await client.get(gone)).status_code == 404


async def test_nothing_outside_of_the_page_is_served(client: httpx.AsyncClient) -> None:
    digest = assets.page().digest
    for path in (
        "../serving.py",
        "..%2fserving.py",
        "%2e%2e/assets.py",
        "vendor/../../assets.py",
        "/etc/passwd",
    ):
        assert (await client.get(f"/page/{digest}/{path}")).status_code in {400, 404}


def test_what_is_vendored_is_what_the_manifest_names_with_its_licence() -> None:
    folder = PAGE / "vendor"
    packages = json.loads((folder / "manifest.json").read_text())["packages"]
    assert {each["package"] for each in packages} == {
        "htm", "uplot", "@xterm/xterm", "@xterm/addon-fit", "react", "react-dom", "axe-core"
    }  # fmt: skip
    for each in packages:
        content = (folder / each["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"], each["file"]
        assert each["version"]
        for licence in re.findall(r"\((.+?)\)", each["licence"]):
            assert (folder / licence).read_text()


def test_the_example_is_packed_as_it_lies_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import pack_example

    assert pack_example.packed(pack_example.FOLDER) == pack_example.PACKED.read_bytes()
    sys.modules.pop("pack_example")


def test_the_page_names_nobody_else_s_server() -> None:
    for path in (PAGE / "app").rglob("*.js"):
        found = re.findall(r"""['"`(]((?:https?:)?//[a-z][^'"`)\s]*)""", path.read_text())
        assert found == [], path


def test_what_a_first_paint_needs_is_small() -> None:
    page = assets.page()
    first = [
        "app.js",
        "kit.js",
        "parts.js",
        "words.js",
        "pages/overview.js",
        "style.css",
        "icon.svg",
        "vendor/htm.js",
    ]
    whole = sum(
        len(page.assets[name].packed or page.assets[name].content)
        for name in [*first, "react.js", "react-dom.js"]
    )
    assert whole + len(gzip.compress(page.html.content)) < 130_000

"""React's modules: what they export, that there is one React, and that a browser renders with them."""

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from whole import Hostler

from api.cuby import shims

FOLDER = Path(shims.__file__).parent / "vendored"
PLUGIN = Path(__file__).parents[2] / "products" / "plugin" / "ui"
MODULES = ("react.js", "react-jsx-runtime.js", "react-dom.js")


def test_the_modules_are_those_of_the_manifest() -> None:
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    assert [each["file"] for each in manifest["files"]] == list(MODULES)
    for each in manifest["files"]:
        content = (FOLDER / each["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each["bytes"], each["sha256"])
    assert manifest["packages"]["react"].startswith("19.")
    assert "MIT License" in (FOLDER / "LICENSE.react.txt").read_text()
    pinned = json.loads((FOLDER / "package.json").read_text())["devDependencies"]
    assert {name: manifest["packages"][name] for name in pinned} == pinned


@pytest.mark.parametrize("name", MODULES)
async def test_a_module_is_served_to_anybody_and_not_twice(hostler: Hostler, name: str) -> None:
    client = hostler.client()
    answer = await client.get(f"/api/shim/{name}")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    assert answer.content == (FOLDER / name).read_bytes()
    tag = answer.headers["ETag"]
    again = await client.get(f"/api/shim/{name}", headers={"If-None-Match": tag})
    assert (again.status_code, again.content) == (304, b"")
    other = await client.get(f"/api/shim/{name}", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_nothing_else_of_the_folder_is_served(hostler: Hostler) -> None:
    for name in ("build.mjs", "package.json", "..%2f__init__.py", "react.js.map"):
        answer = await hostler.client().get(f"/api/shim/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "ROUTE_NOT_FOUND")


def test_there_is_one_react_in_all_modules() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = f"""
        const at = (name) => import('file://{FOLDER}/' + name);
        const [react, runtime, dom] =
            await Promise.all([at('react.js'), at('react-jsx-runtime.js'), at('react-dom.js')]);
        const element = runtime.jsx('b', {{ children: 'x' }}, 'k');
        console.log(JSON.stringify({{
            version: react.version, same: dom.version === react.version, fragment: runtime.Fragment === react.Fragment,
            valid: react.isValidElement(element) && react.default.isValidElement(element),
            functions: [react.useState, react.useEffect, react.createContext, runtime.jsxs, dom.createRoot,
                        dom.hydrateRoot, dom.createPortal, dom.flushSync].map((each) => typeof each),
        }}));
    """
    done = subprocess.run(
        [node, "--input-type=module", "-e", script], capture_output=True, text=True, timeout=30, check=True
    )
    told = json.loads(done.stdout)
    assert told["version"].startswith("19.")
    assert told["same"]
    assert told["fragment"]
    assert told["valid"]
    assert set(told["functions"]) == {"function"}


PAGE = """<!doctype html><title>waiting</title>
<script type="importmap">
{"imports": {"react": "/api/shim/react.js", "react/jsx-runtime": "/api/shim/react-jsx-runtime.js",
             "react-dom": "/api/shim/react-dom.js"}}
</script>
<div id="root"></div>
<script type="module">
  import { createElement, useEffect, useState } from 'react';
  import { jsxs, Fragment } from 'react/jsx-runtime';
  import { createRoot } from 'react-dom';
  import Config from '/plugin/config.js';
  import Detail from '/plugin/detail.js';
  import Form from '/api/products/thing/config-component.js';

  function Counter() {
    const [count, setCount] = useState(0);
    useEffect(() => { if (count < 3) setCount(count + 1); }, [count]);
    const save = (config) => { document.body.dataset.saved = JSON.stringify(config); };
    return jsxs(Fragment, { children: [
      createElement('output', { key: 'count' }, `counted to ${count}`),
      createElement(Config, { key: 'config', config: { token: 't' }, onSave: save }),
      createElement(Detail, { key: 'detail', instanceId: 'plugin__two' }),
      createElement(Form, { key: 'form' }),
    ] });
  }
  createRoot(document.getElementById('root')).render(createElement(Counter));
  setTimeout(() => document.querySelector('button').click(), 100);
  const type = (name, text) => {
    const input = document.querySelector(`[name=${name}]`);
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, text);
    input.dispatchEvent(new Event('input', { bubbles: true }));
  };
  setTimeout(() => type('greeting', 'good day'), 500);
  setTimeout(() => type('count', '7'), 600);
  setTimeout(() => document.querySelector('form').requestSubmit(), 700);
</script>"""


#: A product with a schema and no component: what the form is made from.
THING = {
    "config": {"greeting": "hello", "token": "********", "more": 1},
    "schema": {
        "type": "object",
        "required": ["greeting"],
        "properties": {
            "greeting": {"type": "string", "title": "What it says"},
            "token": {"type": "string", "x-secret": True},
            "count": {"type": "integer"},
            "loud": {"type": "boolean", "default": True},
            "colour": {"enum": ["red", "blue"]},
        },
    },
}


@pytest.fixture
def configured() -> list[tuple[str, Any]]:
    """What the page has posted."""
    return []


@pytest.fixture
def page(configured: list[tuple[str, Any]]) -> Iterator[str]:
    """A page of ours, with the shims and a plugin's components beside it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            folder, _, name = self.path.rpartition("/")
            content = PAGE.encode() if self.path == "/" else b""
            if self.path == "/api/products/thing/config":
                content = json.dumps(THING).encode()
            if self.path == "/api/products/thing/config-component.js":
                content = (FOLDER.parent / "form.js").read_bytes()
            if folder in {"/api/shim", "/plugin"}:
                content = ((FOLDER if folder == "/api/shim" else PLUGIN) / name).read_bytes()
            self.send_response(200 if content else 404)
            self.send_header("Content-Type", "text/javascript" if folder else "text/html")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            configured.append((self.path, given))
            refusal = {"error": "config.greeting: too polite", "details": {"config.greeting": "too polite"}}
            content = json.dumps(refusal).encode()
            self.send_response(400)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_browser_renders_components_with_hooks_and_the_form_of_a_schema(
    page: str, tmp_path: Path, configured: list[tuple[str, Any]]
) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--virtual-time-budget=3000", f"--user-data-dir={tmp_path}", "--dump-dom", page],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "counted to 3" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "This is plugin__two." in done.stdout
    assert (
        'data-saved="{&quot;token&quot;:&quot;t&quot;,&quot;greeting&quot;:&quot;hello&quot;}"' in done.stdout
    )
    config = {"more": 1, "greeting": "good day", "token": "********", "count": 7, "loud": True}
    assert configured == [("/api/products/thing/configure", {"config": config})]
    assert "too polite" in done.stdout  # beside its field
    assert "What it says" in done.stdout

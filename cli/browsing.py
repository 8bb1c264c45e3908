"""`hostler login` through a browser: who is signed in there hands over a token that counts once."""

import hmac
import secrets
import sys
import time
import webbrowser
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from cli import rendering
from cli.client import ask_openly, read_json
from cli.failures import Failed

#: How long somebody has to sign in and agree, in seconds.
PATIENCE_S = 300.0
_COOKIE = "auth_token"
_PAGE = "/api/auth/terminal"
_THANKS = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Hostler</title>
<p>The command line is in. This window can be closed.</p></html>"""


class _Listener(HTTPServer):
    """Waits on this machine for the browser to come with a token; hears nobody who does not know `state`."""

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state = state
        self.token: str | None = None


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 5

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        state, token = (query.get(name, [""])[0] for name in ("state", "token"))
        ours = f"127.0.0.1:{self.server.server_port}"
        known = hmac.compare_digest(state.encode(), self.server.state.encode())
        if parts.path != "/" or not token or not known or self.headers.get("Host") != ours:
            self.send_error(404)
            return
        self.server.token = token
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(_THANKS))),
            ("Cache-Control", "no-store"), ("Referrer-Policy", "no-referrer"),
            ("Content-Security-Policy", "default-src 'none'"),
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(_THANKS)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the terminal belongs to whoever logs in."""


def has_browser(environ: Mapping[str, str]) -> bool:
    """Tell whether a browser with windows can be opened here."""
    if environ.get("SSH_CONNECTION") or environ.get("SSH_TTY"):
        return False  # it would open on the wrong machine, if at all
    if sys.platform in {"win32", "darwin"}:
        return True
    if not any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def session(
    url: str, *, listen: bool, opened: Callable[[str], bool] = webbrowser.open, patience_s: float = PATIENCE_S
) -> str:
    """Return the token of a session that somebody hands over in a browser. Raises Failed.

    With `listen` the browser is opened here and answers to a port of this machine; otherwise its user copies a code.
    """
    return _traded(url, _heard(url, opened, patience_s) if listen else _copied(url))


def _heard(url: str, opened: Callable[[str], bool], patience_s: float) -> str:
    state = secrets.token_hex(16)
    with _Listener(state) as listener:
        address = f"{url}{_PAGE}?{urlencode({'port': listener.server_port, 'state': state})}"
        rendering.say(f"Opening {address}")
        rendering.say(f"Agree there, if it shows the code {state[:4]}-{state[4:8]}. Ctrl+C leaves.")
        if not opened(address):
            rendering.say(
                "No browser could be opened; open the address yourself, on this machine.", style="yellow"
            )
        deadline = time.monotonic() + patience_s
        while listener.token is None:
            listener.timeout = deadline - time.monotonic()
            if listener.timeout <= 0:
                raise Failed("Nobody agreed in the browser.", hint=f"hostler login --url {url} --password")
            listener.handle_request()
        return listener.token


def _copied(url: str) -> str:
    rendering.say(f"Open this in a browser and agree: {url}{_PAGE}")
    rendering.stderr().print("Then paste the code here: ", end="")
    code = sys.stdin.readline().strip()
    if not code:
        raise Failed("No code was given.", hint=f"hostler login --url {url} --password")
    return code


def _traded(url: str, token: str) -> str:
    answer = ask_openly(url, "POST", "/api/auth/session", {"token": token})
    read_json(answer)
    session = answer.cookies.get(_COOKIE)
    if session is None:
        raise Failed(f"{url} gave no session for the token.", hint=f"hostler login --url {url} --password")
    return str(session)

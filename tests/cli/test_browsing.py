"""`hostler login` through a browser: who may hand over a session, and what becomes of it."""

import io
import stat
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fake_server import Answer, FakeServer, error

from cli import browsing
from cli.contexts import Contexts
from cli.failures import Failed
from cli.main import main
from settings import process_environment

ME = {"id": "u1", "username": "ada", "email": "ada@b.org", "roleName": "operator", "role": "w"}


@pytest.fixture
def signing(fake: FakeServer, config: Path) -> FakeServer:
    """A server that takes one token, and knows the session that it stands for."""
    fake.on(
        "POST /api/auth/session",
        lambda asked: (
            Answer(200, {"authenticated": True}, {"Set-Cookie": "auth_token=session-1; Path=/; HttpOnly"})
            if asked.json == {"token": "once"}
            else error(401, "The token is unknown.")
        ),
    )
    fake.on("GET /api/auth/me", Answer(body=ME))
    return fake


class Browser:
    """Opens an address as somebody's browser would, in a thread of its own, and goes where it is told."""

    def __init__(self, *visits: dict[str, str]) -> None:
        self.visits, self.answers = visits, list[int]()
        self.thread: threading.Thread | None = None

    def open(self, address: str) -> bool:
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}

        def go() -> None:
            for visit in self.visits:
                changed = {
                    "state": query["state"],
                    "token": "once",
                    "host": f"127.0.0.1:{query['port']}",
                } | visit
                answer = httpx.get(
                    f"http://127.0.0.1:{query['port']}{changed.pop('path', '/')}",
                    headers={"Host": changed.pop("host")}, params=changed,
                )  # fmt: skip
                self.answers.append(answer.status_code)

        self.thread = threading.Thread(target=go)
        self.thread.start()
        return True


def test_a_browser_hands_a_session_over_that_only_its_owner_may_read(
    signing: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    browser = Browser({})
    monkeypatch.setattr("cli.browsing.session.__kwdefaults__", {"opened": browser.open, "patience_s": 20.0})
    assert main(["login", "--url", signing.url, "--browser"]) == 0
    assert browser.thread is not None
    browser.thread.join()
    assert browser.answers == [200]
    assert "as ada@b.org" in capsys.readouterr().err
    saved = Contexts(process_environment()).load()["contexts"]["default"]
    assert saved == {"url": signing.url, "secret": "session-1", "email": "ada@b.org"}
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert signing.last("/api/auth/me").headers["authorization"] == "Bearer session-1"


def test_who_does_not_know_the_state_is_not_heard(signing: FakeServer) -> None:
    browser = Browser(
        {"state": "0" * 32, "token": "stolen"},
        {"state": "", "token": "stolen"},
        {"path": "/other", "token": "stolen"},
        {"token": ""},
        {"host": "evil.example", "token": "stolen"},
        {},
    )
    assert browsing.session(signing.url, listen=True, opened=browser.open, patience_s=20) == "session-1"
    assert browser.thread is not None
    browser.thread.join()
    assert browser.answers == [404, 404, 404, 404, 404, 200]


def test_nobody_who_agrees_ends_the_wait(signing: FakeServer) -> None:
    with pytest.raises(Failed, match="Nobody agreed") as raised:
        browsing.session(signing.url, listen=True, opened=lambda _: False, patience_s=0.2)
    assert raised.value.hint == f"hostler login --url {signing.url} --password"


def test_without_a_browser_the_code_is_pasted(
    signing: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("once\n"))
    assert main(["login", "--url", signing.url, "--no-browser", "--context", "prod"]) == 0
    assert f"{signing.url}/api/auth/terminal" in capsys.readouterr().err
    assert Contexts(process_environment()).load()["current"] == "prod"


def test_a_code_that_is_not_one_is_refused_and_nothing_is_saved(
    signing: FakeServer, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("twice\n"))
    assert main(["login", "--url", signing.url, "--no-browser"]) == 1
    assert "The token is unknown." in capsys.readouterr().err
    assert not config.exists()


@pytest.mark.parametrize(
    ("environ", "has_one"),
    [({}, False), ({"DISPLAY": ":0", "SSH_CONNECTION": "1.2.3.4 5 6 7"}, False), ({"SSH_TTY": "/dev/pts/1"}, False)],
)  # fmt: skip
def test_a_browser_is_looked_for_where_somebody_sits(
    environ: dict[str, str], has_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert browsing.has_browser(environ) is has_one

"""`--watch`: what is shown again and again, in place or one below the other."""

import io
import json
import re
from pathlib import Path

import pytest
from fake_server import Answer, FakeServer, error, job

from cli import watching
from cli.failures import Away, Failed
from cli.main import main


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def stop_after(times: int) -> object:
    """Return a pause that is Ctrl+C the nth time."""
    left = [times]

    def pause(_seconds: float) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return pause


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.watching.repeated.__defaults__", (stop_after(3),))


@pytest.mark.usefixtures("short")
def test_a_list_is_shown_whenever_it_differs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    states = [Answer(body={"jobs": [job(jobId=name)], "total": 1}) for name in ("job-a", "job-a", "job-b")]
    server.on("GET /api/jobs/list", *states)
    assert main(["jobs", "list", "--watch", "--json"]) == 0
    shown = re.findall(r'"jobId": "(job-.)"', capsys.readouterr().out)
    assert shown == ["job-a", "job-b"]


@pytest.mark.usefixtures("short")
def test_on_a_terminal_it_is_drawn_in_place_and_the_last_state_stays(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("GET /api/keys", Answer(body={"keys": []}))
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    assert main(["keys", "list", "-w"]) == 0
    drawn = terminal.getvalue()
    assert drawn.startswith("\x1b[?1049h")
    assert drawn.count("\x1b[H") == 3
    _, left, after = drawn.partition("\x1b[?1049l")
    assert left
    assert "hostler keys create NAME" in after


def test_a_server_that_is_away_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([Away("Nothing answers at x."), None])

    def draw() -> None:
        if (moment := next(moments)) is not None:
            raise moment
        print("here again")

    watching.repeated(draw, pause=stop_after(2))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "Nothing answers at x. Trying again.\nhere again\n"


def test_a_refusal_ends_it(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.on("GET /api/users", error(403, "This needs the admin role."))
    assert main(["users", "list", "--watch"]) == 1
    assert "This needs the admin role." in capsys.readouterr().err


def test_what_is_not_there_is_not_hidden_by_watching(server: FakeServer) -> None:
    with pytest.raises(Failed):
        watching.repeated(lambda: (_ for _ in ()).throw(Failed("No.")), pause=stop_after(1))  # type: ignore[arg-type]


def test_contexts_are_listed_chosen_and_renamed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.parent.mkdir()
    saved = {
        name: {"url": f"https://{name}.example", "secret": "cb_x", "email": "a@b"} for name in ("one", "two")
    }
    config.write_text(json.dumps({"current": "one", "contexts": saved}))
    assert main(["contexts", "use", "two"]) == 0
    assert main(["contexts", "rename", "two", "prod"]) == 0
    capsys.readouterr()
    assert main(["contexts", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["contexts"]
    assert [(each["name"], each["current"]) for each in found] == [("one", False), ("prod", True)]
    assert main(["contexts", "use", "none"]) == 1
    assert main(["contexts", "rename", "one", "prod"]) == 1
    assert "cb_x" not in capsys.readouterr().err

"""Log lines: JSON for collectors, text for people, each with what the task is about that wrote it."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from integrations import logging as ours
from integrations.logging import JsonLines, TextLines, formatter, to_stderr
from storage import cause


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {
        name: logging.getLogger(name).level for name in ("botocore", "boto3", "urllib3", "opentelemetry")
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"msg": message, "levelno": 30, "levelname": "WARNING", "name": "hostler.test"}
    )
    vars(made).update(extra)
    return made


def test_a_line_of_json_holds_what_was_passed_and_what_it_is_about() -> None:
    line = json.loads(
        JsonLines(lambda: {"request_id": "r", "job": "j"}).format(record("said", why="so", count=3))
    )
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning", "logger": "hostler.test", "message": "said", "request_id": "r", "job": "j", "why": "so",
        "count": 3,
    }  # fmt: skip


def test_what_is_passed_counts_more_than_what_the_task_is_about() -> None:
    assert json.loads(JsonLines(lambda: {"job": "a"}).format(record("said", job="b")))["job"] == "b"


def test_a_line_of_text_is_one_line_that_drives_no_terminal() -> None:
    line = TextLines().format(record("said\x1b[2J\nfake line", why="a b", empty="", evil="x\x1b]0;t\x07"))
    assert "\x1b" not in line
    assert "\n" not in line
    assert 'why="a b"' in line
    assert 'empty=""' in line
    assert "warning" in line


@pytest.mark.parametrize("make", [JsonLines, TextLines])
def test_an_exception_comes_with_its_trace(make: type[JsonLines] | type[TextLines]) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        line = make().format(record("failed", exc_info=sys.exc_info()))
    assert "Traceback" in line
    assert "ValueError: wrong" in line


def test_text_is_for_terminals_unless_a_setting_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, form, expected in (
        (True, "auto", TextLines), (False, "auto", JsonLines), (True, "json", JsonLines), (False, "text", TextLines),
    ):  # fmt: skip
        monkeypatch.setattr(ours.sys.stderr, "isatty", lambda terminal=terminal: terminal)
        assert isinstance(formatter(form), expected)


def test_levels_below_the_chosen_one_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr(form="json", level="warning", about=cause.for_log)
    cause.remember("request-1", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "job-1")
    logging.getLogger("hostler.test").info("quiet")
    logging.getLogger("hostler.test").warning("loud")
    cause.remember("")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["message"], told["request_id"], told["job"]) == ("loud", "request-1", "job-1")
    assert told["trace_id"] == "a" * 32

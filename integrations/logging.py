"""Log lines on standard error: JSON for whatever collects them there, text for a person at a terminal."""

import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}

#: What belongs to every line of the task that writes it: request, job, trace.
About = Callable[[], Mapping[str, str]]


def _nothing() -> Mapping[str, str]:
    return {}


class JsonLines(logging.Formatter):
    """Format each record as one JSON object: time, level, logger, message, what it is about, what `extra` passed."""

    def __init__(self, about: About = _nothing) -> None:
        super().__init__()
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for `record`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {**self._about(), **extra(record)}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """Format each record for people: time, level, message, then what JSON would hold beside it."""

    def __init__(self, about: About = _nothing) -> None:
        super().__init__()
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for `record`."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        about = {**self._about(), **extra(record)}
        beside = "".join(f" {name}={_word(value)}" for name, value in about.items())
        line = f"{at} {record.levelname.lower():<7} {_harmless(record.getMessage())}{beside}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed beside a record's message."""
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


def _word(value: object) -> str:
    text = _harmless(str(value))
    return f'"{text}"' if " " in text or not text else text


def _harmless(text: str) -> str:
    """Return text of somebody else's without what drives a terminal, or ends a line."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def formatter(form: str, about: About = _nothing) -> logging.Formatter:
    """Return the formatter of `form`: json, text, or auto, which is text where standard error is a terminal."""
    text = sys.stderr.isatty() if form == "auto" else form == "text"
    return TextLines(about) if text else JsonLines(about)


def to_stderr(*, form: str = "auto", level: str = "info", about: About = _nothing) -> None:
    """Send every log line of this process from `level` on to standard error. Safe to run twice.

    `about` is asked at each line what the task is about that writes it.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, about))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for library in ("botocore", "boto3", "urllib3", "httpcore", "asyncio", "falcon"):
        logging.getLogger(library).setLevel(max(logging.INFO, logging.getLogger().level))
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # its warnings are each of several tries

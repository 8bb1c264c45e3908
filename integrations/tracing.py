"""Traces by OpenTelemetry, from a request to its job to the job's command; nothing of it costs anything while off.

The SDK is an extra (`pip install 'hostler[tracing]'`). It is on where OTEL_EXPORTER_OTLP_ENDPOINT names a collector of
OTLP over HTTP; the SDK reads its other variables, such as OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

log = logging.getLogger("hostler.tracing")

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """Something that takes time, and belongs to a trace."""

    #: What names it to those who go on with the trace: W3C's header of that name; "" while off.
    traceparent: str

    def end(self, name: str = "", *, failed: str = "", **attributes: str | int) -> None:
        """End it, under a better `name` if there is one; `failed` says what went wrong. Only the first end counts."""

    def step(self, name: str, *, began_s_ago: float = 0) -> "Span":
        """Begin something inside of it."""


class Tracing(Protocol):
    """What makes spans, or nothing at all."""

    on: bool

    def begin(
        self, name: str, *, kind: str, parent: str = "", began_s_ago: float = 0, **attributes: str | int
    ) -> Span:
        """Begin a span of `kind` server, consumer or internal, under the traceparent `parent` if that is one."""

    def close(self) -> None:
        """Send what has not been sent, for at most a few seconds."""


class _NoSpan:
    traceparent = ""

    def end(self, name: str = "", *, failed: str = "", **attributes: str | int) -> None:
        return

    def step(self, name: str, *, began_s_ago: float = 0) -> Span:
        return self


class _Off:
    on = False

    def begin(
        self, name: str, *, kind: str, parent: str = "", began_s_ago: float = 0, **attributes: str | int
    ) -> Span:
        return NO_SPAN

    def close(self) -> None:
        return


NO_SPAN = _NoSpan()
OFF: Tracing = _Off()


def start(endpoint: str | None, service: str, version: str) -> Tracing:
    """Return what traces this process as `service`: nothing where no endpoint is named, or the SDK is not installed.

    Called in the process that makes the spans, after it was forked: sending is done by a thread.
    """
    if endpoint is None:
        return OFF
    try:
        from integrations import opentelemetry_spans  # noqa: PLC0415  the SDK is an extra, and takes long to import
    except ImportError as error:
        log.error(
            "traces are asked for, but OpenTelemetry is not installed: pip install 'hostler[tracing]'",
            extra={"missing": error.name},
        )
        return OFF
    return opentelemetry_spans.Recording(service, version)


@contextlib.contextmanager
def within(span: Span, name: str) -> Iterator[Span]:
    """Do something as a step of `span`."""
    step = span.step(name)
    try:
        yield step
    except BaseException as error:
        step.end(failed=type(error).__name__)
        raise
    else:
        step.end()


def nanoseconds_ago(seconds: float) -> int:
    """Return the time so many seconds ago, as spans have it."""
    return time.time_ns() - int(seconds * 1e9)


__all__ = ["NO_SPAN", "OFF", "Attributes", "Span", "Tracing", "nanoseconds_ago", "start", "within"]

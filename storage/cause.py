"""Cause: the request that a job comes from, by its id and by its trace, which go with the job to whoever runs it."""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

#: W3C Trace Context, version 00: trace id, span id, flags; neither id is all zeros.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: What this task is done for: the id of a request, its trace or "", the job that it is about or "".
_of_this_task: ContextVar[tuple[str, str, str]] = ContextVar("cause", default=("", "", ""))


@dataclass(frozen=True, slots=True)
class Cause:
    """A request by its id, and its trace as W3C's `traceparent`; "" for what there is not."""

    request_id: str = ""
    traceparent: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a command goes on with the trace."""
        return {"TRACEPARENT": self.traceparent} if self.traceparent else {}


def remember(request_id: str, traceparent: str = "", job_id: str = "") -> None:
    """Keep for the rest of this task what it is done for."""
    _of_this_task.set((request_id, traceparent, job_id))


def of_spec(spec: Mapping[str, Any]) -> Cause:
    """Return what a job comes from, as its spec says; what is no cause is none."""
    word = spec.get("cause")
    if not isinstance(word, str):
        return Cause()
    request_id, _, traceparent = word.partition(" ")
    return Cause(request_id if _REQUEST.fullmatch(request_id) else "", valid(traceparent))


def for_spec() -> str:
    """Return what goes into the spec of a job that this task makes; "" for nothing."""
    request_id, traceparent, _ = _of_this_task.get()
    return f"{request_id} {traceparent}" if traceparent else request_id


def for_log() -> dict[str, str]:
    """Return what belongs to each log line of this task."""
    request_id, traceparent, job_id = _of_this_task.get()
    about = {"request_id": request_id, "job": job_id, "trace_id": traceparent[3:35]}
    return {name: value for name, value in about.items() if value}


def valid(traceparent: str | None) -> str:
    """Return a `traceparent` that is one, and "" for anything else."""
    return traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else ""

"""The cause of a job: what goes with it, and what is believed of it."""

import contextvars

import pytest

from storage import cause
from storage.cause import Cause

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_what_a_task_is_done_for_goes_into_the_specs_that_it_makes() -> None:
    def within() -> None:
        assert cause.for_spec() == ""
        cause.remember("request-1")
        assert cause.of_spec({"cause": cause.for_spec()}) == Cause("request-1")
        cause.remember("request-2", TRACE)
        assert cause.of_spec({"cause": cause.for_spec()}) == Cause("request-2", TRACE)
        assert cause.of_spec({"cause": cause.for_spec()}).environment == {"TRACEPARENT": TRACE}

    contextvars.Context().run(within)


@pytest.mark.parametrize(
    "word", [None, 3, "", "a b c", "r\nx", "r " + TRACE + "0", "r " + TRACE.upper(), "é", "x" * 65, ["a"]]
)
def test_what_is_no_cause_is_none(word: object) -> None:
    found = cause.of_spec({"cause": word})
    assert found.traceparent == ""
    assert found.request_id in {"", "a", "r"}
    assert found.environment == {}


@pytest.mark.parametrize(
    "header",
    [
        TRACE + "\n",
        TRACE[3:],
        "01" + TRACE[2:],
        "00-" + "0" * 32 + TRACE[35:],
        TRACE[:36] + "0" * 16 + "-01",
        "",
        None,
    ],
)
def test_only_a_traceparent_of_this_version_is_one(header: str | None) -> None:
    assert cause.valid(header) == ""
    assert cause.valid(TRACE) == TRACE

"""Compiled schemas: the same results and the same errors as marshmallow's own, for every schema there is."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import Schema, ValidationError

from api import compiled
from api.app import groups
from api.executor import schemas

_ENDPOINTS = [endpoint for group in groups() for endpoint in group.endpoints]
TAKEN = {type(s): s for e in _ENDPOINTS for s in (e.body, e.query) if s is not None}
COMPILED = [schema for schema in TAKEN.values() if compiled.loader(schema) != schema.load]
RETURNED = {type(e.returns): e.returns for e in _ENDPOINTS if e.returns is not None}

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 700_000) | st.floats(allow_nan=False, width=16) | st.text(max_size=8)
    | st.sampled_from(["x", "10", "true", "normal", "* * * * *", "https://example.org/x", "2026-01-25T10:30:00Z"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def outcome(read: Any, data: Any) -> Any:
    try:
        return "ok", read(data)
    except ValidationError as error:
        return "refused", error.messages


@pytest.mark.parametrize("schema", COMPILED, ids=lambda schema: type(schema).__name__)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_clients_send_is_read_as_the_schema_reads_it(schema: Schema, data: Any) -> None:
    keys = [field.data_key or name for name, field in schema.load_fields.items()] + ["unknown"]
    sent = data.draw(st.dictionaries(st.sampled_from(keys), _VALUES, max_size=4) | _VALUES)
    assert outcome(compiled.loader(schema), sent) == outcome(schema.load, sent)


@pytest.mark.parametrize(
    "sent",
    [
        {"command": "true"},
        {
            "argv": ["a", "b"],
            "timeout": 5,
            "tags": ["gpu"],
            "env": {"A": "b"},
            "webhook": "https://example.org/",
        },
        {"command": "true", "schedule": "* * * * *"},
        {"command": "true", "runAt": "2026-01-25T10:30:00Z", "backoff": {"delay": 2}},
        {"command": "true", "argv": ["x"]},
        {"command": " ", "timeout": "5"},
        {"nothing": 1},
    ],
)
def test_orders_are_read_alike(sent: dict[str, Any]) -> None:
    schema = schemas.OrderBody()
    assert outcome(compiled.loader(schema), sent) == outcome(schema.load, sent)


def test_most_schemas_are_compiled() -> None:
    assert len(COMPILED) > len(TAKEN) / 2
    assert sum(compiled.dumper(each) != each.dump for each in RETURNED.values()) > len(RETURNED) / 2


def test_an_answer_is_written_as_the_schema_writes_it() -> None:
    entry = {
        "id": "job-1", "command": "true", "argv": None, "name": None, "status": "running", "reason": None,
        "worker": "w",
        "created_ms": 1_790_000_000_123, "started_ms": 1_790_000_000_456, "ended_ms": None, "waited_ms": 333,
        "ran_ms": None, "progress": 7, "exit_code": None, "tags": ["a", "b"], "priority": "high", "attempt": 1,
        "wait": None, "not_before_ms": None, "cancel_requested": False, "retry_of": None, "schedule": None,
    }  # fmt: skip
    page = {"jobs": [entry, entry], "data": [], "total": "2", "limit": 2, "offset": 0, "has_more": 1}
    schema = schemas.JobsAnswer()
    assert compiled.dumper(schema)(page) == schema.dump(page)
    assert list(compiled.dumper(schema)(page)) == list(schema.dump(page))
    del page["total"]
    assert compiled.dumper(schema)(page) == schema.dump(page)

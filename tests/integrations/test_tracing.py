"""Tracing: nothing while off, and what is missing said once."""

import builtins
import logging
import sys
from typing import Any

import pytest

from integrations import tracing
from integrations.tracing import NO_SPAN, OFF


def test_without_an_endpoint_nothing_is_imported_and_no_span_is_made() -> None:
    before = set(sys.modules)
    found = tracing.start(None, "hostler-web", "1")
    assert found is OFF
    assert not found.on
    span = found.begin("request", kind="server")
    assert span is NO_SPAN
    assert (span.traceparent, span.step("run")) == ("", NO_SPAN)
    span.end(failed="x", any="thing")
    found.close()
    assert not [name for name in set(sys.modules) - before if name.startswith("opentelemetry")]


def test_a_missing_sdk_is_said_and_the_process_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = builtins.__import__

    def without(name: str, *how: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name=name)
        return whole(name, *how, **more)

    for name in [
        each for each in sys.modules if each.startswith(("opentelemetry", "integrations.opentelemetry"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("integrations.opentelemetry_spans", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with caplog.at_level(logging.ERROR):
        assert tracing.start("http://127.0.0.1:9", "hostler-web", "1") is OFF
    assert "pip install 'hostler[tracing]'" in caplog.text

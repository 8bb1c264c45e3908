"""Spans as OpenTelemetry's SDK records them, sent by OTLP over HTTP; integrations/tracing.py says when."""

from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from integrations.tracing import Span, nanoseconds_ago

_KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER, "internal": SpanKind.INTERNAL}


class Recording:
    """Makes spans, and sends them in batches from a thread of its own."""

    on = True

    def __init__(self, service: str, version: str) -> None:
        resource = Resource.create({"service.version": version})
        if resource.attributes.get("service.name", "").__str__().startswith("unknown_service"):
            resource = resource.merge(
                Resource({"service.name": service})
            )  # OTEL_SERVICE_NAME names it otherwise
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=5)))
        self._tracer = self._provider.get_tracer("hostler", version)

    def begin(
        self, name: str, *, kind: str, parent: str = "", began_s_ago: float = 0, **attributes: str | int
    ) -> Span:
        """Begin a span; see `tracing.Tracing`."""
        given = {_dotted(key): value for key, value in attributes.items()}
        return _Recorded(
            self._tracer,
            self._tracer.start_span(
                name, _context(parent), _KINDS[kind], given, start_time=nanoseconds_ago(began_s_ago)
            ),
        )

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


class _Recorded:
    """One span of the SDK's."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, name: str = "", *, failed: str = "", **attributes: str | int) -> None:
        """End it; see `tracing.Span`."""
        if not self._span.is_recording():
            return
        if name:
            self._span.update_name(name)
        for key, value in attributes.items():
            self._span.set_attribute(_dotted(key), value)
        if failed:
            self._span.set_status(Status(StatusCode.ERROR, failed))
        self._span.end()

    def step(self, name: str, *, began_s_ago: float = 0) -> Span:
        """Begin a span inside of this one."""
        under = trace.set_span_in_context(self._span)
        return _Recorded(
            self._tracer, self._tracer.start_span(name, under, start_time=nanoseconds_ago(began_s_ago))
        )


def _dotted(key: str) -> str:
    """Return an attribute's name as OpenTelemetry has it: `http_response_status__code` is http.response.status_code."""
    return key.replace("__", "\0").replace("_", ".").replace("\0", "_")


def _context(parent: str) -> Any:
    """Return the context of a valid traceparent; none for "", so that the span begins a trace of its own."""
    if not parent:
        return trace.set_span_in_context(trace.INVALID_SPAN)
    _, trace_id, span_id, flags = parent.split("-")
    found = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return trace.set_span_in_context(NonRecordingSpan(found))

"""Spans of inference requests over OTLP, as the variables OTEL_* of the environment say. Needs the extra [otel]."""

import os
import threading
import time

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from s2ap_defend import __version__
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.exchange import Exchange
from s2ap_defend.serve.timeline import Step, Timeline

__all__ = ["Tracer", "otlp_tracer"]

PROTOCOLS = ("http/protobuf", "grpc")
NAME = "s2ap-defend"  # of the service, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES name it
Attributes = dict[str, str | int]


class Tracer:
    """Makes a span of every inference request, below that of its caller, and below it one for every step.

    Args:
        processor: Takes the spans.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("s2ap_defend", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, exchange: Exchange, name: str, timeline: Timeline, attributes: Attributes) -> Span:
        """Begin the span of a request; `exchange.trace_id` is that of its trace from now on."""
        parent = Context()
        if exchange.traceparent is not None:
            carrier = {"traceparent": exchange.traceparent, "tracestate": exchange.tracestate}
            parent = self._propagator.extract(carrier, parent)
        span = self._tracer.start_span(
            name,
            parent,
            SpanKind.SERVER,
            {**attributes, "s2ap.request_id": exchange.id},
            start_time=timeline.arrived_ns + timeline.epoch_ns,
        )
        if span.get_span_context().is_valid:
            exchange.trace_id = format_trace_id(span.get_span_context().trace_id)
        return span

    def end(self, span: Span, timeline: Timeline, attributes: Attributes, error: str | None = None) -> None:
        """End the span of a request, and give it those of its steps; `error` if the server is to blame."""
        if span.is_recording():
            below = {"request": set_span_in_context(span, Context())}
            for step in timeline.steps():
                self._add(step, below, timeline.epoch_ns)
            span.set_attributes(attributes)
            if error is not None:
                span.set_status(Status(StatusCode.ERROR, error))
        span.end(time.perf_counter_ns() + timeline.epoch_ns)

    def close(self, timeout_s: float) -> None:
        """Send what there is; what nobody takes in time is left behind."""
        closing = threading.Thread(target=self._provider.shutdown, name="s2ap-spans", daemon=True)
        closing.start()
        closing.join(timeout_s)

    def _add(self, step: Step, below: dict[str, Context], epoch_ns: int) -> None:
        attributes: Attributes = {}
        if step.rows is not None:
            attributes["s2ap.rows"] = step.rows
        if step.stages is not None:
            attributes["s2ap.stages"] = step.stages
        parent = below["batch" if step.name == "stage" else "request"]
        span = self._tracer.start_span(step.name, parent, attributes=attributes, start_time=step.began_ns + epoch_ns)
        below[step.name] = set_span_in_context(span, Context())
        span.end(step.ended_ns + epoch_ns)


def otlp_tracer() -> Tracer:
    """A tracer that sends spans where OTEL_EXPORTER_OTLP_ENDPOINT and its like say, http://localhost:4318 without.

    Raises:
        RecipeError: If OTEL_EXPORTER_OTLP_PROTOCOL names a protocol that is not spoken here.
    """
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    exporter: SpanExporter
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        exporter = GrpcExporter()
    elif protocol in {None, "", "http/protobuf"}:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        exporter = HttpExporter()
    else:
        raise RecipeError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
    return Tracer(BatchSpanProcessor(exporter))

"""Spans of OpenTelemetry's SDK with ids and times that are given.

Needs the extra `otel`; only `span_writer.py` imports it, when it is asked for spans.

Does not know: requests.
"""

import os

from opentelemetry.context import (
    _SUPPRESS_INSTRUMENTATION_KEY,
    attach,
    detach,
    set_value,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from .span_attributes import Attributes
from .trace_context import SpanIds

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class SdkSpans:
    """Makes spans of one service."""

    def __init__(self, service: str = "trimtab-gateway") -> None:
        name = os.environ.get("OTEL_SERVICE_NAME") or service
        self._resource = Resource.create({"service.name": name})
        self._scope = InstrumentationScope("trimtab")

    def make(
        self,
        ids: SpanIds,
        *,
        name: str,
        attributes: Attributes,
        start_s: float,
        end_s: float,
        first_token_s: float,
        error: str | None,
    ) -> ReadableSpan:
        """Return a span that has ended; moments are of the wall clock, NaN for no first token."""
        events: tuple[Event, ...] = ()
        if first_token_s == first_token_s:
            events = (Event("trimtab.first_token", timestamp=_ns(first_token_s)),)
        parent = None
        if ids.parent_id:
            parent = SpanContext(ids.trace_id, ids.parent_id, True, _SAMPLED)
        return ReadableSpan(
            name=name,
            context=SpanContext(ids.trace_id, ids.span_id, False, _SAMPLED),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=SpanKind.SERVER,
            status=Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error),
            start_time=_ns(start_s),
            end_time=_ns(end_s),
            instrumentation_scope=self._scope,
        )

    def export(self, exporter: SpanExporter, spans: list[ReadableSpan]) -> bool:
        """Hand spans to an exporter, whose own calls make no spans; return whether it took them."""
        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            return exporter.export(spans) is SpanExportResult.SUCCESS
        finally:
            detach(token)


def _ns(seconds: float) -> int:
    return round(1e9 * seconds)

"""Exports one OpenTelemetry span for each request that has ended or was refused.

In the request's path something is appended and nothing else; a thread makes spans of it, in
batches. What an exporter refuses, or what comes too fast, is lost and counted.

Does not know: where spans go (the exporter does), or what they say (`span_attributes.py`).
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...traces.errors import MissingExtraError
from ..decision_log.decision_log import Circumstances
from ..dispatcher.decision_ring import DecisionRecord
from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts
from ..engines.live_replica import LiveReplica
from . import span_attributes as says
from .trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

    from .sdk_spans import SdkSpans

_LOG = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Requests that wait for export at most; of more, new ones are dropped and counted."""
MAX_KEPT = 4096
"""Decisions in full that wait for the end of their request at most; the oldest go."""
# Spans of one call to the exporter.
_BATCH = 512
_FLUSH_S = 1.0


# One request whose fate is known: facts, placement, fate, moment. A plain tuple, as one with names
# takes most of a microsecond to make, in the path of every request.
_Ended = tuple[RequestFacts, Placement | None, RequestEnd | Refusal, float]


class SpanWriter:
    """A `DispatchListener`. `start` begins to export, `close` exports what is left."""

    def __init__(
        self,
        exporter: "SpanExporter",
        replicas: Sequence[LiveReplica],
        *,
        context: TraceContext | None = None,
        circumstances: Callable[[], Circumstances] = lambda: Circumstances(ruler=""),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises: MissingExtraError without opentelemetry-sdk."""
        self.context = context or TraceContext()
        """Give its `header` to the gateway, so that replicas' spans stand below ours."""
        self.num_dropped = 0
        """Requests that came too fast."""
        self.num_exported = 0
        self.num_failed = 0
        """Spans that the exporter did not take."""
        self._exporter, self._replicas = exporter, list(replicas)
        self._circumstances, self._clock, self._wall_clock = circumstances, clock, wall_clock
        self._spans = _sdk_spans()
        self._ended: deque[_Ended] = deque()
        self._records: deque[DecisionRecord] = deque(maxlen=MAX_KEPT)
        self._kept: OrderedDict[int, DecisionRecord] = OrderedDict()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to export, in a thread."""
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Export what has ended, and stop."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()
        self._exporter.shutdown()

    # In the path of requests.

    def on_placed(self, placement: Placement) -> None:
        """See `DispatchListener`; the span is made when the request ends."""

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """See `DispatchListener`."""
        if len(self._ended) < MAX_WAITING:
            self._ended.append((facts, None, refusal, now_s))
        else:
            self.num_dropped += 1

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """See `DispatchListener`."""
        if len(self._ended) < MAX_WAITING:
            self._ended.append((placement.facts, placement, end, end.ended_at_s))
        else:
            self.num_dropped += 1

    def keep(self, records: Sequence[DecisionRecord]) -> None:
        """Take decisions that were kept in full; they are told with their request's span."""
        self._records.extend(records)

    # In the thread.

    def _run(self) -> None:
        while not self._is_closing.wait(_FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Export a span of each request that has ended."""
        while self._records:
            record = self._records.popleft()
            self._kept[record.number] = record
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        ruling = self._circumstances()
        # The wall clock may be set anew at any time, so the distance is measured again.
        offset_s = self._wall_clock() - self._clock()
        batch: list[ReadableSpan] = []
        for _ in range(len(self._ended)):
            span = self._span(self._ended.popleft(), ruling, offset_s)
            if span is not None:
                batch.append(span)
            if len(batch) >= _BATCH:
                self._export(batch)
                batch = []
        if batch:
            self._export(batch)

    def _span(self, ended: _Ended, ruling: Circumstances, offset_s: float) -> "ReadableSpan | None":
        """Return a request's span, None if it is not sampled."""
        facts, placement, fate, at_s = ended
        record = None if placement is None else self._kept.pop(placement.number, None)
        ids = self.context.ids(facts)
        if not ids.is_sampled:
            return None
        attributes = says.request_attributes(facts) | says.ruling_attributes(ruling)
        ending, message, first_at_s = None, "", float("nan")
        if isinstance(fate, Refusal) or placement is None:
            assert isinstance(fate, Refusal), fate
            attributes |= says.refusal_attributes(fate)
            message = fate.message
        else:
            ending, first_at_s = fate.ending, placement.first_token_at_s
            attributes |= says.placement_attributes(placement, self._replicas)
            attributes |= says.end_attributes(placement, fate)
        if record is not None:
            names = [replica.name for replica in self._replicas]
            attributes |= says.decision_attributes(record, names)
        return self._spans.make(
            ids,
            name=f"{says.operation(facts)} {facts.model}",
            attributes=says.without_unknowns(attributes),
            start_s=facts.arrived_at_s + offset_s,
            end_s=at_s + offset_s,
            first_token_s=first_at_s + offset_s,
            error=(message or str(ending)) if says.is_error(ending, fate.status) else None,
        )

    def _export(self, batch: "list[ReadableSpan]") -> None:
        try:
            is_taken = self._spans.export(self._exporter, batch)
        except Exception as error:
            # An exporter is not ours; whatever it raises costs these spans and nothing else.
            _LOG.error("%d spans could not be exported: %s", len(batch), error)
            is_taken = False
        if is_taken:
            self.num_exported += len(batch)
        else:
            self.num_failed += len(batch)


def _sdk_spans() -> "SdkSpans":
    """Raises: MissingExtraError without opentelemetry-sdk."""
    try:
        from .sdk_spans import SdkSpans
    except ImportError as error:
        msg = "spans need OpenTelemetry's SDK: pip install 'trimtab[otel]'"
        raise MissingExtraError(msg) from error
    return SdkSpans()


def otlp_exporter(url: str) -> "SpanExporter":
    """Return an exporter that posts to an OTLP collector, as `http://host:4318/v1/traces`.

    Raises: MissingExtraError without the OTLP exporter.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        msg = "spans need OpenTelemetry's OTLP exporter: pip install 'trimtab[otel]'"
        raise MissingExtraError(msg) from error
    return OTLPSpanExporter(endpoint=url)

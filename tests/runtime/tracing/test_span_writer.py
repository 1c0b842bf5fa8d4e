"""One span a request, with what was decided and what came of it; read back from the SDK."""

import builtins
import sys
from collections.abc import Mapping, Sequence

import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from trimtab.runtime.decision_log.decision_log import Circumstances
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.tracing import span_writer
from trimtab.runtime.tracing.span_writer import SpanWriter
from trimtab.runtime.tracing.trace_context import TraceContext
from trimtab.traces.errors import MissingExtraError

CLUSTER = three_replicas()
REPLICAS = [
    LiveReplica(name=r.name, engine=EngineKind.VLLM, host="h", port=9000 + i, model="served-m")
    for i, r in enumerate(CLUSTER.replicas)
]
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def make_writer(exporter: SpanExporter, **options: object) -> SpanWriter:
    ruling = Circumstances(ruler="policy", doubt="novel")
    return SpanWriter(
        exporter,
        REPLICAS,
        circumstances=lambda: ruling,
        clock=lambda: 1000.0,
        wall_clock=lambda: 1_700_001_000.0,
        **options,  # type: ignore[arg-type]
    )


def attributes_of(span: ReadableSpan) -> Mapping[str, object]:
    assert span.attributes is not None
    return span.attributes


def test_a_request_has_one_span_with_its_decision_and_its_outcome() -> None:
    exporter = InMemorySpanExporter()
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER, keep_every=1)
    dispatcher.policy_version = "bundle-7"
    dispatcher.listeners.append(writer)
    placement = run_request(dispatcher, make_facts(1, 900.0, trace_parent=PARENT, is_chat=True))
    assert isinstance(placement, Placement)
    writer.keep(dispatcher.decisions.take())
    writer.flush()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind, span.status.status_code) == (
        "chat m", SpanKind.SERVER, StatusCode.UNSET,
    )  # fmt: skip
    # 100 s before the clocks were compared; a tenth to the first token, a second to the end.
    assert span.start_time == pytest.approx(1_700_000_900_000_000_000, abs=1000)
    assert span.end_time == pytest.approx(1_700_000_901_100_000_000, abs=1000)
    assert span.events[0].timestamp == pytest.approx(1_700_000_900_100_000_000, abs=1000)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "served-m",
        "gen_ai.usage.input_tokens": 302,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.response.time_to_first_chunk": pytest.approx(0.1),
        "server.port": 9000 + placement.replica,
        "http.response.status_code": 200,
        "trimtab.request.tenant": "shop",
        "trimtab.decision.replica": REPLICAS[placement.replica].name,
        "trimtab.decision.id": placement.number,
        "trimtab.decision.policy": "bundle-7",
        "trimtab.decision.ruler": "policy",
        "trimtab.decision.doubt": "novel",
    }
    found = attributes_of(span)
    assert {name: found[name] for name in expected} == expected
    top = found["trimtab.decision.top_replicas"]
    assert isinstance(top, Sequence)
    assert top[0] == REPLICAS[placement.replica].name
    assert len(top) == 3
    assert "error.type" not in found


def test_a_replica_gets_the_context_that_is_exported() -> None:
    exporter = InMemorySpanExporter()
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    facts = make_facts(1, 900.0)
    header = writer.context.header(facts).decode()
    run_request(dispatcher, facts)
    writer.flush()
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert header == f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert span.parent is None


def test_a_refused_request_has_a_span_that_says_why() -> None:
    exporter = InMemorySpanExporter()
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    for replica in range(3):
        dispatcher.set_available(replica, False, 0.0)
    run_request(dispatcher, make_facts(1, 900.0))
    writer.flush()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert "refused" in str(span.status.description)
    assert attributes_of(span)["error.type"] == "rejected-no-endpoints"
    assert attributes_of(span)["http.response.status_code"] == 503
    assert "trimtab.decision.replica" not in attributes_of(span)


@pytest.mark.parametrize(
    ("ending", "status", "error_type", "is_error"),
    [
        (Ending.FAILED, 502, "502", True),
        (Ending.TIMED_OUT, 0, "timed out", True),
        (Ending.REFUSED, 400, "400", False),  # the client's own mistake
        (Ending.ABORTED, 0, None, False),
    ],
)
def test_only_what_the_server_did_wrong_is_an_error(
    ending: Ending, status: int, error_type: str | None, is_error: bool
) -> None:
    exporter = InMemorySpanExporter()
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    placed = dispatcher.dispatch(make_facts(1, 900.0), 900.0)
    assert isinstance(placed, Placement)
    end = RequestEnd(ending=ending, status=status, ended_at_s=901.0, output_tokens=0)
    dispatcher.finish(placed, end)
    writer.flush()
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code is StatusCode.ERROR) is is_error
    assert attributes_of(span).get("error.type") == error_type
    assert "gen_ai.response.time_to_first_chunk" not in attributes_of(span)
    assert not span.events


def test_requests_that_are_not_sampled_are_not_exported() -> None:
    exporter = InMemorySpanExporter()
    writer = make_writer(exporter, context=TraceContext(0.0))
    dispatcher = make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    run_request(dispatcher, make_facts(1, 900.0))
    run_request(dispatcher, make_facts(2, 901.0, trace_parent=PARENT))
    writer.flush()
    assert len(exporter.get_finished_spans()) == 1
    assert writer.num_exported == 1


class BrokenExporter(SpanExporter):
    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault
        self.sizes: list[int] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.sizes.append(len(spans))
        if self.fault is not None:
            raise self.fault
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing to end."""


@pytest.mark.parametrize("fault", [None, ConnectionError("nobody there")])
def test_what_an_exporter_refuses_is_counted(fault: Exception | None) -> None:
    exporter = BrokenExporter(fault)
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    for number in range(600):
        run_request(dispatcher, make_facts(number, 900.0 + number))
    writer.flush()
    assert exporter.sizes == [512, 88]
    assert (writer.num_exported, writer.num_failed) == (0, 600)


def test_waiting_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_writer, "MAX_WAITING", 3)
    writer, dispatcher = make_writer(InMemorySpanExporter()), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    for number in range(5):
        run_request(dispatcher, make_facts(number, 900.0))
    writer.flush()
    assert (writer.num_exported, writer.num_dropped) == (3, 2)


def test_closing_exports_what_is_left() -> None:
    exporter = InMemorySpanExporter()
    writer, dispatcher = make_writer(exporter), make_dispatcher(CLUSTER)
    dispatcher.listeners.append(writer)
    writer.start()
    run_request(dispatcher, make_facts(1, 900.0))
    writer.close()
    assert len(exporter.get_finished_spans()) == 1


def test_spans_without_the_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "trimtab.runtime.tracing.sdk_spans", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[otel\]'"):
        make_writer(InMemorySpanExporter())
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[otel\]'"):
        span_writer.otlp_exporter("http://127.0.0.1:4318/v1/traces")

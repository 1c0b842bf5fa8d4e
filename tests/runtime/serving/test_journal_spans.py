"""Spans of a gateway reach a collector over OTLP."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.serving.journal import Journal

CLUSTER = three_replicas()


@pytest.fixture
def collector() -> Any:
    """Return a collector's server and what it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port, bodies
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_reach_a_collector(collector: Any) -> None:
    port, bodies = collector
    replicas = [
        LiveReplica(name=r.name, engine=EngineKind.VLLM, host="h", port=9000, model="m")
        for r in CLUSTER.replicas
    ]
    dispatcher = make_dispatcher(CLUSTER)
    steering = SimpleNamespace(records=[], ruler="scheduler", doubt=None)
    journal = Journal(
        dispatcher, cast(Any, steering), record_dir=None, decisions_dir=None,
        spans_url=f"http://127.0.0.1:{port}/v1/traces", replicas=replicas,
    )  # fmt: skip
    assert journal.spans is not None
    run_request(dispatcher, make_facts(1, 10.0))
    journal.look()
    journal.close()
    (request,) = (ExportTraceServiceRequest.FromString(body) for body in bodies)
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "text_completion m"
    values = {each.key: each.value for each in span.attributes}
    assert values["trimtab.decision.ruler"].string_value == "scheduler"
    assert values["trimtab.request.id"].string_value == "req-1"
    assert journal.spans.num_exported == 1

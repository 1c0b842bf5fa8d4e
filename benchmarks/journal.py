"""What a live run's journal costs: nanoseconds in a request's path, microseconds and bytes behind.

A dispatcher over N replicas places requests; recorder, decision log and span writer listen, alone
and together. `in path` is what their two calls for a request (placed, ended) take; `behind` is the
thread's time to write it, and bytes are what it takes on disk. Every n-th decision is kept in full.

Run: python benchmarks/journal.py [--json] [--requests 20000] [--replicas 16] [--full-every 16]
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from rich.console import Console
from rich.table import Table

from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.runtime.decision_log.decision_log import DecisionLog
from trimtab.runtime.dispatcher.decision_ring import DecisionRecord
from trimtab.runtime.dispatcher.dispatcher import DispatchListener
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd, RequestFacts
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.recorder.recorder import Recorder
from trimtab.runtime.tracing.span_writer import SpanWriter

# Blocks of a prompt: 2 KB of text in blocks of 256 bytes.
NUM_BLOCKS = 8
REPEATS = 5


class NowhereExporter(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take them."""
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to end."""


def make_facts(number: int, rng: np.random.Generator) -> RequestFacts:
    """Return a request of one of a hundred sessions."""
    return RequestFacts(
        request_id=f"req-1a2b3c4d-{number}", model="m", model_index=0, tenant=f"t{number % 7}",
        input_tokens=int(rng.integers(100, 900)), max_output_tokens=256,
        expected_output_tokens=120.0, output_tokens_p90=240.0, ttft_slo_s=60.0, tpot_slo_s=0.2,
        is_stream=True, arrived_at_s=1000.0 + 0.005 * number, session_hash=number % 100 + 1,
        blocks=rng.integers(0, 2**63, NUM_BLOCKS).astype(np.uint64), block_tokens=64,
    )  # fmt: skip


def play(
    num_requests: int, num_replicas: int, full_every: int
) -> tuple[list[tuple[Placement, RequestEnd]], list[DecisionRecord], list[str]]:
    """Place and end requests without a listener; return what listeners would have been told."""
    cluster = repeated_cluster(load_cluster("demo-16"), -(-num_replicas // 16))
    dispatcher = LiveDispatcher(
        cluster, knobs=ANALYTIC_SCORER_KNOBS, keep_every=full_every, num_kept=1024
    )
    for replica in range(len(cluster.replicas)):
        dispatcher.set_available(replica, replica < num_replicas, 0.0)
    rng, told, records = np.random.default_rng(0), [], []
    for number in range(num_requests):
        facts = make_facts(number, rng)
        placement = dispatcher.dispatch(facts, facts.arrived_at_s)
        assert isinstance(placement, Placement), placement
        dispatcher.first_token(placement, facts.arrived_at_s + 0.05)
        end = RequestEnd(
            ending=Ending.FINISHED, status=200, ended_at_s=facts.arrived_at_s + 1.0,
            output_tokens=100, input_tokens=facts.input_tokens, cached_tokens=0,
        )  # fmt: skip
        dispatcher.finish(placement, end)
        told.append((placement, end))
        if number % 256 == 255:
            records += dispatcher.decisions.take()
    records += dispatcher.decisions.take()
    return told, records, [replica.name for replica in cluster.replicas]


def measure(
    make: Any, told: list[tuple[Placement, RequestEnd]], records: list[DecisionRecord]
) -> dict[str, float]:
    """Return what the listeners that `make` returns for a directory cost, per request."""
    paths_ns, behind_us, num_bytes = [], [], 0
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as name:
            listeners: list[DispatchListener] = make(Path(name))
            gc.collect()
            gc.disable()
            begin = time.perf_counter_ns()
            for placement, end in told:
                for listener in listeners:
                    listener.on_placed(placement)
                for listener in listeners:
                    listener.on_ended(placement, end)
            paths_ns.append((time.perf_counter_ns() - begin) / len(told))
            gc.enable()
            begin = time.process_time_ns()
            for listener in listeners:
                if not isinstance(listener, Recorder):
                    listener.keep(records)  # type: ignore[attr-defined]
                listener.flush()  # type: ignore[attr-defined]
            behind_us.append((time.process_time_ns() - begin) / 1e3 / len(told))
            files = Path(name).rglob("*.parquet")
            num_bytes = sum(path.stat().st_size for path in files)
    return {
        "in_path_ns": float(np.median(paths_ns)),
        "behind_us": float(np.median(behind_us)),
        "bytes": num_bytes / len(told),
    }


def run(num_requests: int, num_replicas: int, full_every: int) -> dict[str, Any]:
    """Measure all listeners."""
    told, records, names = play(num_requests, num_replicas, full_every)
    replicas = [
        LiveReplica(name=each, engine=EngineKind.SIMULATED, host="h", port=9000, model="m")
        for each in names
    ]

    def recorder(directory: Path) -> Recorder:
        return Recorder(directory / "record", names)

    def log(directory: Path) -> DecisionLog:
        return DecisionLog(directory / "decisions", names)

    def spans(_: Path) -> SpanWriter:
        return SpanWriter(NowhereExporter(), replicas)

    made = {
        "none": lambda path: [],
        "recorder": lambda path: [recorder(path)],
        "decision log": lambda path: [log(path)],
        "spans": lambda path: [spans(path)],
        "all": lambda path: [recorder(path), log(path), spans(path)],
    }
    return {
        "num_requests": num_requests,
        "num_replicas": len(names),
        "full_every": full_every,
        "num_full": len(records),
        "listeners": {name: measure(make, told, records) for name, make in made.items()},
    }


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--full-every", type=int, default=16)
    options = parser.parse_args()
    result = run(options.requests, options.replicas, options.full_every)
    if options.json:
        print(json.dumps(result))
        return
    title = (
        f"Journal per request, {result['num_replicas']} replicas, "
        f"every {result['full_every']}. decision in full"
    )
    table = Table("listeners", "in path, ns", "behind, us", "bytes on disk", title=title)
    for name, row in result["listeners"].items():
        figures = (f"{row['in_path_ns']:.0f}", f"{row['behind_us']:.1f}", f"{row['bytes']:.0f}")
        table.add_row(name, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()

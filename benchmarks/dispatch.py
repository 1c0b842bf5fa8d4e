"""How long a decision takes: from an understood request to a replica chosen and counted.

Called from Python as the gateway does, full analytic scorer, prefix index, counts and listeners
aside; requests come faster than they end, so replicas differ. With `kept` every decision is kept in
full for the decision log (all candidates, all terms). With `worth` a request goes where it is worth
most: the scorer's 8 cheapest are judged by all that each has open, so it counts how much that is.
The reader's time stands beside it, for bodies of 2 and 32 KB.

Run: python benchmarks/dispatch.py [--json] [--requests 20000] [--only worth]
"""

import argparse
import json
import sys
import time
from collections import deque
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from trimtab.agents.heuristics import MARGINAL_VALUE
from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import Ending, Placement, RequestEnd, RequestFacts
from trimtab.runtime.gateway.tenants import Tenant
from trimtab.runtime.load.prompts import block_text
from trimtab.runtime.understanding.openai_reader import OpenAiReader
from trimtab.runtime.understanding.reader import Call
from trimtab.runtime.understanding.served_models import ServedModel

SIZES = (8, 64, 256, 1024)
ROUNDS = 5
# Requests that a replica has open.
OPEN = 4
# Limits on TTFT and TPOT, s.
LOOSE, TIGHT = (100.0, 10.0), (2.0, 0.02)
BLOCKS = 8


def cluster_of(num_replicas: int) -> ClusterSpec:
    """Return the demo cluster's replicas over and over, each on a server of its own."""
    demo = load_cluster("demo-16")
    servers, replicas = [], []
    for number in range(num_replicas):
        spec = demo.replicas[number % len(demo.replicas)]
        server = next(s for s in demo.servers if s.name == spec.server)
        servers.append(replace(server, name=f"s{number}", num_gpus=1))
        replicas.append(replace(spec, name=f"r{number}", server=f"s{number}", gpu_indices=(0,)))
    return replace(demo, servers=tuple(servers), replicas=tuple(replicas))


def facts_of(number: int, limits: tuple[float, float]) -> RequestFacts:
    first = number % 64 * 1000
    return RequestFacts(
        request_id=f"r{number}", model="m", model_index=0, tenant="t",
        input_tokens=300 + number % 400, max_output_tokens=200, expected_output_tokens=120.0,
        output_tokens_p90=200.0, ttft_slo_s=limits[0], tpot_slo_s=limits[1], is_stream=True,
        blocks=np.arange(first, first + BLOCKS, dtype=np.uint64), block_tokens=64,
        arrived_at_s=0.0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fleet, what it has open, and how its requests are placed."""

    num_replicas: int
    is_by_worth: bool = False
    is_kept: bool = False
    """Whether every decision is kept in full."""
    num_open: int = OPEN
    """Requests that a replica has, on average; a quarter of them without a first token."""

    @property
    def name(self) -> str:
        """What the row is called."""
        name = f"{self.num_replicas} replicas"
        name += ", worth" if self.is_by_worth else ""
        name += f", {self.num_open} open each" if self.num_open != OPEN else ""
        return name + (", kept" if self.is_kept else "")


CASES = (
    *(Case(num_replicas=size, is_kept=keep) for size in SIZES for keep in (False, True)),
    *(Case(num_replicas=size, is_by_worth=True) for size in (8, 64, 256)),
    *(Case(num_replicas=64, is_by_worth=True, num_open=num) for num in (16, 64)),
    Case(num_replicas=64, is_by_worth=True, is_kept=True),
)


def decision_times(case: Case, num_requests: int) -> np.ndarray:
    """Return the time of each decision, least of several rounds, in us."""
    num_replicas, cluster = case.num_replicas, cluster_of(case.num_replicas)
    served = [replica.model for replica in cluster.replicas]
    knobs, limits = ANALYTIC_SCORER_KNOBS, LOOSE
    if case.is_by_worth:
        # Limits at which every chance has to be computed; nothing is refused.
        knobs, limits = MARGINAL_VALUE.knobs.replace({"shed_enabled": 0.0}), TIGHT
    dispatcher = LiveDispatcher(
        cluster, knobs=knobs, served=served, keep_every=int(case.is_kept), num_kept=16
    )
    for replica in range(num_replicas):
        dispatcher.set_available(replica, True, 0.0)
    facts = [facts_of(i, limits) for i in range(num_requests)]
    end = RequestEnd(ending=Ending.FINISHED, status=200, ended_at_s=1.0, output_tokens=10)
    best = np.full(num_requests, np.inf)
    dispatcher.dispatch(facts[0], 0.0)
    now_s, most = 0.0, case.num_open * num_replicas
    for _ in range(ROUNDS):
        open_requests: deque[Placement] = deque()
        for i in range(-most, num_requests):
            now_s += 1e-3
            began = time.perf_counter()
            chosen = dispatcher.dispatch(facts[i % num_requests], now_s)
            if i >= 0:
                best[i] = min(best[i], time.perf_counter() - began)
            if isinstance(chosen, Placement):
                open_requests.append(chosen)
            if len(open_requests) > most // 4:
                dispatcher.first_token(open_requests[-most // 4], now_s)
            if len(open_requests) > most:
                dispatcher.finish(open_requests.popleft(), end)
        for placement in open_requests:
            dispatcher.finish(placement, end)
    return 1e6 * best


def reading_times(num_bytes: int, num_requests: int) -> np.ndarray:
    """Return the time to understand each request, least of several rounds, in us."""
    reader = OpenAiReader([ServedModel(name="m", model_index=0, engine_name="m")])
    tenant = Tenant(name="t", ttft_slo_s=1.0, tpot_slo_s=1.0)
    calls = []
    for number in range(num_requests):
        text = block_text(number % 16, num_bytes // 5) + block_text(number + 100, 20)
        body = msgspec.json.encode(
            {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": text}]}
        )
        calls.append(Call("/v1/chat/completions", {}, body, tenant, f"r{number}", 0.0))
    best = np.full(num_requests, np.inf)
    reader.read(calls[0])
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            reader.read(call)
            best[i] = min(best[i], time.perf_counter() - began)
    return 1e6 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--only", default="", help="rows whose name has this")
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    results: dict[str, dict[str, float]] = {}
    rows = [
        (case.name, lambda c=case: decision_times(c, arguments.requests // (5 if c.is_kept else 1)))
        for case in CASES
    ]
    rows += [
        (f"reader, {size // 1000} KB", lambda s=size: reading_times(s, 1000))
        for size in (2000, 32000)
    ]
    rows = [row for row in rows if arguments.only in row[0]]
    table = Table("decision", "p50 us", "p99 us", box=None)
    for name, measure in rows:
        times = measure()
        low, high = (float(np.quantile(times, q)) for q in (0.5, 0.99))
        results[name] = {"p50_us": low, "p99_us": high}
        table.add_row(name, f"{low:.1f}", f"{high:.1f}")
    console.print(table)
    print(json.dumps({"benchmark": "dispatch", "results": results}))


if __name__ == "__main__":
    main()

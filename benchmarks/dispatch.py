"""How long a decision takes: from an understood request to a replica chosen and counted.

Called from Python as the gateway does, full analytic scorer, prefix index, counts and listeners
aside; requests come faster than they end, so replicas differ. With `kept` every decision is kept in
full for the decision log (all candidates, all terms). The reader's time stands beside it, for
bodies of 2 and 32 KB.

Run: python benchmarks/dispatch.py [--json] [--requests 20000]
"""

import argparse
import json
import sys
import time
from dataclasses import replace

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

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


def facts_of(number: int) -> RequestFacts:
    first = number % 64 * 1000
    return RequestFacts(
        request_id=f"r{number}", model="m", model_index=0, tenant="t",
        input_tokens=300 + number % 400, max_output_tokens=200, expected_output_tokens=120.0,
        output_tokens_p90=200.0, ttft_slo_s=100.0, tpot_slo_s=10.0, is_stream=True,
        blocks=np.arange(first, first + BLOCKS, dtype=np.uint64), block_tokens=64,
        arrived_at_s=0.0,
    )  # fmt: skip


def decision_times(num_replicas: int, num_requests: int, keep_every: int) -> np.ndarray:
    """Return the time of each decision, least of several rounds, in us."""
    cluster = cluster_of(num_replicas)
    served = [replica.model for replica in cluster.replicas]
    dispatcher = LiveDispatcher(
        cluster, knobs=ANALYTIC_SCORER_KNOBS, served=served, keep_every=keep_every, num_kept=16
    )
    for replica in range(num_replicas):
        dispatcher.set_available(replica, True, 0.0)
    facts = [facts_of(i) for i in range(num_requests)]
    end = RequestEnd(ending=Ending.FINISHED, status=200, ended_at_s=1.0, output_tokens=10)
    best = np.full(num_requests, np.inf)
    dispatcher.dispatch(facts[0], 0.0)
    for _ in range(ROUNDS):
        open_requests: list[Placement] = []
        for i, each in enumerate(facts):
            began = time.perf_counter()
            chosen = dispatcher.dispatch(each, i * 1e-3)
            best[i] = min(best[i], time.perf_counter() - began)
            if isinstance(chosen, Placement):
                open_requests.append(chosen)
            if len(open_requests) > 4 * num_replicas:
                dispatcher.finish(open_requests.pop(0), end)
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
    arguments = parser.parse_args()
    console = Console(highlight=False, file=sys.stderr if arguments.json else sys.stdout)
    results: dict[str, dict[str, float]] = {}
    rows = [
        (f"{size} replicas{', kept' if keep else ''}", lambda s=size, k=keep: decision_times(
            s, arguments.requests if not k else arguments.requests // 5, k))
        for size in SIZES for keep in (0, 1)
    ]  # fmt: skip
    rows += [
        (f"reader, {size // 1000} KB", lambda s=size: reading_times(s, 1000))
        for size in (2000, 32000)
    ]
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

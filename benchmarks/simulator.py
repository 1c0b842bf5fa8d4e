"""How fast the simulator is on one core, how its cost grows, and how it compares with its peers.

Synthetic traffic with conversations and shared prompts on the bundled fleet of 16 mixed GPUs, or on
many copies of it with as much load a replica; the full analytic scorer with shedding, metrics
scraped every 50 ms (the default) unless a figure's name says otherwise. A figure is CPU time of the
best of several runs, because what else runs on the machine only adds; set-up, reset and drain are
included, making the trace is timed apart. A ratio's two sides run in turn in this same sitting.
Growth with requests is measured on memory that the process already holds; on fresh memory, where
the operating system's work for its first touch counts too, it stands beside.
Peers: see `peers/`; two are required and installed from the package index on the first run.

Run: python benchmarks/simulator.py [--json] [--runs 5] [--without-peers]
"""

import argparse
import ctypes
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

from peers.comparison import PEERS, PeerError, compare

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS
from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.schema import RequestTrace
from trimtab.traces.synthetic import SyntheticConfig, generate

# About 80 % of what 16 replicas sustain within their limits.
RATE_RPS = 60.0
THOUSANDS, MILLION = 100_000, 1_000_000
PEER_SIZES = (10_000, 100_000)
SCORER = ANALYTIC_SCORER.knobs
# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# What every run must report; null where it was not run.
REQUIRED = ("ratio_vs_dynosim", "ratio_vs_vidur", "ratio_vs_sr_sim")


def make_cluster(num_copies: int) -> ClusterSpec:
    """The bundled fleet of 16, so many times side by side."""
    base = load_cluster("demo-16")
    servers = tuple(
        replace(server, name=f"{server.name}.{i}") for i in range(num_copies)
        for server in base.servers
    )  # fmt: skip
    replicas = tuple(
        replace(replica, name=f"{replica.name}.{i}", server=f"{replica.server}.{i}")
        for i in range(num_copies) for replica in base.replicas
    )  # fmt: skip
    return ClusterSpec(name=f"demo-16 x {num_copies}", servers=servers, replicas=replicas)


def make_trace(num_requests: int, num_copies: int) -> RequestTrace:
    rate_rps = RATE_RPS * num_copies
    return generate(
        SyntheticConfig(num_requests=num_requests, rate_rps=rate_rps, seed=0, block_tokens=512)
    )


class Case:
    """A fleet of some size and a workload for it."""

    def __init__(self, num_requests: int, num_copies: int = 1) -> None:
        self.num_requests = num_requests
        self.cluster = make_cluster(num_copies)
        trace = make_trace(num_requests, num_copies)
        self.workload: Workload = compile_workload(trace, name="synthetic")

    def run_s(self, knobs: Knobs = SCORER, **config: float) -> float:
        """Return the CPU seconds of one run."""
        start_s = time.process_time()
        run_workload(self.cluster, self.workload, knobs, config=FleetConfig(**config))
        return time.process_time() - start_s

    def best_s(self, num_runs: int, knobs: Knobs = SCORER, **config: float) -> float:
        """Return the CPU seconds of the best of some runs."""
        return min(self.run_s(knobs, **config) for _ in range(num_runs))


def speeds(num_runs: int) -> dict[str, float]:
    """Requests per CPU second at 16 and at 1,024 replicas."""
    small, large = Case(THOUSANDS), Case(3 * THOUSANDS, num_copies=64)
    cheap = HEURISTICS["power-of-two"].knobs
    start_s = time.process_time()
    make_trace(THOUSANDS, 1)
    generate_s = time.process_time() - start_s
    few_runs = max(1, num_runs // 2)
    seconds = {
        "requests_per_s_16": small.best_s(2 * num_runs),
        "requests_per_s_16_scrape_200_ms": small.best_s(num_runs, scrape_interval_s=0.2),
        "requests_per_s_16_power_of_two": small.best_s(num_runs, cheap),
        "requests_per_s_16_four_gateways": small.best_s(num_runs, num_gateways=4),
        "requests_per_s_16_single_steps": small.best_s(few_runs, is_single_step=True),
        "requests_per_s_1024": large.best_s(num_runs),
        "requests_per_s_1024_scoring_all": large.best_s(1, num_candidates=0),
        "requests_per_s_1024_power_of_two": large.best_s(few_runs, cheap),
    }
    figures = {
        name: (large if "1024" in name else small).num_requests / s for name, s in seconds.items()
    }
    return {**figures, "generate_s_per_million": generate_s * MILLION / THOUSANDS}


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, whatever its size, instead of only below 32 MiB.

    Otherwise a large run pays the operating system for the first touch of its tables at every
    repetition, and a small one does not.
    """
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        if libc.mallopt(parameter, value) != 1:
            sys.exit(f"mallopt({parameter}, {value}) failed; is this glibc?")


def growth_with_requests(num_runs: int) -> float:
    """Time of ten times the requests over the time of a tenth of them; in turn, on equal terms."""
    few, many = Case(THOUSANDS), Case(MILLION)
    seconds = [(few.best_s(4), many.run_s()) for _ in range(num_runs)]
    few_s, many_s = (min(column) for column in zip(*seconds, strict=True))
    return many_s / few_s


def growth(num_runs: int) -> dict[str, float]:
    """How cost grows: with ten times the requests, and per request with ten times the replicas."""
    times = {}
    for num_copies, num_requests in ((1, 40_000), (10, 400_000), (6, 60_000), (60, 600_000)):
        case = Case(num_requests, num_copies)
        runs = 2 * num_runs if num_requests < THOUSANDS else max(1, num_runs // 2)
        times[num_copies] = case.best_s(runs) / num_requests
    fresh = growth_with_requests(max(1, num_runs // 2))
    keep_freed_memory()
    return {
        "growth_10x_requests": growth_with_requests(num_runs),
        "growth_10x_requests_fresh_memory": fresh,
        "growth_10x_replicas": max(times[10] / times[1], times[60] / times[6]),
        "growth_16_to_160_replicas": times[10] / times[1],
        "growth_96_to_960_replicas": times[60] / times[6],
    }


def run_million() -> dict[str, float]:
    """One million requests, from the trace on, in a process of its own: time and peak memory."""
    trace = make_trace(MILLION, 1)
    start_s = time.process_time()
    workload = compile_workload(trace, name="synthetic")
    del trace
    run_workload(make_cluster(1), workload, SCORER)
    million_s = time.process_time() - start_s
    # ru_maxrss is in KiB on Linux.
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"million_s": million_s, "million_rss_bytes": peak_bytes}


def million(num_runs: int) -> dict[str, float]:
    """The best time and the largest memory of some processes."""
    command = [sys.executable, __file__, "--million"]
    runs = []
    for _ in range(max(1, num_runs // 2)):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "million_s": min(run["million_s"] for run in runs),
        "million_rss_bytes": max(run["million_rss_bytes"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--runs", type=int, default=5, help="runs to take the best of")
    parser.add_argument("--without-peers", action="store_true", help="leave the peers out")
    parser.add_argument("--million", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.million:
        print(json.dumps(run_million()))
        return
    Case(1000).run_s()  # compile
    figures: dict[str, float | None] = dict.fromkeys(REQUIRED)
    figures = speeds(arguments.runs) | million(arguments.runs) | growth(arguments.runs) | figures
    failure = ""
    if not arguments.without_peers:
        try:
            figures |= compare(PEER_SIZES, max(1, arguments.runs // 2))
        except PeerError as error:
            failure = str(error)
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:36} {'not run':>14}" if value is None else f"{name:36} {value:>14,.2f}")
    if failure:
        names = " and ".join(peer.name for peer in PEERS)
        sys.exit(f"peers are required ({names}): {failure}")


if __name__ == "__main__":
    main()

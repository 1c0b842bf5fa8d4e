"""How fast the simulator is: requests per second of one core, against its own single stepping.

Synthetic traffic with conversations and shared prompts on the bundled fleet of 16 mixed GPUs, with
the full analytic scorer and shedding. Metrics are scraped every 0.2 s, and in one figure every
50 ms as in the demo. Making the trace is timed apart. The ratio to single stepping is taken pair
by pair in one run, so it holds on a noisy machine. Absolute figures are CPU time of the machine at
hand, the best of the runs, because what else runs there only adds; the median stands beside it.

Run: python benchmarks/simulator.py [--json] [--requests 100000] [--pairs 5]
"""

import argparse
import json
import resource
import statistics
import time

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.synthetic import SyntheticConfig, generate

# About 80 % of what the 16 replicas sustain within their limits.
RATE_RPS = 60.0
MILLION = 1_000_000
SCRAPE_INTERVAL_S = 0.2
DEMO_SCRAPE_INTERVAL_S = 0.05


def make_workload(num_requests: int) -> Workload:
    config = SyntheticConfig(num_requests=num_requests, rate_rps=RATE_RPS, seed=0, block_tokens=512)
    return compile_workload(generate(config), name="synthetic")


def run_s(
    workload: Workload,
    knobs: Knobs,
    *,
    is_single_step: bool = False,
    scrape_interval_s: float = SCRAPE_INTERVAL_S,
) -> float:
    """Return the CPU seconds of one run, set-up and drain included."""
    start_s = time.process_time()
    config = FleetConfig(is_single_step=is_single_step, scrape_interval_s=scrape_interval_s)
    fleet = SimulatedFleet(load_cluster("demo-16"), workload, config)
    fleet.reset(seed=0, knobs=knobs)
    fleet.drain()
    return time.process_time() - start_s


def measure(num_requests: int, num_pairs: int) -> dict[str, float]:
    scorer, cheap = ANALYTIC_SCORER.knobs, HEURISTICS["power-of-two"].knobs
    run_s(make_workload(1000), scorer)  # compile
    start_s = time.perf_counter()
    workload = make_workload(num_requests)
    generate_s = time.perf_counter() - start_s
    scorer_s, cheap_s, fresh_s, ratios = [], [], [], []
    for _ in range(num_pairs):
        scorer_s.append(run_s(workload, scorer))
        cheap_s.append(run_s(workload, cheap))
        fresh_s.append(run_s(workload, scorer, scrape_interval_s=DEMO_SCRAPE_INTERVAL_S))
        ratios.append(run_s(workload, scorer, is_single_step=True) / scorer_s[-1])
    million = make_workload(MILLION)
    million_s = run_s(million, scorer)
    return {
        "requests_per_s_16": num_requests / min(scorer_s),
        "requests_per_s_16_median": num_requests / statistics.median(scorer_s),
        "requests_per_s_16_scrape_50_ms": num_requests / min(fresh_s),
        "requests_per_s_16_power_of_two": num_requests / min(cheap_s),
        "jump_over_single_step": statistics.median(ratios),
        "million_s": million_s,
        "million_requests_per_s": MILLION / million_s,
        "generate_s_per_million": generate_s / num_requests * MILLION,
        # ru_maxrss is in KiB on Linux.
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    figures = measure(arguments.requests, arguments.pairs)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:32} {value:>12,.2f}")


if __name__ == "__main__":
    main()

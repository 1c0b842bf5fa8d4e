"""What judging placements by worth costs and gains: by rollouts, and by the value network.

The cost is of one decision, candidates' scores included, in a fleet of 16 replicas frozen in
mid-run with about 30 running requests a replica: by samples and candidates, with the outcome
without the request computed anew and remembered; and of the value network, with weights that are
not zero, at 16 and 64 replicas. The gain is the paired difference in goodput on
unseen workloads of the bundled Azure traces, with 95 % bootstrap intervals over the workloads, and
comes with the CPU time that a request of these runs took. Times are the process's CPU time.

Run: python benchmarks/lookahead.py [--json] [--workloads 8] [--loads 0.6 0.8 1.0]
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np

from trimtab.agents.evaluation import Interval, bootstrap
from trimtab.agents.universal import universal_scorer, universal_worth
from trimtab.env.compiled import compiled
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.lookahead.settings import LookaheadSettings
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.scenario import Part, Scenario, azure_scenario
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.calls import look_ahead
from trimtab.env.simulator.workload import Workload
from trimtab.env.value.network import SHAPES, ValueNetwork

SPAN_S = 60.0
SAMPLES = (1, 2, 3, 5)
CANDIDATES = (2, 4, 8)
NETWORK_CANDIDATES = (4, 8, 16, 64)
# As many running requests a replica as the figures are for.
RUNNING = 30
MICRO = 1e6
NO_SHEDDING = ANALYTIC_SCORER_KNOBS.replace({"shed_enabled": 0.0})
AHEAD = LookaheadSettings()


@compiled
def look_again(handle, index, now_s, times):
    """Decide on one request over and over; nothing is placed."""
    for _ in range(times):
        look_ahead(handle[0], index, now_s)


def random_network() -> ValueNetwork:
    """A network whose units are about half on."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0.0, 0.05, shape) for name, shape in SHAPES.items()}
    return ValueNetwork.of_tensors({n: t.astype(np.float32) for n, t in tensors.items()})


def frozen_fleet(
    scenario: Scenario,
    settings: LookaheadSettings,
    *,
    network: ValueNetwork | None = None,
    num_copies: int = 1,
) -> SimulatedFleet:
    """A fleet at the moment when RUNNING requests run on a replica."""
    workload = scenario.workload(Part.TEST, 0, load_frac=1.3 * num_copies)
    config = replace(scenario.config, lookahead=settings, value=network)
    cluster = scenario.cluster
    if num_copies > 1:
        cluster = repeated_cluster(cluster, num_copies)
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS if network is None else universal_worth())
    while fleet.arrays.replicas["num_decoding"].mean() < RUNNING and fleet.now_s < SPAN_S - 2.0:
        fleet.run_until(fleet.now_s + 0.2)
    return fleet


def decision_us(fleet: SimulatedFleet, settings: LookaheadSettings, times: int = 200) -> float:
    """Return the CPU time of a decision, over requests of several lengths."""
    ahead = fleet.arrays.lookahead
    for name in ("num_samples", "num_candidates", "cache_s"):
        ahead[name] = getattr(settings, name)
    requests = np.arange(fleet.requests.size - 8, fleet.requests.size)
    rounds = []
    for index in requests:
        look_again(fleet.handle, index, fleet.now_s, 2)
        start_s = time.process_time()
        look_again(fleet.handle, index, fleet.now_s, times)
        rounds.append((time.process_time() - start_s) / times)
    return float(np.median(rounds)) * MICRO


def measure_cost(scenario: Scenario) -> dict[str, object]:
    """Return the cost of a decision by samples and candidates."""
    fleet = frozen_fleet(scenario, AHEAD)
    rows = []
    for num_candidates in CANDIDATES:
        for num_samples in SAMPLES:
            settings = replace(AHEAD, num_samples=num_samples, num_candidates=num_candidates)
            rows.append(
                {
                    "candidates": num_candidates,
                    "samples": num_samples,
                    "anew_us": decision_us(fleet, replace(settings, cache_s=0.0)),
                    "remembered_us": decision_us(fleet, replace(settings, cache_s=1.0)),
                }
            )
    replicas = fleet.arrays.replicas
    return {
        "running_a_replica": float(replicas["num_decoding"].mean()),
        "waiting_a_replica": float((replicas["num_waiting"] + replicas["num_prefilling"]).mean()),
        "decisions": rows,
    }


def measure_network(scenario: Scenario) -> list[dict[str, object]]:
    """Return the cost of a decision by the value network, by replicas and candidates."""
    rows: list[dict[str, object]] = []
    for num_copies in (1, 4):
        fleet = frozen_fleet(scenario, AHEAD, network=random_network(), num_copies=num_copies)
        num_replicas = len(fleet.cluster.replicas)
        for num_candidates in NETWORK_CANDIDATES:
            if num_candidates <= num_replicas:
                settings = replace(AHEAD, num_candidates=num_candidates)
                decision = decision_us(fleet, settings)
                rows.append(
                    {
                        "replicas": num_replicas,
                        "candidates": num_candidates,
                        "decision_us": decision,
                        "running_a_replica": float(fleet.arrays.replicas["num_decoding"].mean()),
                    }
                )
    return rows


def run(
    scenario: Scenario,
    workload: Workload,
    seed: int,
    policy: tuple[Knobs, LookaheadSettings | None],
) -> dict[str, float]:
    """Run one workload; return its goodput, sheds, and CPU time a request."""
    knobs, settings = policy
    config = replace(scenario.config, lookahead=settings)
    fleet = SimulatedFleet(scenario.cluster, workload, config)
    fleet.reset(seed=seed, knobs=knobs)
    start_s = time.process_time()
    fleet.drain()
    spent_s = time.process_time() - start_s
    kpis, ahead = fleet.kpis(), fleet.arrays.lookahead[0]
    rollouts = int(ahead["num_rollouts"]) + int(ahead["num_cached"])
    return {
        "goodput_frac": kpis.goodput_frac,
        "shed_frac": kpis.shed_frac,
        "ttft_p99_s": kpis.ttft_p99_s,
        "tpot_p99_s": kpis.tpot_p99_s,
        "request_us": spent_s / workload.requests.size * MICRO,
        "remembered_frac": int(ahead["num_cached"]) / max(1, rollouts),
    }


def interval(difference: Interval) -> dict[str, float]:
    """Return a difference in points."""
    return {
        "points": 100 * difference.mean,
        "low": 100 * difference.low,
        "high": 100 * difference.high,
    }


def measure_gain(
    scenario: Scenario,
    load_frac: float,
    num_workloads: int,
    ahead: tuple[Knobs, LookaheadSettings],
) -> dict[str, object]:
    """Return the goodput of each policy at a load, and the lookahead's paired gains."""
    policies: dict[str, tuple[Knobs, LookaheadSettings | None]] = {
        "scorer": (NO_SHEDDING, None),
        "scorer-shedding": (ANALYTIC_SCORER_KNOBS, None),
        "universal-scorer": (universal_scorer(), None),
        "lookahead": ahead,
        "marginal-value": (universal_worth(), None),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in policies}
    for i in range(num_workloads):
        workload = scenario.workload(Part.TEST, i, load_frac=load_frac)
        for name, policy in policies.items():
            results[name].append(run(scenario, workload, i, policy))
    means = {
        name: {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
        for name, rows in results.items()
    }
    goodput = {name: np.array([row["goodput_frac"] for row in r]) for name, r in results.items()}
    pairs = (
        *((one, "scorer-shedding") for one in ("lookahead", "marginal-value")),
        *((one, "universal-scorer") for one in ("lookahead", "marginal-value")),
        ("marginal-value", "lookahead"),
    )
    gains = {
        f"{one} - {base}": interval(bootstrap(goodput[one] - goodput[base])) for one, base in pairs
    }
    return {"load_frac": load_frac, "means": means, "gains": gains}


def show(result: dict[str, object]) -> None:
    """Print the tables."""
    cost = result["cost"]
    assert isinstance(cost, dict)
    print(f"running a replica: {cost['running_a_replica']:.1f}")
    for row in cost["decisions"]:
        print(
            f"{row['candidates']} candidates, {row['samples']} samples: "
            f"{row['anew_us']:.0f} us, remembered {row['remembered_us']:.0f} us"
        )
    network = result["network_cost"]
    assert isinstance(network, list)
    for row in network:
        print(
            f"value network, {row['replicas']} replicas, {row['candidates']} candidates: "
            f"{row['decision_us']:.1f} us ({row['running_a_replica']:.0f} running a replica)"
        )
    loads = result["loads"]
    assert isinstance(loads, list)
    for load in loads:
        print(f"load {load['load_frac']}")
        for name, means in load["means"].items():
            print(f"  {name:16}", "  ".join(f"{k} {v:.4g}" for k, v in means.items()))
        for base, gain in load["gains"].items():
            print(f"  {base:34} {gain['points']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--workloads", type=int, default=8)
    parser.add_argument("--loads", type=float, nargs="*", default=[0.6, 0.8, 1.0])
    parser.add_argument("--cluster", default="demo-16", help="a bundled cluster's name")
    parser.add_argument("--margin", type=float, default=Knobs()["slo_margin"])
    parser.add_argument("--price", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=AHEAD.num_samples)
    parser.add_argument("--candidates", type=int, default=AHEAD.num_candidates)
    parser.add_argument("--cache", type=float, default=AHEAD.cache_s, help="s")
    arguments = parser.parse_args()
    scenario = azure_scenario(span_s=SPAN_S, cluster_name=arguments.cluster)
    settings = LookaheadSettings(
        num_candidates=arguments.candidates,
        num_samples=arguments.samples,
        cache_s=arguments.cache,
    )
    knobs = universal_scorer().replace(
        {
            "slo_margin": arguments.margin,
            "price_interactive": arguments.price,
            "price_batch": arguments.price,
        }
    )
    result: dict[str, object] = {
        "cost": measure_cost(scenario),
        "network_cost": measure_network(scenario),
        "loads": [
            measure_gain(scenario, load, arguments.workloads, (knobs, settings))
            for load in arguments.loads
        ],
    }
    if not arguments.json:
        show(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

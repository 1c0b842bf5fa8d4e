"""What doubts in a policy are worth: shadow regret against the truth, and novelty of states.

Regret: constant policies, good and bad, run unseen workloads with the fallback as their shadow.
The truth is the difference in goodput of two whole runs; an estimate is the mean over the run of
the shadow's. Windows until the trip-wire fires are of 2 s, counted from the start; policies are
not replaced, so that truth and estimate are of the same run. Novelty: a model is fitted on training
workloads at one load and scores states of unseen workloads at several.

Run: python benchmarks/trip_wire.py [--json] [--workloads 4] [--every 8] [--loads 0.6 0.8 1.0 1.3]
"""

import argparse
import json
import time
from collections.abc import Sequence

import numpy as np

from trimtab.agents.heuristics import ANALYTIC_SCORER, heuristic
from trimtab.agents.shield.novelty import NoveltyModel, fit_novelty, observation_of
from trimtab.agents.shield.trip_wire import TripWire
from trimtab.env.knobs import HIGH_VALUES, KNOB_SPECS, LOW_VALUES, TUNABLE_KNOBS, Knobs, residual
from trimtab.env.observation import Observation
from trimtab.env.regret import Regret, pooled
from trimtab.env.scenario import Part, Scenario, azure_scenario
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import Workload

WINDOW_S = 2.0
BASE = ANALYTIC_SCORER.knobs
IS_TUNABLE = np.array([spec.is_tunable for spec in KNOB_SPECS])
FIT_NAMES = ("analytic-scorer", "predicted-ttft", "least-requests")


def policies(num_replicas: int) -> dict[str, Knobs]:
    """Return what a policy may set, from harmless to the worst, and other schedulers."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (3, len(TUNABLE_KNOBS) + num_replicas))
    return {
        **{f"random action {i}": residual(BASE, a, num_replicas) for i, a in enumerate(actions)},
        "predicted-ttft": heuristic("predicted-ttft").knobs,
        "least-tokens": heuristic("least-tokens").knobs,
        "round-robin": heuristic("round-robin").knobs,
        "sheds nearly all": BASE.replace({"shed_interactive": 0.1, "shed_batch": 0.1}),
        "largest bias, random": BASE.with_bias(rng.choice([-2.0, 2.0], num_replicas)),
        "all knobs lowest": Knobs(np.where(IS_TUNABLE, LOW_VALUES, BASE.values)),
        "all knobs highest": Knobs(np.where(IS_TUNABLE, HIGH_VALUES, BASE.values)),
    }


def run(
    scenario: Scenario, workload: Workload, knobs: Knobs, every: int
) -> tuple[float, list[Regret]]:
    """Return the goodput of a run, and the regret of each of its windows."""
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config)
    fleet.reset(seed=0, knobs=knobs)
    fleet.set_shadow(BASE, every=every)
    regrets = []
    while fleet.now_s < workload.span_s:
        fleet.advance(WINDOW_S)
        regrets.append(fleet.take_regret())
    fleet.drain()
    return fleet.kpis().goodput_frac, regrets


def windows_to_trip(regrets: Sequence[Regret]) -> int | None:
    """Return how many windows it takes the trip-wire to fire; None if it does not."""
    wire = TripWire()
    for number, regret in enumerate(regrets, start=1):
        if wire.step(regret, release_windows=1):
            return number
    return None


def measure_regret(
    scenario: Scenario, load_frac: float, num_workloads: int, every: int
) -> dict[str, dict[str, object]]:
    """Return truth, estimate and windows until the trip of each policy at a load."""
    workloads = [
        scenario.workload(Part.TEST, index, load_frac=load_frac) for index in range(num_workloads)
    ]
    best = [run(scenario, workload, BASE, every)[0] for workload in workloads]
    report: dict[str, dict[str, object]] = {}
    for name, knobs in policies(len(scenario.cluster.replicas)).items():
        runs = [run(scenario, workload, knobs, every) for workload in workloads]
        goodput = [one[0] for one in runs]
        report[name] = {
            "goodput_frac": float(np.mean(goodput)),
            "true_regret": float(np.mean(np.subtract(best, goodput))),
            "estimated_regret": pooled(regret for one in runs for regret in one[1]).mean,
            "windows_to_trip": [windows_to_trip(one[1]) for one in runs],
        }
    return report


def observe_runs(
    scenario: Scenario, part: Part, num_workloads: int, load_frac: float | None = None
) -> list[Observation]:
    """Return the observations of all windows, the first two of a run left out."""
    observations = []
    for index in range(num_workloads):
        workload = scenario.workload(part, index, load_frac=load_frac)
        fleet = SimulatedFleet(scenario.cluster, workload, scenario.config)
        fleet.reset(seed=0, knobs=heuristic(FIT_NAMES[index % len(FIT_NAMES)]).knobs)
        while fleet.now_s < workload.span_s:
            fleet.advance(WINDOW_S)
            if fleet.now_s > 2 * WINDOW_S:
                observations.append(observation_of(fleet.state()))
    return observations


def alarm_frac(model: NoveltyModel, observations: list[Observation]) -> float:
    return float(np.mean([model.score(observation) > 1.0 for observation in observations]))


def measure_novelty(scenario: Scenario, num_workloads: int) -> dict[str, object]:
    """Return the share of windows with an alarm, by load, and what a score costs."""
    seen = observe_runs(scenario, Part.TRAIN, 8 * num_workloads)
    model = fit_novelty(seen, observe_runs(scenario, Part.VALIDATION, 6 * num_workloads))
    ordinary = observe_runs(scenario, Part.TEST, 8 * num_workloads)
    began_s = time.perf_counter()
    false_frac = alarm_frac(model, ordinary)
    score_us = 1e6 * (time.perf_counter() - began_s) / len(ordinary)
    loads = {
        f"{times:g} x": alarm_frac(
            model,
            observe_runs(scenario, Part.TEST, min(num_workloads, 3), times * scenario.load_frac),
        )
        for times in (0.5, 1.25, 2, 5, 10)
    }
    gone = [{**o, "replica": 0.0 * o["replica"]} for o in ordinary[:50]]
    rng = np.random.default_rng(0)
    noise = [
        {**o, "replica": rng.uniform(-5, 5, o["replica"].shape).astype(np.float32)}
        for o in ordinary[:50]
    ]
    return {
        "num_fitted": len(seen),
        "num_ordinary": len(ordinary),
        "false_alarm_frac": false_frac,
        "alarm_frac_at_load": loads,
        "alarm_frac_all_replicas_gone": alarm_frac(model, gone),
        "alarm_frac_garbage": alarm_frac(model, noise),
        "score_us": score_us,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--workloads", type=int, default=4, help="runs of each policy and load")
    parser.add_argument("--every", type=int, default=8, help="requests from sample to sample")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.6, 0.8, 1.0, 1.3])
    parser.add_argument("--span", type=float, default=90.0, help="seconds of a workload")
    args = parser.parse_args()
    scenario = azure_scenario(span_s=args.span)
    report: dict[str, object] = {}
    for load in args.loads:
        rows = measure_regret(scenario, load, args.workloads, args.every)
        report[f"load {load:g}"] = rows
        print(f"load {load:g}: regret against {ANALYTIC_SCORER.name}, in shares of the weight")
        print(f"  {'policy':22} {'goodput':>8} {'true':>7} {'estimate':>8}  windows to trip")
        for name, row in rows.items():
            print(
                f"  {name:22} {row['goodput_frac']:8.3f} {row['true_regret']:+7.3f} "
                f"{row['estimated_regret']:+8.3f}  {row['windows_to_trip']}"
            )
    novelty = measure_novelty(scenario, args.workloads)
    for key, value in novelty.items():
        print(f"{key}: {value}")
    if args.json:
        print(json.dumps({"regret": report, "novelty": novelty}))


if __name__ == "__main__":
    main()

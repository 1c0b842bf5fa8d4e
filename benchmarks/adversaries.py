"""Policies that do harm, behind the shield: what is left of the fallback's goodput.

Each adversary plays the demo cluster's Azure traffic at 80 % of saturation behind fallback,
trip-wire and limits; the fallback heuristic plays the same arrivals by itself. Both are judged on
the requests that arrive after the fallback has taken over. `without` is the same adversary with
nothing in its way but the bounds of each knob, over the same requests; one that raises, or asks
for what is no number, would have stopped the fleet, and has none.

Run: python benchmarks/adversaries.py [--json] [--workloads 8] [--load 0.8]
"""

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trimtab.agents.evaluation import bootstrap
from trimtab.agents.shield.adversaries import ADVERSARIES, Adversary
from trimtab.agents.shield.fallback import Fallback, FallbackConfig
from trimtab.agents.shield.guarded_policy import GuardedPolicy
from trimtab.agents.shield.simulated_shield import SimulatedShield
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, HIGH_VALUES, LOW_VALUES, Knobs
from trimtab.env.kpis import is_met
from trimtab.env.scenario import Part, Scenario, azure_scenario
from trimtab.env.simulated_fleet import SimulatedFleet

WINDOW_S = 2.0
SPAN_S = 90.0
NEVER = ("raising", "nan", "huge", "wrong-shape")


def goodput_after(fleet: SimulatedFleet, at_s: float) -> float:
    """Return the goodput share of the requests that arrived from a moment on."""
    rows = fleet.requests[fleet.requests["arrival_s"] >= at_s]
    worth = rows["weight"] * rows["worth_frac"]
    return float(worth[is_met(rows)].sum() / rows["weight"].sum())


def play_guarded(scenario: Scenario, kind: str, seed: int) -> tuple[SimulatedFleet, float | None]:
    """Return a fleet at its end, and when the fallback took over; None if it never did."""
    workload = scenario.workload(Part.TEST, seed)
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config, guard=SimulatedShield())
    fallback = Fallback(
        FallbackConfig(window_s=WINDOW_S),
        base=ANALYTIC_SCORER_KNOBS,
        num_replicas=len(scenario.cluster.replicas),
    )
    policy = GuardedPolicy(Adversary(kind, seed), fallback, take_regret=fleet.take_regret)
    fleet.reset(seed=seed, knobs=policy.begin())
    taken_s = None
    while fleet.now_s < workload.span_s:
        fleet.apply(policy.act(fleet.state()))
        assert policy.verdict is not None, "a policy that acted has a verdict"
        fleet.set_shadow(policy.verdict.shadow)
        if policy.verdict.is_fallback and taken_s is None:
            taken_s = fleet.now_s
        fleet.advance(WINDOW_S)
    fleet.drain()
    return fleet, taken_s


def play_constant(scenario: Scenario, seed: int) -> SimulatedFleet:
    """Return a fleet at its end under the fallback heuristic, shielded as well."""
    workload = scenario.workload(Part.TEST, seed)
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config, guard=SimulatedShield())
    fleet.reset(seed=seed, knobs=ANALYTIC_SCORER_KNOBS)
    fleet.drain()
    return fleet


def play_bare(scenario: Scenario, kind: str, seed: int) -> SimulatedFleet:
    """Return a fleet at its end under an adversary, within the bounds of each knob."""
    workload, adversary = scenario.workload(Part.TEST, seed), Adversary(kind, seed)
    fleet = SimulatedFleet(scenario.cluster, workload, scenario.config)
    fleet.reset(seed=seed, knobs=adversary.begin())
    while fleet.now_s < workload.span_s:
        demand = adversary.demand(len(scenario.cluster.replicas))
        knobs = Knobs(np.clip(demand.values, LOW_VALUES, HIGH_VALUES))
        fleet.apply(knobs.with_bias(demand.replica_bias))
        fleet.advance(WINDOW_S)
    fleet.drain()
    return fleet


def judge(scenario: Scenario, kind: str, num_workloads: int) -> dict[str, Any]:
    """Return the row of one adversary."""
    shares, taken, ratios, bare = [], [], [], []
    for seed in range(num_workloads):
        fleet, taken_s = play_guarded(scenario, kind, seed)
        at_s = 0.0 if taken_s is None else taken_s
        own = goodput_after(play_constant(scenario, seed), at_s)
        shares.append(goodput_after(fleet, at_s))
        ratios.append(shares[-1] / own)
        taken.append(taken_s)
        if kind not in NEVER:
            bare.append(goodput_after(play_bare(scenario, kind, seed), at_s))
    interval = bootstrap(ratios)
    seen = [at_s for at_s in taken if at_s is not None]
    return {
        "adversary": kind,
        "goodput_frac": float(np.mean(shares)),
        "of_fallback": interval.mean,
        "of_fallback_low": interval.low,
        "least_of_fallback": float(min(ratios)),
        "without_frac": float(np.mean(bare)) if bare else None,
        "taken_over": len(seen),
        "taken_over_s": float(np.mean(seen)) if seen else None,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="behind the shield, after the fallback took over")
    for title in ("adversary", "goodput %", "% of the fallback's, 95 % CI", "least"):
        table.add_column(title)
    for title in ("without the shield %", "taken over", "at s"):
        table.add_column(title, justify="right")
    for row in rows:
        without = "stops" if row["without_frac"] is None else f"{100 * row['without_frac']:.1f}"
        at_s = "" if row["taken_over_s"] is None else f"{row['taken_over_s']:.1f}"
        table.add_row(
            row["adversary"],
            f"{100 * row['goodput_frac']:.1f}",
            f"{100 * row['of_fallback']:.1f}, at least {100 * row['of_fallback_low']:.1f}",
            f"{100 * row['least_of_fallback']:.1f} %",
            without,
            str(row["taken_over"]),
            at_s,
        )
    Console().print(table)


def main() -> None:
    """Play all adversaries, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--workloads", type=int, default=8)
    parser.add_argument("--load", type=float, default=0.8)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # every switch and every error is one
    scenario = azure_scenario(load_frac=options.load, span_s=SPAN_S)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(judge, scenario, kind, options.workloads) for kind in ADVERSARIES]
        rows = [task.result() for task in tasks]
    if options.json:
        print(json.dumps({"load_frac": options.load, "adversaries": rows}))
    else:
        _print(rows)


if __name__ == "__main__":
    main()

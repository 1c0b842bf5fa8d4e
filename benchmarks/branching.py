"""What it costs to look ahead and to train: snapshots, branches, and environment steps.

The fleet is the bundled scenario's in mid-run: Azure traffic with conversations, prefix caches and
hidden trouble on 16 mixed GPUs, and four times as much of everything for 64. A snapshot is written
over the last one after the fleet went on for 0.1 s, a restore undoes 2 s of a scratch fleet; both
are medians of the thread's CPU time. Environment steps are taken in turns by Stable-Baselines3's
`DummyVecEnv`, by threads over the environments, and by the vector environment, on the same
episodes. Ratios are medians over the rounds, so they hold on a noisy machine: of wall time, and of
the process's CPU time, which leaves out what threads gain.

Run: python benchmarks/branching.py [--json] [--envs 16] [--rounds 5]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from trimtab.agents.fleet_vec_env import FleetVecEnv
from trimtab.agents.threaded_envs import ThreadedVecEnv
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.reward import ScenarioTasks
from trimtab.env.scenario import Part, Scenario, azure_scenario
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.snapshot import COPY_RULES, Copy
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.vector_env import FleetVectorEnv
from trimtab.traces.superposition import superpose

SPAN_S = 60.0
WINDOW_S = 2.0
NUM_WORKLOADS = 8
MICRO = 1e6


def make_fleet(scenario: Scenario, times: int) -> SimulatedFleet:
    """A fleet in mid-run."""
    rate_rps = times * scenario.rate_rps
    trace = superpose(scenario.parts[Part.TRAIN], rate_rps=rate_rps, span_s=SPAN_S, seed=0)
    workload = compile_workload(trace, name="branching", levels=scenario.levels)
    cluster = repeated_cluster(scenario.cluster, times)
    fleet = SimulatedFleet(cluster, workload, scenario.config)
    fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
    fleet.run_until(SPAN_S / 2)
    return fleet


def median_us(act: Callable[[], object], prepare: Callable[[], object], count: int) -> float:
    """Return the median CPU time of an act, each time after it was prepared."""
    times = []
    for _ in range(count):
        prepare()
        start_s = time.thread_time()
        act()
        times.append(time.thread_time() - start_s)
    return statistics.median(times) * MICRO


def copied_bytes(fleet: SimulatedFleet) -> dict[str, int]:
    """Return the bytes of each large part of a fleet that a repeated restore copies."""
    arrays = fleet.arrays
    sizes = {n: a.nbytes for n, a in arrays._asdict().items() if COPY_RULES[n] is Copy.WHOLE}
    touched = int(arrays.replicas["num_touched_entries"].sum())
    arrived = int(arrays.fleet[0]["next_arrival"])
    last = arrays.requests[arrived - 1]
    end = int(last["first_block"] + last["num_blocks"])
    num_seen = int(arrays.blocks[:end].max(initial=-1)) + 1
    return {
        "cache_table": sizes.pop("cache_table"),
        "cache": touched * arrays.cache.itemsize,
        "holders": num_seen * arrays.holders[0].nbytes,
        "open_requests": fleet.num_open * arrays.requests.itemsize,
        "sequences": int(arrays.replicas["num_decoding"].sum()) * arrays.sequences.itemsize,
        "all_else": sum(sizes.values()),
    }


def measure_copies(scenario: Scenario, times: int, count: int) -> dict[str, float]:
    fleet = make_fleet(scenario, times)
    size = len(fleet.cluster.replicas)
    snapshot, scratch = fleet.snapshot(), fleet.branch()
    scratch.restore(snapshot)

    def run_scratch() -> None:
        scratch.run_until(scratch.now_s + WINDOW_S)

    def go_on() -> None:
        fleet.run_until(fleet.now_s + 0.1)

    figures = {
        "restore_us": median_us(lambda: scratch.restore(snapshot), run_scratch, count),
        "run_2_s_us": median_us(run_scratch, lambda: scratch.restore(snapshot), count),
        "snapshot_us": median_us(lambda: fleet.snapshot(snapshot), go_on, count // 2),
        "first_snapshot_us": median_us(fleet.snapshot, lambda: None, 20),
        "branch_full_us": median_us(fleet.branch, lambda: None, 20),
    }
    sizes = {f"copied_{name}_bytes": float(n) for name, n in copied_bytes(fleet).items()}
    return {f"{name}_{size}": value for name, value in (figures | sizes).items()}


def steps_per_s(envs: VecEnv, num_steps: int) -> tuple[float, float]:
    """Return the environment steps per second of wall and of CPU time, under random actions."""
    rng = np.random.default_rng(0)
    shape = (envs.num_envs, *(envs.action_space.shape or ()))
    actions = [rng.uniform(-0.5, 0.5, shape).astype(np.float32) for _ in range(num_steps)]
    envs.seed(0)
    envs.reset()
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    for action in actions:
        envs.step(action)
    spans_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
    return envs.num_envs * num_steps / spans_s[0], envs.num_envs * num_steps / spans_s[1]


def measure_steps(scenario: Scenario, num_envs: int, num_rounds: int) -> dict[str, float]:
    """Step two episodes in every environment, the three kinds in turns."""
    episode = EpisodeConfig(window_s=WINDOW_S, num_windows=int(SPAN_S / WINDOW_S))
    tasks = ScenarioTasks(scenario, Part.TRAIN, num_workloads=NUM_WORKLOADS)

    def make_env() -> ShortTermEnv:
        return ShortTermEnv(tasks=tasks, episode=episode)

    kinds: dict[str, VecEnv] = {
        "dummy": DummyVecEnv([make_env] * num_envs),
        "threaded": ThreadedVecEnv([make_env] * num_envs),
        "vector": FleetVecEnv(FleetVectorEnv(num_envs, tasks=tasks, episode=episode)),
        "vector_one_thread": FleetVecEnv(
            FleetVectorEnv(num_envs, tasks=tasks, episode=episode, num_workers=1)
        ),
    }
    num_steps = 2 * episode.num_windows
    steps_per_s(kinds["vector"], num_steps)  # twins, compilation
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(num_rounds):
        for name, envs in kinds.items():
            rates[name].append(steps_per_s(envs, num_steps))
    for envs in kinds.values():
        envs.close()
    figures: dict[str, float] = {}
    for k, clock in enumerate(("", "cpu_")):
        for name, rounds in rates.items():
            rate = statistics.median(one[k] for one in rounds)
            figures[f"{name}_steps_per_{clock}s"] = rate
        for name in ("dummy", "threaded"):
            pairs = zip(rates["vector"], rates[name], strict=True)
            figures[f"ratio_{clock}vs_{name}"] = statistics.median(a[k] / b[k] for a, b in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=200)
    arguments = parser.parse_args()
    scenario = azure_scenario(span_s=SPAN_S)
    figures = measure_copies(scenario, 1, arguments.copies)
    figures |= measure_copies(scenario, 4, arguments.copies)
    figures |= measure_steps(scenario, arguments.envs, arguments.rounds)
    # The figures that are asked for by name are those of the bundled fleet.
    for name in ("snapshot_us", "restore_us", "branch_full_us"):
        figures[name] = figures[f"{name}_16"]
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:36} {value:>14,.2f}")


if __name__ == "__main__":
    main()

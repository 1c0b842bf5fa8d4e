"""How many windows a training plays in a CPU second: simulation, twin, observation and update.

Two recipes on about 16 replicas, one thread: `trimtab train` on the bundled cluster (behind the
shield, a critic with an encoder of its own), and `trimtab train --sites` on training sites of 14 to
18 replicas (no shield, a critic of pooled features). Twins are played once for each workload and
counted where they are. The first rollout compiles and is not counted. The parts are of the same
rollouts: what is left of `collect` after simulation is observing, acting and keeping books.

Run: python benchmarks/training_speed.py [--json] [--traces DIR] [--rollouts 2]
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.logger import Logger

from trimtab.agents.arrival_rewards import ArrivalRewards, Normalised
from trimtab.agents.site_training import SiteTrainingConfig, changing_episodes, make_site_model
from trimtab.agents.training import TrainingConfig, make_model
from trimtab.agents.universal import universal_scorer
from trimtab.env import simulated_fleet
from trimtab.env.scenario import azure_scenario
from trimtab.env.short_term_env import EpisodeConfig
from trimtab.env.sites import Split, TraceLibrary

REPLICAS = range(14, 19)
NUM_SITES = 8
# Numbers of training sites that are looked at.
MOST_NUMBERS = 200


def one_cluster() -> PPO:
    """Return the model of `trimtab train` on the bundled scenario."""
    config = TrainingConfig(num_envs=32, episodes_per_rollout=1, num_workloads=32)
    scenario = azure_scenario(span_s=config.episode.window_s * config.episode.num_windows)
    return make_model(scenario, universal_scorer(), config)[0]


def over_sites(traces: TraceLibrary | None) -> PPO:
    """Return the model of `trimtab train --sites` on sites of about 16 replicas."""
    config = SiteTrainingConfig(num_envs=32, episode=EpisodeConfig(num_windows=60))
    episodes = []
    for number in range(MOST_NUMBERS):
        found = changing_episodes(Split.TRAIN, [number], traces, span_s=120.0)
        episodes += [one for one in found if len(one.cluster.replicas) in REPLICAS]
        if len(episodes) == NUM_SITES:
            break
    return make_site_model(episodes, universal_scorer(), config)


@contextmanager
def simulation_timed(spent_s: list[float]) -> Iterator[None]:
    """Add up the CPU time of running fleets, drains and twins included."""
    originals = {name: getattr(simulated_fleet, name) for name in ("_run_to", "drain_many")}

    def timed(name: str):
        def run(*arguments):
            begin_s = time.process_time()
            result = originals[name](*arguments)
            spent_s[0] += time.process_time() - begin_s
            return result

        return run

    with (
        mock.patch.object(simulated_fleet, "_run_to", timed("_run_to")),
        mock.patch.object(simulated_fleet, "drain_many", timed("drain_many")),
    ):
        yield


def measure(model: PPO, num_rollouts: int, normalised: Normalised) -> dict[str, float]:
    """Return windows a CPU second of some rollouts with their updates, and where the time went."""
    model._setup_learn(1, None)
    model.set_logger(Logger(None, []))
    rewards = CallbackList([ArrivalRewards(normalised)])
    rewards.init_callback(model)
    assert model.env is not None, "the model has environments"
    collect_s, update_s, simulated_s = 0.0, 0.0, [0.0]
    for number in range(num_rollouts + 1):
        spent_s = [0.0]
        begin_s = time.process_time()
        with simulation_timed(spent_s):
            model.collect_rollouts(model.env, rewards, model.rollout_buffer, model.n_steps)
        middle_s = time.process_time()
        model.train()
        if number > 0:
            collect_s += middle_s - begin_s
            update_s += time.process_time() - middle_s
            simulated_s[0] += spent_s[0]
    windows = num_rollouts * model.n_steps * model.n_envs
    total_s = collect_s + update_s
    return {
        "windows": windows,
        "windows_per_cpu_s": windows / total_s,
        "collected_per_cpu_s": windows / collect_s,
        "updated_per_cpu_s": windows / update_s,
        "simulation_frac": simulated_s[0] / total_s,
        "update_frac": update_s / total_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--traces", type=Path, help="recorded traces that sites resample")
    parser.add_argument("--rollouts", type=int, default=2, help="rollouts that are counted")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    traces = None if arguments.traces is None else TraceLibrary(arguments.traces)
    figures = {
        "one cluster, shielded": measure(one_cluster(), arguments.rollouts, Normalised.MINIBATCH),
        "sites": measure(over_sites(traces), arguments.rollouts, Normalised.REGIME),
    }
    print(f"{'recipe':24}{'windows/CPU-s':>15}{'collected':>11}{'updated':>9}{'simulation':>12}")
    for name, row in figures.items():
        print(
            f"{name:24}{row['windows_per_cpu_s']:15.0f}{row['collected_per_cpu_s']:11.0f}"
            f"{row['updated_per_cpu_s']:9.0f}{100 * row['simulation_frac']:10.0f} %"
        )
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

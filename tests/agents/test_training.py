"""Training: it runs, it begins at the base, its rewards are those of the arrivals, it logs."""

import csv
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from trimtab.agents.arrival_rewards import ArrivalRewards
from trimtab.agents.bundle import load_bundle, save_bundle
from trimtab.agents.evaluation import run_policy
from trimtab.agents.heuristics import ANALYTIC_SCORER
from trimtab.agents.policy import ConstantPolicy, LearnedPolicy
from trimtab.agents.shield.projection import KnobLimit, KnobLimits
from trimtab.agents.shield.shield import ShieldConfig
from trimtab.agents.shield.simulated_shield import SimulatedShield
from trimtab.agents.training import TrainingConfig, TrainingResult, layout_for, make_model, train
from trimtab.agents.training_log import WandbMode, training_log
from trimtab.env.knobs import KNOB_NAMES, TUNABLE_KNOBS
from trimtab.env.reward import ScenarioTasks
from trimtab.env.scenario import Part
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.traces.errors import MissingExtraError

BASE = ANALYTIC_SCORER.knobs
QUICK = TrainingConfig(
    num_windows=256,
    num_envs=4,
    episodes_per_rollout=2,
    num_workloads=3,
    num_checks=2,
    num_validation_workloads=2,
    hidden_size=8,
    batch_size=64,
    episode=EpisodeConfig(num_windows=8),
)


@dataclass(frozen=True)
class Trained:
    """What one training gave, wrote and did on its way."""

    result: TrainingResult
    directory: Path
    played: list[int]
    rollouts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Rewards before and after they were put where requests arrived, and returns."""


@pytest.fixture(scope="module")
def trained(scenario, tmp_path_factory):
    directory, played, rollouts = tmp_path_factory.mktemp("trained"), [], []
    original = ArrivalRewards._on_rollout_end

    def spy(self):
        before = self.locals["rollout_buffer"].rewards.copy()
        original(self)
        buffer = self.locals["rollout_buffer"]
        rollouts.append((before, buffer.rewards.copy(), buffer.returns.copy()))

    with mock.patch.object(ArrivalRewards, "_on_rollout_end", spy):
        result = train(
            scenario, BASE, directory, QUICK, wandb_mode=WandbMode.DISABLED,
            on_windows=played.append,
        )  # fmt: skip
    return Trained(result, directory, played, rollouts)


def test_256_windows_train_and_log(trained):
    result = trained.result
    assert sum(trained.played) == result.num_windows == 256
    assert result.validation[0] == (0, 0.0)
    assert len(result.validation) >= 3
    assert result.best_windows in [windows for windows, _ in result.validation]
    rows = list(csv.DictReader((trained.directory / "progress.csv").read_text().splitlines()))
    names = set(rows[0])
    assert {f"policy/weight_{name}" for name in TUNABLE_KNOBS} <= names
    assert {"train/approx_kl", "train/explained_variance", "time/fps"} <= names
    assert {"eval/small/goodput_frac", "eval/small/goodput_gain"} <= names
    logged = rows[-2]
    assert 0.0 <= float(logged["shield/override_rate"]) <= 1.0
    assert float(logged["shield/max_override_size"]) >= float(logged["shield/override_size"])
    for name in ("actions_per_window", "skipped_per_window", "barred_frac"):
        assert float(logged[f"shield/{name}"]) >= 0.0


def test_same_seed_same_policy(scenario, trained, tmp_path):
    again = train(scenario, BASE, tmp_path, QUICK, wandb_mode=WandbMode.DISABLED)
    weights = [result.policy.state_dict() for result in (trained.result, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_untrained_policy_is_the_base(scenario, tmp_path):
    model, envs = make_model(scenario, BASE, QUICK)
    save_bundle(
        tmp_path / "bundle",
        policy=model.policy,
        base_knobs=BASE,
        layout=envs[0].layout,
        evaluation={},
        description="nothing",
    )
    workload = scenario.workload(Part.TEST, 0)
    learned, track = run_policy(
        scenario, workload, LearnedPolicy(load_bundle(tmp_path / "bundle")), seed=0
    )
    base, _ = run_policy(scenario, workload, ConstantPolicy(name="base", knobs=BASE), seed=0)
    assert track.at_s.size > 1
    assert np.array_equal(learned.requests["replica"], base.requests["replica"])
    assert learned.kpis().as_dict() == pytest.approx(base.kpis().as_dict(), rel=1e-12)


def test_updates_use_the_rewards_of_the_arrivals(trained):
    length = QUICK.episode.num_windows
    assert trained.rollouts
    for before, after, returns in trained.rollouts:
        assert not np.allclose(before[: length - 1], after[: length - 1])
        # The last window of an episode is followed by nothing: its return is its reward.
        assert returns[-1] == pytest.approx(after[-1], abs=1e-6)


def test_layout_holds_the_cluster(scenario):
    layout = layout_for(scenario)
    assert (layout.max_replicas, layout.max_gpus, layout.max_servers) == (4, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"discount": 1.5}, r"discount must be in \(0, 1\], got 1.5"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


def test_log_works_without_wandb(tmp_path):
    with training_log(tmp_path, mode=WandbMode.DISABLED, config={}) as logger:
        logger.record("a/b", 1.5)
        logger.dump(3)
    assert "1.5" in (tmp_path / "progress.csv").read_text()


def test_missing_wandb_is_an_error_only_online(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(MissingExtraError, match=r"wandb mode is 'online', but .* not installed"),
        training_log(tmp_path, mode=WandbMode.ONLINE, config={}),
    ):
        pass
    with training_log(tmp_path, mode=WandbMode.OFFLINE, config={}) as logger:
        logger.record("a/b", 2.5)
        logger.dump(1)
    assert "2.5" in (tmp_path / "progress.csv").read_text()
    assert "wandb is not installed" in caplog.text


@pytest.mark.slow
def test_offline_wandb_writes_a_run(tmp_path):
    """In a process of its own: wandb leaves threads and warnings behind."""
    code = (
        "import pathlib, sys\n"
        "from trimtab.agents.training_log import WandbMode, training_log\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "with training_log(path, mode=WandbMode.OFFLINE, config={'a': 1}) as logger:\n"
        "    logger.record('eval/small/goodput_frac', 0.5)\n"
        "    logger.dump(1)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_what_the_shield_takes_off_is_seen_by_the_environment(scenario):
    limits = KnobLimits.of([KnobLimit(knob="backlog", max_change_per_s=0.0)])

    def guard():
        return SimulatedShield(ShieldConfig(limits=limits, tick_s=0.02))

    tasks = ScenarioTasks(scenario, Part.TRAIN, 1, make_guard=guard)
    env = ShortTermEnv(tasks=tasks, base=BASE, layout=layout_for(scenario), episode=QUICK.episode)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape, np.float32)
    action[TUNABLE_KNOBS.index("backlog")] = 1.0
    action[TUNABLE_KNOBS.index("hit_weight")] = 1.0
    env.step(action)
    *_, info = env.step(-action)
    report = info["outcome"]["guard"]
    # This knob stands still; the other may swing from end to end in a window.
    assert report.is_overridden
    assert report.override_size == pytest.approx(1.0)
    knobs = dict(zip(KNOB_NAMES, info["knobs"], strict=True))
    assert knobs["backlog"] == pytest.approx(BASE["backlog"])
    assert knobs["hit_weight"] == pytest.approx(BASE["hit_weight"] * np.exp(-0.5))

"""Training: PPO on the short-term environment, around a tuned scorer.

Each rollout is whole episodes, so rewards are replaced by their value by window of arrival
before advantages are computed. Checkpoints are judged on the validation part, the untrained
policy (action 0) among them; the best one is kept.

Does not know: the test part of the trace.
Source: hyperparameters from the project's prototype study, section 8.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ..env.knobs import KNOB_INDEX, TUNABLE_KNOBS, Knobs, residual
from ..env.observation import ObservationLayout
from ..env.reward import ScenarioTasks
from ..env.scenario import Part, Scenario
from ..env.short_term_env import EpisodeConfig, ShortTermEnv
from ..env.simulated_fleet import SimulatedFleet, Workers, advance_all, drain_all
from ..env.vector_env import FleetVectorEnv, observe_fleets
from .arrival_rewards import ArrivalRewards
from .bundle import Bundle
from .fleet_vec_env import FleetVecEnv
from .policy_network import EquivariantPolicy
from .shielded_training import ShieldLog, training_guard
from .training_log import WandbMode, training_log

_COUNTS = (
    "num_windows",
    "num_envs",
    "episodes_per_rollout",
    "num_workloads",
    "num_checks",
    "num_validation_workloads",
    "num_epochs",
    "batch_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Budget and hyperparameters of a training run."""

    num_windows: int = 40_000
    """Decisions to train on, over all environments."""
    num_envs: int = 48
    """Environments stepped together."""
    episodes_per_rollout: int = 2
    """Whole episodes that each environment plays between updates."""
    num_workloads: int = 48
    """Training workloads to draw from."""
    num_checks: int = 4
    """Times that the policy is judged on the validation part."""
    num_validation_workloads: int = 12
    """Workloads of a check."""
    hidden_size: int = 32
    """Width of the graph encoder."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    discount: float = 0.8
    """Of the next window's reward; about five windows of 2 s."""
    num_epochs: int = 4
    """Passes over a rollout in an update."""
    batch_size: int = 576
    """Windows in a minibatch."""
    episode: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Shape of an episode."""
    is_shielded: bool = True
    """The shield stands between policy and fleets, in training and on the validation part."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0.0 < self.discount <= 1.0:
            msg = f"discount must be in (0, 1], got {self.discount}"
            raise ValueError(msg)

    @property
    def rollout_windows(self) -> int:
        """Windows between updates, over all environments."""
        return self.num_envs * self.episodes_per_rollout * self.episode.num_windows


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """Outcome of a training run."""

    policy: EquivariantPolicy
    """The best checkpoint."""
    base: Knobs
    layout: ObservationLayout
    validation: tuple[tuple[int, float], ...]
    """(windows trained, goodput minus the base's on the validation part) of each check."""
    best_windows: int
    """Windows trained at the best checkpoint; 0 is the untrained policy, that is, the base."""
    num_windows: int
    seconds: float


Progress = Callable[[int], None]
"""Called with the number of windows that were just played."""


def layout_for(scenario: Scenario) -> ObservationLayout:
    """Return the smallest layout that holds a scenario's cluster."""
    cluster = scenario.cluster
    return ObservationLayout(
        max_replicas=len(cluster.replicas),
        max_gpus=sum(len(replica.gpu_indices) for replica in cluster.replicas),
        max_servers=len(cluster.servers),
    )


class KnobLog(BaseCallback):
    """Logs the mean of every knob that the policy set during a rollout."""

    def __init__(self, on_windows: Progress) -> None:
        super().__init__()
        self._settings: list[np.ndarray] = []
        self._on_windows = on_windows

    def _on_step(self) -> bool:
        self._settings += [info["knobs"] for info in self.locals["infos"]]
        self._on_windows(len(self.locals["infos"]))
        return True

    def _on_rollout_end(self) -> None:
        means = np.mean(self._settings, axis=0)
        self._settings = []
        for name in TUNABLE_KNOBS:
            self.logger.record(f"policy/weight_{name}", float(means[KNOB_INDEX[name]]))


class _Checkpoints(BaseCallback):
    """Judges the policy on validation workloads now and then, and keeps the best weights."""

    def __init__(self, scenario: Scenario, env: ShortTermEnv, config: TrainingConfig) -> None:
        super().__init__()
        self._scenario = scenario
        self._env = env
        self._workloads = [
            scenario.workload(Part.VALIDATION, i) for i in range(config.num_validation_workloads)
        ]
        self._workers = Workers()
        self._is_shielded = config.is_shielded
        self._window_s = config.episode.window_s
        self._num_windows = config.num_windows
        self._interval = max(1, config.num_windows // config.num_checks)
        self._base_goodput = self._goodput(None)
        self.checks: list[tuple[int, float]] = [(0, 0.0)]
        self.best_weights: dict[str, Any] | None = None

    @property
    def best_windows(self) -> int:
        """Windows trained at the best check."""
        return max(self.checks, key=lambda check: check[1])[0]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        is_last = self.num_timesteps >= self._num_windows
        # The last update is still to come: `train` checks after it.
        if not is_last and self.num_timesteps - self.checks[-1][0] >= self._interval:
            self.check()

    def check(self) -> None:
        """Judge the policy as it is."""
        gain = self._goodput(self.model.policy) - self._base_goodput
        if gain > max(value for _, value in self.checks):
            self.best_weights = copy.deepcopy(self.model.policy.state_dict())
        self.checks.append((self.num_timesteps, gain))
        self.logger.record(f"eval/{self._scenario.name}/goodput_gain", gain)
        self.logger.record(f"eval/{self._scenario.name}/goodput_frac", self._base_goodput + gain)

    def _goodput(self, policy: Any) -> float:
        """Return the mean goodput share; of the base where there is no policy."""
        fleets = []
        for seed, workload in enumerate(self._workloads):
            guard = training_guard() if self._is_shielded else None
            cluster, config = self._scenario.cluster, self._scenario.config
            fleet = SimulatedFleet(cluster, workload, config, guard=guard)
            fleet.reset(seed=seed, knobs=self._env.base)
            fleets.append(fleet)
        if policy is not None:
            self._steer(fleets, policy)
        drain_all(fleets, self._workers)
        return float(np.mean([fleet.kpis().goodput_frac for fleet in fleets]))

    def _steer(self, fleets: list[SimulatedFleet], policy: Any) -> None:
        """Run all fleets to the end of their workloads under the policy, side by side."""
        layout, base = self._env.layout, self._env.base
        actions = np.zeros((len(fleets), layout.action_size), np.float32)
        while fleets[0].now_s < self._scenario.span_s:
            seen = observe_fleets(fleets, actions, layout)
            actions, _ = policy.predict(seen, deterministic=True)
            for fleet, action in zip(fleets, actions, strict=True):
                fleet.apply(residual(base, action, len(fleet.cluster.replicas)))
            advance_all(fleets, self._window_s, self._workers)


def make_model(
    scenario: Scenario, base: Knobs, config: TrainingConfig, start: Bundle | None = None
) -> tuple[PPO, list[ShortTermEnv]]:
    """Return a model on its environments, and those environments.

    It is untrained, or begins where a bundle's policy ended.
    """
    guard = training_guard if config.is_shielded else None
    tasks = ScenarioTasks(scenario, Part.TRAIN, config.num_workloads, make_guard=guard)
    layout = layout_for(scenario)
    envs = FleetVectorEnv(
        config.num_envs, tasks=tasks, base=base, episode=config.episode, layout=layout
    )
    model = PPO(
        EquivariantPolicy,
        FleetVecEnv(envs),
        learning_rate=config.learning_rate,
        n_steps=config.episodes_per_rollout * config.episode.num_windows,
        batch_size=min(config.batch_size, config.rollout_windows),
        n_epochs=config.num_epochs,
        gamma=config.discount,
        gae_lambda=0.9,
        clip_range=0.2,
        target_kl=0.03,
        ent_coef=0.0,
        policy_kwargs={"features_extractor_kwargs": {"hidden_size": config.hidden_size}},
        seed=config.seed,
        device="cpu",
    )
    if start is not None:
        policy_of(model).start_from(start.actor)
    return model, envs.envs


def policy_of(model: PPO) -> EquivariantPolicy:
    """Return a model's policy."""
    policy = model.policy
    assert isinstance(policy, EquivariantPolicy), f"policy is {type(policy)}"
    return policy


def train(
    scenario: Scenario,
    base: Knobs,
    directory: Path,
    config: TrainingConfig | None = None,
    *,
    start: Bundle | None = None,
    wandb_mode: WandbMode = WandbMode.OFFLINE,
    on_windows: Progress = lambda count: None,
) -> TrainingResult:
    """Train a policy around `base`, log into a directory, and return the best checkpoint.

    It begins with action 0, or where a bundle's policy ended; the best may be the base itself.
    """
    config = config or TrainingConfig()
    start_s = time.monotonic()
    threads = torch.get_num_threads()
    # Two OpenMP threads on small tensors are slower than one.
    torch.set_num_threads(1)
    try:
        model, envs = make_model(scenario, base, config, start)
        checkpoints = _Checkpoints(scenario, envs[0], config)
        callbacks: list[BaseCallback] = [
            ArrivalRewards(),
            KnobLog(on_windows),
            ShieldLog(),
            checkpoints,
        ]
        with training_log(directory, mode=wandb_mode, config=asdict(config)) as logger:
            model.set_logger(logger)
            if start is not None:
                checkpoints.init_callback(model)
                checkpoints.check()
            model.learn(config.num_windows, callback=callbacks)
            checkpoints.check()
            logger.dump(model.num_timesteps)
    finally:
        torch.set_num_threads(threads)
    policy = policy_of(model)
    if checkpoints.best_weights is not None:
        policy.load_state_dict(checkpoints.best_weights)
    else:
        policy = _untrained(scenario, base, config)
    return TrainingResult(
        policy=policy,
        base=base,
        layout=envs[0].layout,
        validation=tuple(checkpoints.checks),
        best_windows=checkpoints.best_windows,
        num_windows=model.num_timesteps,
        seconds=time.monotonic() - start_s,
    )


def _untrained(scenario: Scenario, base: Knobs, config: TrainingConfig) -> EquivariantPolicy:
    """Return the policy of iteration 0, whose action is 0."""
    return policy_of(make_model(scenario, base, config)[0])

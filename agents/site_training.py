"""Training over many sites: PPO that moves a universal scheduler, window by window.

Episodes change their regime, sites differ in models, GPUs, size, limits and traffic, so what is
learned is to read from the state what the fleet needs now. Rewards are by window of arrival and
less those of the base on the same arrivals; advantages are scaled in each kind of regime by
itself; the critic sees what is still to come. Checkpoints are judged on validation sites.

Does not know: test sites, or where episodes come from.
Source: hyperparameters from the project's prototype study, section 8.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from ..env.knobs import TUNABLE_KNOBS, Knobs, residual
from ..env.observation import ObservationLayout, fits_layout
from ..env.short_term_env import EpisodeConfig
from ..env.simulated_fleet import SimulatedFleet, Workers, advance_all, drain_all
from ..env.sites import Episode, Split, TraceLibrary, sample_site, site_episode
from ..env.sites.tasks import NUM_FUTURE, SiteTasks
from ..env.vector_env import FleetVectorEnv, observe_fleets
from ..graph_encoder.extractor import Reads
from .arrival_rewards import ArrivalRewards, Normalised
from .bundle import Bundle
from .fleet_vec_env import FleetVecEnv
from .knob_search import knobs_to_tune
from .policy_network import EquivariantPolicy
from .shielded_training import training_guard
from .training import KnobLog, Progress, TrainingResult, policy_of
from .training_log import WandbMode, training_log

SITE_LAYOUT = ObservationLayout(max_replicas=32, max_gpus=64, max_servers=16)
"""Holds the fleets of 19 of 20 sites; weights do not depend on it."""
# Episodes with more requests take too long for what they say.
_MOST_REQUESTS = 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTrainingConfig:
    """Budget and hyperparameters of a training over sites.

    Raises:
        ValueError: a number is too small.
    """

    num_windows: int = 150_000
    """Decisions to train on, over all environments."""
    num_envs: int = 64
    """Environments stepped together; each plays one whole episode between updates."""
    num_checks: int = 5
    """Times that the policy is judged on the validation episodes."""
    hidden_size: int = 32
    """Width of the graph encoder."""
    learning_rate: float = 5e-4
    """Step size of Adam."""
    discount: float = 0.7
    """Of the next window's reward; about three windows of 5 s."""
    num_epochs: int = 4
    """Passes over a rollout in an update."""
    batch_size: int = 768
    """Windows in a minibatch."""
    log_std: float = -0.9
    """Initial log standard deviation of the knob residuals."""
    moves_bias: bool = False
    """Whether single replicas are biased too: as many noisy dimensions more as there are."""
    episode: EpisodeConfig = field(
        default_factory=lambda: EpisodeConfig(window_s=5.0, num_windows=48)
    )
    """Shape of an episode. A setting that is tried for 5 s tells more than one for 2 s; what was
    learned so acts every 2 s all the same."""
    normalised: Normalised = Normalised.REGIME
    """Over what advantages are brought to one scale."""
    is_shielded: bool = False
    """The shield stands between policy and fleets, in training and in checks: three times as dear.
    The gate judges behind it in any case."""
    has_twin: bool = True
    """Whether rewards are less those of the base."""
    sees_future: bool = True
    """Whether the critic sees what is still to come."""
    reads: Reads = Reads.GRAPH
    """What of the graph the encoders read."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_windows", "num_envs", "num_checks", "num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


def changing_episodes(
    split: Split,
    sites: Sequence[int],
    traces: TraceLibrary | None,
    *,
    span_s: float,
    number: int = 0,
    layout: ObservationLayout = SITE_LAYOUT,
) -> list[Episode]:
    """Return one episode with changing regimes of each site that fits a layout."""
    episodes = []
    for i in sites:
        site = sample_site(split, i, traces, is_changing=True)
        if not fits_layout(site.cluster, layout):
            continue
        episode = site_episode(site, number, traces, span_s=span_s)
        if episode.workload.requests.size <= _MOST_REQUESTS:
            episodes.append(episode)
    return episodes


def moved_knobs(base: Knobs, *, moves_bias: bool) -> tuple[bool, ...]:
    """Return which dimensions of the action count under a base, the last for the biases."""
    counting = set(knobs_to_tune(base))
    return (*(name in counting for name in TUNABLE_KNOBS), moves_bias)


def make_site_model(
    episodes: Sequence[Episode],
    base: Knobs,
    config: SiteTrainingConfig,
    layout: ObservationLayout = SITE_LAYOUT,
    start: Bundle | None = None,
) -> PPO:
    """Return a model on environments that draw from episodes, untrained or begun by a bundle."""
    envs = FleetVectorEnv(
        config.num_envs,
        tasks=SiteTasks(
            episodes,
            has_twin=config.has_twin,
            make_guard=training_guard if config.is_shielded else None,
        ),
        base=base,
        episode=config.episode,
        layout=layout,
        num_workers=1,
        num_future=NUM_FUTURE if config.sees_future else 0,
    )
    model = PPO(
        EquivariantPolicy,
        FleetVecEnv(envs),
        learning_rate=config.learning_rate,
        n_steps=config.episode.num_windows,
        batch_size=config.batch_size,
        n_epochs=config.num_epochs,
        gamma=config.discount,
        gae_lambda=0.9,
        clip_range=0.2,
        target_kl=0.03,
        ent_coef=0.0,
        normalize_advantage=config.normalised is Normalised.MINIBATCH,
        policy_kwargs={
            "features_extractor_kwargs": {
                "hidden_size": config.hidden_size,
                "reads": config.reads,
            },
            "moved": moved_knobs(base, moves_bias=config.moves_bias),
            "has_pooled_critic": True,
        },
        seed=config.seed,
        device="cpu",
    )
    with torch.no_grad():
        model.policy.log_std[:-1] = config.log_std
    if start is not None:
        policy_of(model).start_from(start.actor)
    return model


class SiteChecks(BaseCallback):
    """Judges the policy on validation episodes now and then, and keeps the best weights."""

    def __init__(
        self, episodes: Sequence[Episode], base: Knobs, config: SiteTrainingConfig
    ) -> None:
        super().__init__()
        self._episodes, self._base, self._config = episodes, base, config
        self._interval = max(1, config.num_windows // config.num_checks)
        self._base_goodput = goodput_under(None, episodes, base, config)
        self.checks: list[tuple[int, float]] = [(0, 0.0)]
        self.best_weights: dict[str, Any] | None = None

    @property
    def best_windows(self) -> int:
        """Windows trained at the best check."""
        return max(self.checks, key=lambda check: check[1])[0]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        is_last = self.num_timesteps >= self._config.num_windows
        # The last update is still to come: the training checks after it.
        if not is_last and self.num_timesteps - self.checks[-1][0] >= self._interval:
            self.check()

    def check(self) -> None:
        """Judge the policy as it is."""
        goodput = goodput_under(self.model.policy, self._episodes, self._base, self._config)
        gain = float((goodput - self._base_goodput).mean())
        if gain > max(value for _, value in self.checks):
            self.best_weights = copy.deepcopy(self.model.policy.state_dict())
        self.checks.append((self.num_timesteps, gain))
        self.logger.record("eval/sites/goodput_gain", gain)
        self.logger.record("eval/sites/goodput_frac", float(goodput.mean()))


def goodput_under(
    policy: Any,
    episodes: Sequence[Episode],
    base: Knobs,
    config: SiteTrainingConfig,
    layout: ObservationLayout = SITE_LAYOUT,
) -> np.ndarray:
    """Return the goodput of each episode under a policy's mean action, or the base where None."""
    workers, fleets = Workers(1), []
    for episode in episodes:
        fleet = episode.fleet(guard=training_guard() if config.is_shielded else None)
        fleet.reset(seed=episode.number, knobs=base)
        fleets.append(fleet)
    if policy is not None:
        _steer(fleets, policy, (base, layout), config.episode, workers)
    drain_all(fleets, workers)
    return np.array([fleet.kpis().goodput_frac for fleet in fleets])


def _steer(
    fleets: Sequence[SimulatedFleet],
    policy: Any,
    action_space: tuple[Knobs, ObservationLayout],
    shape: EpisodeConfig,
    workers: Workers,
) -> None:
    """Run fleets to the end of their workloads under a policy, side by side."""
    base, layout = action_space
    actions = np.zeros((len(fleets), layout.action_size), np.float32)
    for _ in range(shape.num_windows):
        seen = observe_fleets(fleets, actions, layout)
        with torch.inference_mode():
            tensors = {key: torch.as_tensor(rows) for key, rows in seen.items()}
            mean = policy.get_distribution(tensors).mode()
        actions = mean.clamp(-1.0, 1.0).numpy()
        for fleet, action in zip(fleets, actions, strict=True):
            fleet.apply(residual(base, action, len(fleet.cluster.replicas)))
        advance_all(fleets, shape.window_s, workers)


def train_on_sites(
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    base: Knobs,
    directory: Path,
    config: SiteTrainingConfig | None = None,
    *,
    start: Bundle | None = None,
    wandb_mode: WandbMode = WandbMode.OFFLINE,
    on_windows: Progress = lambda count: None,
) -> TrainingResult:
    """Train a policy around a base over episodes, log into a directory, return the best checkpoint.

    It begins with action 0, or where a bundle's policy ended; the best may be the base itself.

    Raises:
        ValueError: there is no episode to train or to validate on.
    """
    config = config or SiteTrainingConfig()
    if not episodes or not validation:
        msg = f"need episodes to train and validate on, got {len(episodes)} and {len(validation)}"
        raise ValueError(msg)
    start_s = time.monotonic()
    threads = torch.get_num_threads()
    # Two OpenMP threads on small tensors are slower than one.
    torch.set_num_threads(1)
    try:
        untrained = policy_of(make_site_model(episodes, base, config)).state_dict()
        model = make_site_model(episodes, base, config, start=start)
        checks = SiteChecks(validation, base, config)
        callbacks: list[BaseCallback] = [
            ArrivalRewards(config.normalised),
            KnobLog(on_windows),
            checks,
        ]
        with training_log(directory, mode=wandb_mode, config=asdict(config)) as logger:
            model.set_logger(logger)
            if start is not None:
                checks.init_callback(model)
                checks.check()
            model.learn(config.num_windows, callback=callbacks)
            checks.check()
            logger.dump(model.num_timesteps)
    finally:
        torch.set_num_threads(threads)
    policy = policy_of(model)
    policy.load_state_dict(checks.best_weights or untrained)
    return TrainingResult(
        policy=policy,
        base=base,
        layout=SITE_LAYOUT,
        validation=tuple(checks.checks),
        best_windows=checks.best_windows,
        num_windows=model.num_timesteps,
        seconds=time.monotonic() - start_s,
    )

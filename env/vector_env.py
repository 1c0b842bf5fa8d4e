"""`trimtab/ShortTerm-v0` many times over: all fleets of a step advance in one call.

Observations, rewards and ends are those of so many single environments, bit for bit.

Does not know: learning algorithms.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .knobs import Knobs
from .observation import CLIP, Observation, ObservationLayout, Seen, observe_groups
from .reward import Task, TwinnedTasks
from .short_term_env import EpisodeConfig, ShortTermEnv, TaskSource, default_tasks
from .simulated_fleet import SimulatedFleet, Workers, advance_all, drain_all, states_of

FUTURE = "future"
"""Key of what is still to come, in observations for training."""

BoolArray = NDArray[np.bool_]


class Steps(NamedTuple):
    """One step of every environment; those that ended have begun their next episode."""

    observation: Observation
    """Each key [n, ...]: of the next episode where one ended."""
    rewards: NDArray[np.float64]
    is_last: BoolArray
    infos: list[dict[str, Any]]
    final_observations: dict[int, Observation]
    """By environment, where an episode ended."""
    reset_infos: dict[int, dict[str, Any]]


class FleetVectorEnv(VectorEnv[Observation, NDArray[np.float32], NDArray[Any]]):
    """Short-term environments in the simulator, stepped together.

    An episode that ends begins anew in the same step (`AutoresetMode.SAME_STEP`): the last
    observation and info stand in `infos["final_obs"]` and `infos["final_info"]`. All arguments but
    `num_envs`, `num_workers` (threads that advance fleets; by default one for each core) and
    `num_future` are those of `ShortTermEnv`. With `num_future` above 0 observations have a key
    `future` of so many features, what tasks say is still to come: for a critic, in training alone.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        tasks: TaskSource | None = None,
        base: Knobs | None = None,
        episode: EpisodeConfig | None = None,
        layout: ObservationLayout | None = None,
        num_workers: int | None = None,
        num_future: int = 0,
    ) -> None:
        if num_envs < 1:
            msg = f"num_envs must be at least 1, got {num_envs}"
            raise ValueError(msg)
        episode = episode or EpisodeConfig()
        tasks = tasks or default_tasks(episode)
        self.num_envs = num_envs
        self.envs = [
            ShortTermEnv(tasks=tasks, base=base, episode=episode, layout=layout)
            for _ in range(num_envs)
        ]
        self.metadata = {**ShortTermEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = None
        self.single_observation_space = _with_future(self.envs[0].observation_space, num_future)
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._tasks, self._episode = tasks, episode
        self._layout = self.envs[0].layout
        self._workers = Workers(num_workers)
        self._num_future = num_future

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode in every environment; number i is seeded with `seed + i`.

        Raises:
            ValueError: a sequence of seeds has another length than there are environments.
        """
        if seed is None or isinstance(seed, int):
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        else:
            seeds = list(seed)
        if len(seeds) != self.num_envs:
            msg = f"seed must have one entry for each of {self.num_envs} envs, got {len(seeds)}"
            raise ValueError(msg)
        for env, own in zip(self.envs, seeds, strict=True):
            gymnasium.Env.reset(env, seed=own, options=options)
        self._begin_episodes(self.envs)
        return self._observe(self.envs), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[Observation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Play one window in every environment.

        Raises:
            gymnasium.error.ResetNeeded: `reset` was not called.
        """
        steps = self.step_all(actions)
        infos: dict[str, Any] = {}
        for i, info in enumerate(steps.infos):
            if steps.is_last[i]:
                final = {"final_obs": steps.final_observations[i], "final_info": info}
                infos = self._add_info(infos, final, i)
                info = steps.reset_infos[i]
            infos = self._add_info(infos, info, i)
        is_terminated = np.zeros(self.num_envs, np.bool_)
        return steps.observation, steps.rewards, is_terminated, steps.is_last, infos

    def step_all(self, actions: NDArray[np.float32]) -> Steps:
        """Play one window in every environment and return what happened, one by one."""
        fleets = [_simulated(e.begin_step(a)) for e, a in zip(self.envs, actions, strict=True)]
        outcomes = advance_all(fleets, self._episode.window_s, self._workers)
        observation = self._observe(self.envs, num_ahead=1)
        ended = [i for i, env in enumerate(self.envs) if env.is_last_window]
        if ended:
            drain_all([fleets[i] for i in ended], self._workers)
        results = [e.end_step(outcome) for e, outcome in zip(self.envs, outcomes, strict=True)]
        final = {i: {key: rows[i].copy() for key, rows in observation.items()} for i in ended}
        if ended:
            envs = [self.envs[i] for i in ended]
            self._begin_episodes(envs)
            for key, rows in self._observe(envs).items():
                observation[key][ended] = rows
        return Steps(
            observation=observation,
            rewards=np.array([reward for reward, _, _ in results]),
            is_last=np.array([is_last for _, is_last, _ in results]),
            infos=[info for _, _, info in results],
            final_observations=final,
            reset_infos={i: {} for i in ended},
        )

    def _begin_episodes(self, envs: Sequence[ShortTermEnv]) -> None:
        for env, task in zip(envs, self._draw(envs), strict=True):
            _simulated(task.fleet)
            env.begin_episode(task)

    def _draw(self, envs: Sequence[ShortTermEnv]) -> list[Task]:
        window_s, num_windows = self._episode.window_s, self._episode.num_windows
        rngs, base = [env.np_random for env in envs], envs[0].base
        if isinstance(self._tasks, TwinnedTasks):
            return self._tasks.draw_many(
                rngs, base, window_s=window_s, num_windows=num_windows, workers=self._workers
            )
        return [
            self._tasks.draw(rng, base, window_s=window_s, num_windows=num_windows) for rng in rngs
        ]

    def _observe(self, envs: Sequence[ShortTermEnv], *, num_ahead: int = 0) -> Observation:
        """Return one row for each environment; `num_ahead` 1 where a window has just passed."""
        observation = observe_fleets(
            [_simulated(env.task.fleet) for env in envs],
            np.stack([env.last_action for env in envs]),
            self._layout,
        )
        if self._num_future > 0:
            rows = [_future(env.task)[env.window + num_ahead] for env in envs]
            observation[FUTURE] = np.stack(rows)
        return observation

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        self._workers.close()


def _with_future(
    space: gymnasium.Space[Observation], num_future: int
) -> gymnasium.Space[Observation]:
    if num_future == 0:
        return space
    assert isinstance(space, spaces.Dict), f"observation space is {space}"
    future = spaces.Box(-CLIP, CLIP, (num_future,), np.float32)
    return cast("gymnasium.Space[Observation]", spaces.Dict({**space.spaces, FUTURE: future}))


def _future(task: Task) -> NDArray[np.float32]:
    """Return what a task says is to come.

    Raises:
        ValueError: it does not say.
    """
    if task.future is None:
        msg = "num_future is above 0, but these tasks do not say what is to come; use SiteTasks"
        raise ValueError(msg)
    return task.future


def observe_fleets(
    fleets: Sequence[SimulatedFleet],
    last_actions: NDArray[np.float32],
    layout: ObservationLayout,
) -> Observation:
    """Return the observations of fleets, a row each; those of one cluster are read in one go.

    Shapes: `last_actions` [n, action size].
    """
    groups: dict[int, list[int]] = {}
    for i, fleet in enumerate(fleets):
        groups.setdefault(id(fleet.cluster), []).append(i)
    seen = []
    for rows in groups.values():
        batch = states_of([fleets[i] for i in rows])
        parents = (batch.gpu_replica, batch.gpu_server)
        seen.append(Seen(np.array(rows), batch.values, parents))
    return observe_groups(seen, last_actions, layout)


def _simulated(fleet: object) -> SimulatedFleet:
    """Return the fleet if it is a simulated one.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(fleet, SimulatedFleet):
        msg = (
            f"FleetVectorEnv steps simulated fleets, got a {type(fleet).__name__}; "
            "use one ShortTermEnv for a live fleet"
        )
        raise TypeError(msg)
    return fleet

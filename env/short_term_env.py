"""`trimtab/ShortTerm-v0`: the short-term scheduling problem as a Gymnasium environment.

Does not know: learning algorithms, or whether its fleet is simulated or live.
"""

from dataclasses import dataclass
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .fleet import Fleet, WindowOutcome
from .knobs import ANALYTIC_SCORER_KNOBS, Knobs, residual
from .observation import Observation, ObservationLayout, observation_space, observe
from .reward import ScenarioTasks, Task
from .scenario import Part, azure_scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeConfig:
    """Shape of an episode."""

    window_s: float = 2.0
    """Time between decisions."""
    num_windows: int = 30
    """Decisions in an episode."""

    def __post_init__(self) -> None:
        if self.window_s <= 0:
            msg = f"window_s must be above 0, got {self.window_s}"
            raise ValueError(msg)
        if self.num_windows < 1:
            msg = f"num_windows must be at least 1, got {self.num_windows}"
            raise ValueError(msg)


class TaskSource(Protocol):
    """Where episodes come from: a scenario in the simulator, or a live fleet."""

    def draw(
        self, rng: np.random.Generator, base: Knobs, *, window_s: float, num_windows: int
    ) -> Task:
        """Return the next episode to play."""
        ...


class ShortTermEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Steer the dispatch of a fleet of LLM replicas, one window at a time.

    ## Description
    A gateway places each request on a replica with the dispatch kernel, an analytic scorer with
    named knobs. Every window the agent moves the knobs and biases single replicas. Between two
    actions pass `window_s` seconds (2 by default) and some hundred requests. Replicas slow down
    and crash without notice; metrics are scraped and stale; output lengths are unknown.

    ## Action Space
    `Box(-1, 1, (tunable knobs + max_replicas,), float32)`. The first part moves each tunable knob
    from its base by its residual scale (a log factor for positive knobs, else a shift); the
    second adds a bias to each replica's score. Action 0 is the base setting itself.

    ## Observation Space
    A flat `Dict` of Boxes, scaled to about [-1, 1] and clipped to [-5, 5]; features and units
    stand in `trimtab.env.observation.OBSERVED`.

    | Key | Shape | Meaning |
    |---|---|---|
    | `replica`, `replica_mask` | [max_replicas x 12], [max_replicas] | service, memory, compute |
    | `gpu`, `gpu_mask` | [max_gpus x 5], [max_gpus] | compute and memory of each GPU |
    | `gpu_replica`, `gpu_server` | [max_gpus] | indices of the GPU's replica and server |
    | `server`, `server_mask` | [max_servers x 3], [max_servers] | links and power |
    | `tenant`, `tenant_mask` | [max_tenants x 7], [max_tenants] | arrivals, limits, lateness |
    | `fleet` | [3] | load, its change, availability |
    | `action` | [action size] | the last action |

    ## Rewards
    Weight of the requests that met both their limits in the window, minus the same of the base
    setting on the same arrivals, over the mean weight arriving in a window. The last step adds
    what open requests earn afterwards. `info["arrival_reward"]` of the last step holds the same
    total by the window of arrival, shape [num_windows].

    ## Starting State
    An empty fleet and a workload drawn at random from the training part of the trace.

    ## Episode End
    1. Truncation: after `num_windows` windows. Serving never terminates.

    ## Arguments
    | Name | Default | Meaning |
    |---|---|---|
    | `tasks` | Azure traffic on 16 mixed GPUs | where episodes come from |
    | `base` | analytic scorer with shedding | knobs at action 0 |
    | `episode` | 30 windows of 2 s | `EpisodeConfig` |
    | `layout` | 16 replicas, 16 GPUs, 4 servers, 2 tenants | padded sizes |

    ## Version History
    - v0: first version. A fleet may have a guard: the shield then stands between action and fleet,
      `info["outcome"]["guard"]` says what it did, and `info["knobs"]` are the knobs in force.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012, Gymnasium declares it so

    def __init__(
        self,
        *,
        tasks: TaskSource | None = None,
        base: Knobs | None = None,
        episode: EpisodeConfig | None = None,
        layout: ObservationLayout | None = None,
    ) -> None:
        self._episode = episode or EpisodeConfig()
        self._layout = layout or ObservationLayout()
        self._base = base or ANALYTIC_SCORER_KNOBS
        self._tasks = tasks or default_tasks(self._episode)
        space = observation_space(self._layout)
        self.observation_space = cast("spaces.Space[Observation]", space)
        self.action_space = spaces.Box(-1.0, 1.0, (self._layout.action_size,), np.float32)
        self._task: Task | None = None
        self._knobs = self._base
        self._window = 0
        self._earned = 0.0
        self._last_action = np.zeros(self._layout.action_size, np.float32)

    @property
    def base(self) -> Knobs:
        """The knobs that action 0 means."""
        return self._base

    @property
    def episode(self) -> EpisodeConfig:
        """Shape of an episode."""
        return self._episode

    @property
    def tasks(self) -> TaskSource:
        """Where episodes come from."""
        return self._tasks

    @property
    def last_action(self) -> NDArray[np.float32]:
        """What was done last; zeros at the start of an episode."""
        return self._last_action

    @property
    def layout(self) -> ObservationLayout:
        """Padded sizes of the observation."""
        return self._layout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new episode."""
        super().reset(seed=seed, options=options)
        self.begin_episode(
            self._tasks.draw(
                self.np_random,
                self._base,
                window_s=self._episode.window_s,
                num_windows=self._episode.num_windows,
            )
        )
        return observe(self.task.fleet.state(), self._last_action, self._layout), {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Set the knobs for one window and let it pass.

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
        """
        fleet = self.begin_step(action)
        outcome = fleet.advance(self._episode.window_s)
        observation = observe(fleet.state(), self._last_action, self._layout)
        if self.is_last_window:
            fleet.drain()
        reward, is_last, info = self.end_step(outcome)
        return observation, reward, False, is_last, info

    @property
    def task(self) -> Task:
        """The episode that is running.

        Raises:
            gymnasium.error.ResetNeeded: none is.
        """
        if self._task is None:
            msg = "no episode is running; call reset() before step()"
            raise gymnasium.error.ResetNeeded(msg)
        return self._task

    @property
    def window(self) -> int:
        """Number of the window in hand, or of the next one between two."""
        return self._window

    @property
    def is_last_window(self) -> bool:
        """Whether the window in hand is the episode's last."""
        return self._window == self._episode.num_windows - 1

    def begin_episode(self, task: Task) -> None:
        """Reset a task's fleet and make it the episode: the first half of `reset`."""
        self._task = task
        self._window, self._earned = 0, 0.0
        self._last_action = np.zeros(self._layout.action_size, np.float32)
        task.fleet.reset(seed=task.seed, knobs=self._base)

    def begin_step(self, action: NDArray[np.float32]) -> Fleet:
        """Set the knobs of a window; the fleet that is returned is to run for it.

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
        """
        fleet = self.task.fleet
        self._last_action = np.clip(action, -1.0, 1.0).astype(np.float32)
        asked = residual(self._base, self._last_action, len(fleet.cluster.replicas))
        self._knobs = fleet.apply(asked)
        return fleet

    def end_step(self, outcome: WindowOutcome) -> tuple[float, bool, dict[str, Any]]:
        """Return reward, whether the episode is over, and info; its fleet must be drained then."""
        task = self.task
        credit = outcome.credit - task.twin.resolved[self._window]
        # A plain copy; `asdict` would copy each number by itself.
        fields = {name: getattr(outcome, name) for name in WindowOutcome.__slots__}
        info: dict[str, Any] = {"outcome": fields, "knobs": self._knobs.values}
        if task.regimes is not None:
            info["regime"] = int(task.regimes[self._window])
        self._earned += outcome.credit
        is_last = self.is_last_window
        if is_last:
            credit += self._settle(task, info)
        self._window += 1
        return float(credit / task.twin.weight_per_window), is_last, info

    def _settle(self, task: Task, info: dict[str, Any]) -> float:
        """End the episode: return what open requests still earn, and note rewards by arrival."""
        num_windows = self._episode.num_windows
        by_arrival = task.fleet.credit_by_window(self._episode.window_s, num_windows)
        difference = by_arrival - task.twin.by_arrival[:num_windows]
        info["arrival_reward"] = difference / task.twin.weight_per_window
        self._task = None
        return float(by_arrival.sum() - self._earned - task.twin.resolved[num_windows])


def default_tasks(episode: EpisodeConfig) -> ScenarioTasks:
    """Return Azure traffic on 16 mixed GPUs."""
    span_s = episode.window_s * episode.num_windows
    return ScenarioTasks(azure_scenario(span_s=span_s), Part.TRAIN, num_workloads=32)

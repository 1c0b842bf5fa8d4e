"""Episodes of sites as tasks of the short-term environment, with what a critic may know.

Does not know: learning algorithms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..guard import Guard
from ..observation import CLIP
from ..reward import Task, TwinnedTasks, TwinOutcome
from ..simulated_fleet import SimulatedFleet
from .episode import Episode
from .regime import RegimeKind

_KINDS = tuple(RegimeKind)
# Stretches after the start of a window whose load is told, in windows: first and last.
_AHEAD = ((0, 1), (1, 4), (4, 15))
_TWIN_AHEAD = ((0, 1), (1, 5))
NUM_FUTURE = len(_AHEAD) + len(_TWIN_AHEAD) + len(_KINDS) + 1
"""Features of what is to come: load in three stretches, what the twin earns in two, the kind of
regime, and the time to the next one."""


@dataclass(slots=True)
class SiteTasks(TwinnedTasks):
    """Draws from episodes of sites; an episode's number is also the seed of its trouble.

    Raises:
        ValueError: there is no episode.
    """

    episodes: Sequence[Episode]
    make_guard: Callable[[], Guard] | None = None
    """Makes what stands between policy and fleet, the twin's too; None for nothing."""
    has_twin: bool = True
    """Whether rewards are less what the twin earned; off only to measure what that is worth."""
    _known: dict[tuple[int, bytes], NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.episodes:
            msg = "need at least 1 episode to draw from, got 0"
            raise ValueError(msg)

    @property
    def num_tasks(self) -> int:
        """Episodes to draw from."""
        return len(self.episodes)

    def seed(self, index: int) -> int:
        """Return the seed of an episode's trouble."""
        return self.episodes[index].number

    def fleet(self, index: int) -> SimulatedFleet:
        """Return a fleet of an episode's site."""
        guard = self.make_guard() if self.make_guard is not None else None
        return self.episodes[index].fleet(guard=guard)

    def task(self, index: int, twin: TwinOutcome) -> Task:
        """Return an episode as a task."""
        episode = self.episodes[index]
        num_windows = twin.by_arrival.size - 1
        window_s = episode.span_s / num_windows
        key = (index, twin.by_arrival.tobytes())
        if key not in self._known:
            self._known[key] = future_of(episode, twin, window_s)
        starts_s = window_s * np.arange(num_windows)
        kinds = np.array([_KINDS.index(regime.kind) for regime in episode.regimes])
        if not self.has_twin:
            nothing = np.zeros(num_windows + 1)
            twin = TwinOutcome(
                resolved=nothing, by_arrival=nothing, weight_per_window=twin.weight_per_window
            )
        return Task(
            fleet=self.fleet(index),
            seed=self.seed(index),
            twin=twin,
            regimes=kinds[episode.regime_at(starts_s)],
            future=self._known[key],
        )


def future_of(episode: Episode, twin: TwinOutcome, window_s: float) -> NDArray[np.float32]:
    """Return what is to come at the start of each window, [windows + 1, NUM_FUTURE]."""
    num_windows = twin.by_arrival.size - 1
    requests = episode.workload.requests
    windows = np.minimum(requests["arrival_s"] // window_s, num_windows - 1).astype(np.int64)
    tokens = _sums(windows, requests["query"]["input_tokens"], num_windows)
    weight = _sums(windows, requests["weight"], num_windows)
    features = np.zeros((num_windows + 1, NUM_FUTURE))
    for i in range(num_windows):
        loads = [_mean(tokens[i + a : i + b]) for a, b in _AHEAD]
        met = [_share(twin.by_arrival[:-1], weight, i + a, i + b) for a, b in _TWIN_AHEAD]
        place = int(episode.regime_at(np.array([window_s * i]))[0])
        regime = episode.regimes[place]
        kind = np.eye(len(_KINDS))[_KINDS.index(regime.kind)]
        left_s = min(60.0, regime.end_s - window_s * i) / 60.0
        features[i] = np.concatenate([np.log1p(loads / tokens.mean()), met, kind, [left_s]])
    return np.clip(features, -CLIP, CLIP).astype(np.float32)


def _sums(
    windows: NDArray[np.int64], values: NDArray[np.float64], num_windows: int
) -> NDArray[np.float64]:
    return np.bincount(windows, values, minlength=num_windows).astype(np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0


def _share(met: NDArray[np.float64], weight: NDArray[np.float64], first: int, end: int) -> float:
    """Return the share of the weight of some windows that was met; 1 where none came."""
    total = float(weight[first:end].sum())
    return float(met[first:end].sum()) / total if total > 0.0 else 1.0

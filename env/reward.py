"""The reward of the short-term policy: its goodput on a window's arrivals minus a twin's.

The twin is the base setting of the knobs on the same arrivals, faults and lost scrapes, so what
all policies share cancels. Credit goes to the window in which a request arrived, when its fate is
known; it is the metric itself, with no shaping.

Does not know: Gymnasium, or how knobs are chosen.
Source: input-dependent baselines (Mao et al. 2019); the project's prototype study on credit.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from .fleet import Fleet
from .guard import Guard
from .knobs import Knobs
from .scenario import Part, Scenario
from .simulated_fleet import SimulatedFleet, Workers, advance_all, drain_all
from .simulator.workload import Workload
from .state.feature import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinOutcome:
    """What the base setting earned on one workload.

    Shapes: both [windows + 1]; the last entry of `resolved` is what the drain brought.
    """

    resolved: FloatArray
    """Weight of requests that were met, by the window in which they finished."""
    by_arrival: FloatArray
    """The same by the window in which they arrived; last entry 0."""
    weight_per_window: float
    """Mean weight that arrives in a window: the unit of reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One episode to play: a fleet, the seed to reset it with, and its twin's outcome."""

    fleet: Fleet
    seed: int
    twin: TwinOutcome
    regimes: NDArray[np.int64] | None = None
    """Kind of regime in each window, [windows]; None where regimes have no kinds."""
    future: NDArray[np.float32] | None = None
    """What is still to come at the start of each window, for a critic in training alone,
    [windows + 1, features]."""


def run_twin(
    fleet: SimulatedFleet, base: Knobs, *, seed: int, window_s: float, num_windows: int
) -> TwinOutcome:
    """Play the base setting on a fleet's workload and return what it earned."""
    return run_twins([fleet], base, seeds=[seed], window_s=window_s, num_windows=num_windows)[0]


def run_twins(
    fleets: Sequence[SimulatedFleet],
    base: Knobs,
    *,
    seeds: Sequence[int],
    window_s: float,
    num_windows: int,
    workers: Workers | None = None,
) -> list[TwinOutcome]:
    """Play the base setting on the workloads of some fleets side by side."""
    for fleet, seed in zip(fleets, seeds, strict=True):
        fleet.reset(seed=seed, knobs=base)
    windows = [advance_all(fleets, window_s, workers) for _ in range(num_windows)]
    drain_all(fleets, workers)
    twins = []
    for fleet, outcomes in zip(fleets, zip(*windows, strict=True), strict=True):
        by_arrival = fleet.credit_by_window(window_s, num_windows)
        credits = [outcome.credit for outcome in outcomes]
        weight = sum(outcome.arrived_weight for outcome in outcomes) / num_windows
        twins.append(
            TwinOutcome(
                resolved=np.array([*credits, float(by_arrival.sum()) - sum(credits)]),
                by_arrival=np.append(by_arrival, 0.0),
                weight_per_window=max(weight, 1e-9),
            )
        )
    return twins


@dataclass(slots=True)
class TwinnedTasks(ABC):
    """Draws episodes from a fixed number of workloads; each is played by the twin once.

    Threads may draw at the same time.
    """

    _twins: dict[tuple[int, bytes, float, int], TwinOutcome] = field(
        default_factory=dict, init=False, repr=False
    )
    _locks: dict[int, Lock] = field(
        default_factory=lambda: defaultdict(Lock), init=False, repr=False
    )

    @property
    @abstractmethod
    def num_tasks(self) -> int:
        """Workloads to draw from."""

    @abstractmethod
    def fleet(self, index: int) -> SimulatedFleet:
        """Return a fleet of its own for a workload."""

    @abstractmethod
    def seed(self, index: int) -> int:
        """Return the seed of a workload's trouble."""

    def task(self, index: int, twin: TwinOutcome) -> Task:
        """Return an episode with a workload."""
        return Task(fleet=self.fleet(index), seed=self.seed(index), twin=twin)

    def draw(
        self, rng: np.random.Generator, base: Knobs, *, window_s: float, num_windows: int
    ) -> Task:
        """Return a random episode."""
        return self.draw_many([rng], base, window_s=window_s, num_windows=num_windows)[0]

    def draw_many(
        self,
        rngs: Sequence[np.random.Generator],
        base: Knobs,
        *,
        window_s: float,
        num_windows: int,
        workers: Workers | None = None,
    ) -> list[Task]:
        """Return a random episode of each generator; twins that are missing run side by side."""
        indices = [int(rng.integers(self.num_tasks)) for rng in rngs]
        span = (base.values.tobytes(), window_s, num_windows)
        with ExitStack() as held:
            for index in sorted(set(indices)):
                held.enter_context(self._locks[index])
            missing = [i for i in sorted(set(indices)) if (i, *span) not in self._twins]
            if missing:
                twins = run_twins(
                    [self.fleet(i) for i in missing],
                    base,
                    seeds=[self.seed(i) for i in missing],
                    window_s=window_s,
                    num_windows=num_windows,
                    workers=workers,
                )
                self._twins.update(
                    {(i, *span): twin for i, twin in zip(missing, twins, strict=True)}
                )
            return [self.task(i, self._twins[(i, *span)]) for i in indices]


@dataclass(slots=True)
class ScenarioTasks(TwinnedTasks):
    """Draws episodes from a scenario; workloads are made once and kept.

    The workload's index is also the seed of its trouble.
    """

    scenario: Scenario
    part: Part
    num_workloads: int
    make_guard: Callable[[], Guard] | None = None
    """Makes what stands between policy and fleet, the twin's too; None for nothing."""
    _workloads: dict[int, Workload] = field(default_factory=dict)

    @property
    def num_tasks(self) -> int:
        """Workloads to draw from."""
        return self.num_workloads

    def seed(self, index: int) -> int:
        """Return the seed of a workload's trouble."""
        return index

    def fleet(self, index: int) -> SimulatedFleet:
        """Return a fleet of the scenario with a workload."""
        if index not in self._workloads:
            self._workloads[index] = self.scenario.workload(self.part, index)
        guard = self.make_guard() if self.make_guard is not None else None
        scenario = self.scenario
        return SimulatedFleet(
            scenario.cluster, self._workloads[index], scenario.config, guard=guard
        )

"""The reward of the short-term policy: its goodput on a window's arrivals minus a twin's.

The twin is the base setting of the knobs on the same arrivals, faults and lost scrapes, so what
all policies share cancels. Credit goes to the window in which a request arrived, when its fate is
known; it is the metric itself, with no shaping.

Does not know: Gymnasium, or how knobs are chosen.
Source: input-dependent baselines (Mao et al. 2019); the project's prototype study on credit.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

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
class ScenarioTasks:
    """Draws episodes from a scenario; workloads and their twins are made once and kept.

    Threads may draw at the same time.
    """

    scenario: Scenario
    part: Part
    num_workloads: int
    make_guard: Callable[[], Guard] | None = None
    """Makes what stands between policy and fleet, the twin's too; None for nothing."""
    _workloads: dict[int, Workload] = field(default_factory=dict)
    _twins: dict[tuple[int, bytes, float, int], TwinOutcome] = field(default_factory=dict)
    _locks: dict[int, Lock] = field(default_factory=lambda: defaultdict(Lock))

    def draw(
        self, rng: np.random.Generator, base: Knobs, *, window_s: float, num_windows: int
    ) -> Task:
        """Return a random episode; the workload's index is also the seed of its trouble."""
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
        indices = [int(rng.integers(self.num_workloads)) for rng in rngs]
        span = (base.values.tobytes(), window_s, num_windows)
        with ExitStack() as held:
            for index in sorted(set(indices)):
                held.enter_context(self._locks[index])
            missing = [i for i in sorted(set(indices)) if (i, *span) not in self._twins]
            if missing:
                twins = run_twins(
                    [self._fleet(i) for i in missing],
                    base,
                    seeds=missing,
                    window_s=window_s,
                    num_windows=num_windows,
                    workers=workers,
                )
                self._twins.update(
                    {(i, *span): twin for i, twin in zip(missing, twins, strict=True)}
                )
            return [
                Task(fleet=self._fleet(i), seed=i, twin=self._twins[(i, *span)]) for i in indices
            ]

    def _fleet(self, index: int) -> SimulatedFleet:
        if index not in self._workloads:
            self._workloads[index] = self.scenario.workload(self.part, index)
        guard = self.make_guard() if self.make_guard is not None else None
        scenario = self.scenario
        return SimulatedFleet(
            scenario.cluster, self._workloads[index], scenario.config, guard=guard
        )

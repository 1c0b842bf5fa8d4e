"""The reward of the short-term policy: its goodput on a window's arrivals minus a twin's.

The twin is the base setting of the knobs on the same arrivals, faults and lost scrapes, so what
all policies share cancels. Credit goes to the window in which a request arrived, when its fate is
known; it is the metric itself, with no shaping.

Does not know: Gymnasium, or how knobs are chosen.
Source: input-dependent baselines (Mao et al. 2019); the project's prototype study on credit.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from .fleet import Fleet
from .knobs import Knobs
from .scenario import Part, Scenario
from .simulated_fleet import SimulatedFleet
from .simulator.workload import Workload
from .state import FloatArray


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
    fleet.reset(seed=seed, knobs=base)
    outcomes = [fleet.advance(window_s) for _ in range(num_windows)]
    before = sum(outcome.credit for outcome in outcomes)
    by_arrival = settled_credit(fleet, window_s, num_windows)
    resolved = [outcome.credit for outcome in outcomes] + [float(by_arrival.sum()) - before]
    weight = sum(outcome.arrived_weight for outcome in outcomes) / num_windows
    return TwinOutcome(
        resolved=np.array(resolved),
        by_arrival=np.append(by_arrival, 0.0),
        weight_per_window=max(weight, 1e-9),
    )


def settled_credit(fleet: Fleet, window_s: float, num_windows: int) -> FloatArray:
    """Let open requests end and return the credit of the windows by arrival; [num_windows]."""
    fleet.drain()
    return fleet.credit_by_window(window_s, num_windows)


@dataclass(slots=True)
class ScenarioTasks:
    """Draws episodes from a scenario; workloads and their twins are made once and kept.

    Threads may draw at the same time.
    """

    scenario: Scenario
    part: Part
    num_workloads: int
    _workloads: dict[int, Workload] = field(default_factory=dict)
    _twins: dict[tuple[int, bytes, float, int], TwinOutcome] = field(default_factory=dict)
    _locks: dict[int, Lock] = field(default_factory=lambda: defaultdict(Lock))

    def draw(
        self, rng: np.random.Generator, base: Knobs, *, window_s: float, num_windows: int
    ) -> Task:
        """Return a random episode; the workload's index is also the seed of its trouble."""
        index = int(rng.integers(self.num_workloads))
        with self._locks[index]:
            return self._task(index, base, window_s, num_windows)

    def _task(self, index: int, base: Knobs, window_s: float, num_windows: int) -> Task:
        if index not in self._workloads:
            self._workloads[index] = self.scenario.workload(self.part, index)
        fleet = SimulatedFleet(self.scenario.cluster, self._workloads[index], self.scenario.config)
        key = (index, base.values.tobytes(), window_s, num_windows)
        if key not in self._twins:
            self._twins[key] = run_twin(
                fleet, base, seed=index, window_s=window_s, num_windows=num_windows
            )
        return Task(fleet=fleet, seed=index, twin=self._twins[key])

"""The fleet as every controller sees it: one protocol for the simulator and the live runtime.

Does not know: Gymnasium, policies, or how a fleet is implemented.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .cluster import ClusterSpec
from .guard import UNGUARDED, GuardReport
from .knobs import Knobs
from .state.cluster_state import ClusterState


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOutcome:
    """What happened in one window. Counts are of events inside it."""

    start_s: float
    end_s: float
    num_arrived: int
    num_finished: int
    num_shed: int
    num_failed: int
    arrived_weight: float
    """Summed weight of the requests that arrived."""
    credit: float
    """Summed weight of the requests that finished in the window within both limits."""
    energy_j: float
    guard: GuardReport = UNGUARDED
    """What the guard between policy and fleet did; nothing where there is none."""


class Fleet(Protocol):
    """A fleet of LLM replicas behind one gateway."""

    @property
    def cluster(self) -> ClusterSpec:
        """What the fleet is made of."""
        ...

    def reset(self, *, seed: int, knobs: Knobs | None = None) -> ClusterState:
        """Begin anew under some knobs and return the first state; a seed fixes the run."""
        ...

    def apply(self, knobs: Knobs) -> Knobs:
        """Set the knobs from here on; return those in force, which a guard may have changed."""
        ...

    def advance(self, span_s: float) -> WindowOutcome:
        """Let some time pass and return what happened in it."""
        ...

    def drain(self) -> None:
        """Wait until the requests that are open have ended, or a time limit is reached."""
        ...

    def state(self) -> ClusterState:
        """Return what can be seen at this moment."""
        ...

    def credit_by_window(self, window_s: float, num_windows: int) -> np.ndarray:
        """Return the weight of met requests by the window in which they arrived."""
        ...

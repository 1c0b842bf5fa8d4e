"""Episodes of `trimtab/ShortTerm-v0` on a live fleet.

In the simulator a twin plays the base setting on the very arrivals of the episode. Live, nobody
knows the arrivals beforehand and they come only once, so the twin here is measured: the base
setting rules for some windows before the episode, and their mean is what a window is held against.
It takes the mean level of traffic out of the reward, not its ups and downs, so a reward says
little by itself and a mean over many episodes says what the policy is worth. With no windows of
measurement the twin is 0, and the reward is credit alone.

Does not know: Gymnasium, or how a policy learns. To compare policies, see `live_evaluation.py`.
"""

from dataclasses import dataclass

import numpy as np

from ...env.knobs import Knobs
from ...env.reward import Task, TwinOutcome
from .live_fleet import LiveFleet


@dataclass(slots=True)
class LiveTasks:
    """A `TaskSource` over a live fleet. Every draw plays on the same fleet.

    Raises:
        ValueError: the number of windows is below 0, or the weight not above 0.
    """

    fleet: LiveFleet
    num_base_windows: int = 10
    """Windows under the base setting before each episode; 0 for none."""
    weight_per_window: float = 1.0
    """Unit of reward where no weight was measured."""

    def __post_init__(self) -> None:
        if self.num_base_windows < 0:
            msg = f"num_base_windows must be at least 0, got {self.num_base_windows}"
            raise ValueError(msg)
        if not self.weight_per_window > 0.0:
            msg = f"weight_per_window must be above 0, got {self.weight_per_window}"
            raise ValueError(msg)

    def draw(
        self, rng: np.random.Generator, base: Knobs, *, window_s: float, num_windows: int
    ) -> Task:
        """Measure the base setting and return an episode; its seed changes nothing."""
        credit, weight = self._measure(base, window_s)
        by_window = np.full(num_windows + 1, credit)
        # Nothing is held against what the drain brings.
        by_window[-1] = 0.0
        twin = TwinOutcome(
            resolved=by_window, by_arrival=by_window.copy(), weight_per_window=weight
        )
        return Task(fleet=self.fleet, seed=0, twin=twin)

    def _measure(self, base: Knobs, window_s: float) -> tuple[float, float]:
        """Return credit and weight of a window under the base setting."""
        if self.num_base_windows == 0:
            return 0.0, self.weight_per_window
        self.fleet.reset(seed=0, knobs=base)
        windows = [self.fleet.advance(window_s) for _ in range(self.num_base_windows)]
        weight = float(np.mean([window.arrived_weight for window in windows]))
        credit = float(np.mean([window.credit for window in windows]))
        return credit, weight if weight > 0.0 else self.weight_per_window

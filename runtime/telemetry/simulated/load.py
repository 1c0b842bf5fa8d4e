"""How busy each replica of a simulated fleet is: days, bursts and steps.

Does not know: what a busy replica reports (`signals.py`).
"""

from dataclasses import dataclass

import numpy as np

from ....env.state.feature import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """How the load of a fleet moves; shares of what a replica can bear."""

    mean_frac: float = 0.5
    """In the middle of the day's swing."""
    swing_frac: float = 0.25
    """Of the day, up and down."""
    day_s: float = 86_400.0
    """Length of a day; a short one shows more of it in a test."""
    bursts_per_hour: float = 12.0
    """Of each server."""
    burst_frac: float = 0.35
    """Added while a burst lasts."""
    burst_s: float = 8.0
    """Mean length of a burst."""
    steps_per_hour: float = 6.0
    """Of each server: a change that stays."""
    step_frac: float = 0.2
    """Standard deviation of a step."""


class SimulatedLoad:
    """Load of every replica, moment by moment.

    Shapes: S servers, R replicas a server.
    """

    def __init__(
        self, shape: tuple[int, int], rng: np.random.Generator, load: LoadShape | None = None
    ) -> None:
        self._shape = load or LoadShape()
        self._rng = rng
        num_servers = shape[0]
        self._phase = rng.uniform(0.0, 0.2, num_servers)
        self._level = rng.normal(0.0, 0.1, num_servers)
        self._bias = rng.normal(0.0, 0.05, shape)
        self._is_burst = np.zeros(num_servers, dtype=np.bool_)

    def at(self, at_s: float, passed_s: float) -> FloatArray:
        """Return the load of each replica, [S, R] in [0, 1], and move on by a span."""
        shape, rng = self._shape, self._rng
        draws = rng.random((3, len(self._level)))
        begins = draws[0] < shape.bursts_per_hour / 3600.0 * passed_s
        ends = draws[1] < passed_s / shape.burst_s
        self._is_burst = np.where(self._is_burst, ~ends, begins)
        steps = draws[2] < shape.steps_per_hour / 3600.0 * passed_s
        if steps.any():
            self._level[steps] = rng.normal(0.0, shape.step_frac, int(steps.sum()))
        day = shape.mean_frac + shape.swing_frac * np.sin(
            2.0 * np.pi * (at_s / shape.day_s + self._phase)
        )
        servers = day + self._level + shape.burst_frac * self._is_burst
        return np.clip(servers[:, None] + self._bias, 0.02, 0.98)

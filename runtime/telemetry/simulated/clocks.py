"""What the clocks of simulated probes show: each is off, and runs a little fast or slow.

Does not know: how an aggregator finds out (`clock.py`).
"""

from dataclasses import dataclass

import numpy as np

from ....env.state.feature import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockShape:
    """How far clocks may be off."""

    max_offset_s: float = 0.5
    """Either way, at the start."""
    max_drift: float = 100e-6
    """Seconds gained or lost a second; 100 ppm is a poor quartz."""


class SimulatedClocks:
    """One clock for each probe. `true_s` is hub time."""

    def __init__(
        self, num_probes: int, rng: np.random.Generator, clocks: ClockShape | None = None
    ) -> None:
        shape = clocks or ClockShape()
        self.offsets_s = rng.uniform(-shape.max_offset_s, shape.max_offset_s, num_probes)
        self.drifts = rng.uniform(-shape.max_drift, shape.max_drift, num_probes)

    def offset_s(self, true_s: float | FloatArray) -> FloatArray:
        """Return by how much each clock is ahead of hub time, [probes]."""
        offset: FloatArray = self.offsets_s + self.drifts * true_s
        return offset

    def shown_s(self, probe: int, true_s: float) -> float:
        """Return what a probe's clock shows."""
        return float(true_s + self.offsets_s[probe] + self.drifts[probe] * true_s)

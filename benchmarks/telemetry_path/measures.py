"""What is measured of a run: ages against the true moments of sampling, errors of clocks.

Does not know: how frames travelled.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from trimtab.runtime.telemetry.simulated_probes import SimulatedProbes


class CpuMeter:
    """CPU time of this thread, by part."""

    def __init__(self) -> None:
        self.by_part_s: dict[str, float] = {}
        self._started_s = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what runs inside to a part."""
        started_s = time.thread_time()
        yield
        passed_s = time.thread_time() - started_s
        self.by_part_s[name] = self.by_part_s.get(name, 0.0) + passed_s

    def finish(self) -> dict[str, float]:
        """Return the parts, with what this process took besides as `other`."""
        total_s = time.process_time() - self._started_s
        return self.by_part_s | {"other": total_s - sum(self.by_part_s.values())}


class AgeMeter:
    """Ages of signals when a state first shows them, by the true moments of sampling."""

    def __init__(self, probes: SimulatedProbes, is_measured: NDArray[np.bool_]) -> None:
        self._phases_s = probes.phases_s
        self._period_s = probes.shape.period_s
        self._is_measured = is_measured
        self._newest = np.full(len(self._phases_s), -1, dtype=np.int64)
        self._ages_s: list[NDArray[np.float64]] = []
        self.most_error_s = 0.0
        """Most by which a state's ages were off."""

    def round_shown(self, now_s: float, age_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return which round of samples a state shows of each server; -1 if none."""
        sampled_s = now_s - age_s
        rounds = np.round((sampled_s - self._phases_s) / self._period_s)
        return np.where(np.isfinite(rounds), rounds, -1).astype(np.int64)

    def add(self, now_s: float, age_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Take the ages of a state's servers; return the rounds that it shows."""
        rounds = self.round_shown(now_s, age_s)
        true_s = now_s - self._phases_s - rounds * self._period_s
        error_s = np.abs(age_s - true_s)[self._is_measured & (rounds >= 0)]
        self.most_error_s = max(self.most_error_s, float(error_s.max(initial=0.0)))
        # What is shown of a server at first may have been fresh long before.
        is_new = self._is_measured & (rounds > self._newest) & (self._newest >= 0)
        self._ages_s.append(true_s[is_new])
        self._newest = np.maximum(self._newest, rounds)
        return rounds

    def quantiles_s(self, *quantiles: float) -> list[float]:
        """Return quantiles of the ages."""
        ages_s = np.concatenate(self._ages_s)
        return [float(q) for q in np.quantile(ages_s, quantiles)]

"""The gate: whether a learned part may act, from paired goodput on unseen workloads.

It may if the lower bound of its mean gain over its base is above 0, over at least 30 workloads, and
no kind of regime loses more than 1 point on average. The bound is of workloads resampled within
sites and sites among each other, where there are several, so that many workloads of one lucky site
do not count as many.

A regime that few workloads met is judged by its mean like any other: chance may so refuse what is
good, but lets nothing through that would not pass with more.

Does not know: how goodput was measured, or what the part is.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .evaluation import Interval

LEAST_WORKLOADS = 30
"""Fewer say too little."""
MOST_REGIME_LOSS = 0.01
"""Mean loss of goodput share in a kind of regime beyond which a part is refused."""
_NUM_RESAMPLES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRun:
    """One unseen workload under a candidate and under its base."""

    site: str
    """Site or scenario that the workload is of."""
    candidate: float
    """Goodput share."""
    base: float
    regimes: Mapping[str, tuple[float, float]]
    """Goodput shares of candidate and base by kind of regime; one kind at a steady site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a part may act, with the figures that say so."""

    may_act: bool
    reasons: tuple[str, ...]
    """What it failed at, in words; empty if it may act."""
    num_workloads: int
    num_sites: int
    gain: Interval
    """Mean gain of goodput share over the base."""
    regime_gains: dict[str, float]
    """Mean gain in each kind of regime."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The verdict in words, with its figures."""
        gain = (
            f"{100 * self.gain.mean:+.2f} points "
            f"[{100 * self.gain.low:+.2f}, {100 * self.gain.high:+.2f}] over "
            f"{self.num_workloads} workloads of {self.num_sites} sites"
        )
        return f"passed: {gain}" if self.may_act else f"refused: {'; '.join(self.reasons)} ({gain})"


def judge(runs: Sequence[PairedRun], *, seed: int = 0) -> Verdict:
    """Return the gate's verdict.

    Raises:
        ValueError: there is no run, or a share is not in [0, 1].
    """
    if not runs:
        msg = f"the gate needs at least {LEAST_WORKLOADS} paired runs, got 0; evaluate first"
        raise ValueError(msg)
    for run in runs:
        if not (0.0 <= run.candidate <= 1.0 and 0.0 <= run.base <= 1.0):
            msg = f"goodput must be in [0, 1], got {run.candidate} and {run.base} at {run.site}"
            raise ValueError(msg)
    by_site: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        by_site[run.site].append(run.candidate - run.base)
    gain = site_interval([by_site[site] for site in sorted(by_site)], seed=seed)
    regimes = _regime_gains(runs)
    reasons = _reasons(len(runs), gain, regimes)
    return Verdict(
        may_act=not reasons,
        reasons=tuple(reasons),
        num_workloads=len(runs),
        num_sites=len(by_site),
        gain=gain,
        regime_gains=regimes,
    )


def _reasons(num_workloads: int, gain: Interval, regimes: Mapping[str, float]) -> list[str]:
    """Return what a part fails at."""
    reasons = []
    if num_workloads < LEAST_WORKLOADS:
        reasons.append(f"{num_workloads} workloads are fewer than {LEAST_WORKLOADS}")
    if gain.low <= 0.0:
        reasons.append(f"the gain's lower bound is {100 * gain.low:+.2f} points, not above 0")
    for kind, mean in regimes.items():
        if mean < -MOST_REGIME_LOSS:
            reasons.append(f"regime '{kind}' loses {-100 * mean:.2f} points, more than 1")
    return reasons


def _regime_gains(runs: Sequence[PairedRun]) -> dict[str, float]:
    gains: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for kind, (candidate, base) in run.regimes.items():
            gains[kind].append(candidate - base)
    return {kind: float(np.mean(values)) for kind, values in sorted(gains.items())}


def site_interval(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """Return mean and 95 % interval of values in groups.

    Of several groups, groups are resampled and then their values; of one, its values.

    Raises:
        ValueError: there is no group, or an empty one.
    """
    if not groups or not all(groups):
        msg = f"cannot resample groups of {[len(group) for group in groups]} values"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    # Sorted, so that the order of the runs does not matter.
    arrays = [np.sort(np.asarray(group, float)) for group in groups]
    sizes = np.array([array.size for array in arrays])
    sums = np.stack(
        [
            array[rng.integers(array.size, size=(_NUM_RESAMPLES, array.size))].sum(axis=1)
            for array in arrays
        ]
    )  # [groups, resamples]
    chosen = rng.integers(len(arrays), size=(len(arrays), _NUM_RESAMPLES))
    resample = np.arange(_NUM_RESAMPLES)
    totals = sums[chosen, resample].sum(axis=0) / sizes[chosen].sum(axis=0)
    low, high = np.percentile(totals, [2.5, 97.5])
    mean = float(np.concatenate(arrays).mean())
    return Interval(mean, float(low), float(high))

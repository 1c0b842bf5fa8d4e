"""Regret: how much better another setting of the knobs is estimated to do than the one in force.

Does not know: how an outcome is estimated (`shadow.py`), or what follows from a regret.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Sums over the sampled requests that a regret is made from.
_SUMS = ("num_sampled", "weight", "weight_2", "difference", "difference_2", "squared_2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """Difference of two settings on the same requests, shadow minus ruling.

    Both are weighted shares of requests that are expected to meet their limits, so `mean` is in
    [-1, 1], and positive where the shadow does better. It is 0 where nothing was sampled.
    """

    num_sampled: int
    mean: float
    std_error: float
    """Standard error of the mean as if requests were independent; neighbours in time are not."""

    def flipped(self) -> "Regret":
        """Return the same seen from the shadow: ruling minus shadow."""
        return Regret(num_sampled=self.num_sampled, mean=-self.mean, std_error=self.std_error)

    def lower_bound(self, num_sigmas: float) -> float:
        """Return what the mean is hardly below; minus infinity where nothing was sampled.

        The second part keeps a few requests that agree by chance from being taken for certain.
        """
        if self.num_sampled == 0:
            return -float("inf")
        return self.mean - num_sigmas * self.std_error - num_sigmas**2 / self.num_sampled


NO_REGRET = Regret(num_sampled=0, mean=0.0, std_error=0.0)
"""Nothing was sampled."""


def pooled(regrets: Iterable[Regret]) -> Regret:
    """Return the regret over several windows, each by its number of samples."""
    sampled = [regret for regret in regrets if regret.num_sampled > 0]
    total = sum(regret.num_sampled for regret in sampled)
    if total == 0:
        return NO_REGRET
    variance = sum((regret.num_sampled * regret.std_error) ** 2 for regret in sampled) / total**2
    return Regret(
        num_sampled=total,
        mean=sum(regret.num_sampled * regret.mean for regret in sampled) / total,
        std_error=variance**0.5,
    )


def regret_of(sums: np.ndarray) -> Regret:
    """Return the regret of sums that `shadow.add_difference` made, and empty them; shape [1]."""
    values = sums[0].copy()
    for name in _SUMS:
        sums[name] = 0
    if not values["weight"] > 0.0:
        return NO_REGRET
    mean = values["difference"] / values["weight"]
    spread = (
        values["squared_2"] - 2.0 * mean * values["difference_2"] + mean**2 * values["weight_2"]
    )
    return Regret(
        num_sampled=int(values["num_sampled"]),
        mean=float(np.clip(mean, -1.0, 1.0)),
        std_error=float(np.sqrt(max(spread, 0.0)) / values["weight"]),
    )

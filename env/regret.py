"""Regret: how much better another setting of the knobs is estimated to do than the one in force.

Does not know: how an outcome is estimated (`shadow.py`), or what follows from a regret.
"""

from collections.abc import Iterable
from dataclasses import dataclass


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

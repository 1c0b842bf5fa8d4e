"""The trip-wire: trips when a policy is estimated to do worse than its fallback for some windows.

It goes by the regret pooled over the last k windows in which any was measured. It trips when that
mean is over the limit, or sooner, when it is over it beyond doubt. It is released only after the
mean has stayed under a lower limit for some windows, so one near the limit does not swing.

A regret is foretold from the present: where a fleet is overloaded, a policy that refuses requests
to spare those to come is blamed for it, so the fallback should be a scheduler that refuses too.

Does not know: how regret is estimated (`env/shadow.py`), or which knobs rule (`fallback.py`).
Source: AWARE (Qiu et al., USENIX ATC 2023) falls back to a heuristic when the reward stays low.
"""

from collections import deque
from dataclasses import dataclass

from ...env.regret import Regret, pooled


@dataclass(frozen=True, slots=True, kw_only=True)
class TripWireConfig:
    """When it trips and when it is released.

    Raises:
        ValueError: a number makes no sense.
    """

    limit: float = 0.05
    """Regret, as a share of the weight of requests, above which it trips."""
    windows: int = 5
    """Windows that are pooled."""
    release_frac: float = 0.5
    """Share of the limit at or under which a window counts towards the release."""
    num_sigmas: float = 3.0
    """Standard errors of the mean that leave no doubt."""

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            msg = f"regret limit must be in (0, 1], got {self.limit}"
            raise ValueError(msg)
        if self.windows < 1:
            msg = f"windows must be at least 1, got {self.windows}"
            raise ValueError(msg)
        if not 0 <= self.release_frac <= 1:
            msg = f"release_frac must be in [0, 1], got {self.release_frac}"
            raise ValueError(msg)
        if not self.num_sigmas > 0:
            msg = f"num_sigmas must be above 0, got {self.num_sigmas}"
            raise ValueError(msg)


class TripWire:
    """One policy's trip-wire."""

    def __init__(self, config: TripWireConfig | None = None) -> None:
        self.config = config or TripWireConfig()
        self._last: deque[Regret] = deque(maxlen=self.config.windows)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._last.clear()
        self._num_calm = 0
        self.is_tripped = False

    @property
    def regret(self) -> Regret:
        """What it goes by: the regret over the last windows."""
        return pooled(self._last)

    @property
    def is_calm(self) -> bool:
        """Whether it is tripped, and the windows of late count towards its release."""
        return self._num_calm > 0

    def step(self, regret: Regret | None, *, release_windows: int) -> bool:
        """Take in the regret of a window, policy below fallback, and return whether it is tripped.

        A window without a sample, or with a mean that is no number, says nothing. `release_windows`
        is how many calm windows in a row release a wire that is tripped.
        """
        if regret is None or regret.num_sampled == 0 or not -1.0 <= regret.mean <= 1.0:
            return self.is_tripped
        self._last.append(regret)
        if not self.is_tripped:
            if self._is_over():
                self.is_tripped = True
                self._last.clear()
                self._num_calm = 0
            return self.is_tripped
        is_calm = self.regret.mean <= self.config.release_frac * self.config.limit
        self._num_calm = self._num_calm + 1 if is_calm else 0
        if self._num_calm >= release_windows:
            self.reset()
        return self.is_tripped

    def _is_over(self) -> bool:
        over = self.regret
        has_all = len(self._last) == self.config.windows
        least = over.mean if has_all else over.lower_bound(self.config.num_sigmas)
        return least > self.config.limit

"""What a replica's metrics page says, as the dispatcher takes it.

Does not know: how pages are fetched or read.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPage:
    """What the newest metrics page of a replica says; None where it says nothing."""

    running_requests: float | None = None
    waiting_requests: float | None = None
    kv_usage_frac: float | None = None
    cached_frac: float | None = None
    iteration_log_ratio: float | None = None
    """Logarithm of measured over nominal iteration time since the page before."""
    prefill_frac: float | None = None
    """Share of the time since the page before that went into prefill."""

    def numbers(self) -> tuple[float, ...]:
        """Return all in the order that the kernel takes, NaN for None."""
        values = (
            self.running_requests, self.waiting_requests, self.kv_usage_frac, self.cached_frac,
            self.iteration_log_ratio, self.prefill_frac,
        )  # fmt: skip
        return tuple(np.nan if value is None else float(value) for value in values)

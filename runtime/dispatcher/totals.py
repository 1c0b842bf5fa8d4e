"""What a dispatcher has counted since its start, by class of requests.

Does not know: windows (whoever asks takes differences), or single requests.
"""

from dataclasses import dataclass, field

from ...env.shed_reason import ShedReason
from .live_arrays import NUM_CLASSES


def _per_class() -> list[float]:
    return [0.0] * NUM_CLASSES


@dataclass(slots=True)
class DispatchTotals:
    """Counters; they only grow. Lists are by class, interactive first."""

    num_arrived: int = 0
    num_placed: int = 0
    """Requests that have a replica, each once."""
    num_retried: int = 0
    """Placements beyond the first."""
    num_finished: int = 0
    num_failed: int = 0
    """Broken off, timed out, or left without a replica after a first one."""
    num_aborted: int = 0
    """Given up by their client."""
    num_refused: int = 0
    """Refused by an engine as wrong."""
    num_shed: int = 0
    arrived_weight: float = 0.0
    credit: float = 0.0
    """Weight of the finished ones that met both limits."""
    output_tokens: int = 0
    shed_by_reason: dict[ShedReason, int] = field(
        default_factory=lambda: dict.fromkeys(ShedReason, 0)
    )
    arrived: list[float] = field(default_factory=_per_class)
    input_tokens: list[float] = field(default_factory=_per_class)
    ttft_limit_s: list[float] = field(default_factory=_per_class)
    """Sums of the limits of those that arrived."""
    tpot_limit_s: list[float] = field(default_factory=_per_class)
    shed: list[float] = field(default_factory=_per_class)
    finished: list[float] = field(default_factory=_per_class)
    late: list[float] = field(default_factory=_per_class)
    """Finished beyond one of their limits."""
    met: list[float] = field(default_factory=_per_class)
    window_at_s: float = -float("inf")
    """Of first tokens, only those of streams that arrived since this moment are counted."""
    first_tokens: list[float] = field(default_factory=_per_class)
    late_first_tokens: list[float] = field(default_factory=_per_class)
    """Beyond the limit on TTFT."""

    @property
    def num_open(self) -> int:
        """Requests that are at a replica."""
        ended = self.num_finished + self.num_failed + self.num_aborted + self.num_refused
        return self.num_placed - ended

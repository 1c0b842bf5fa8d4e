"""Time to first token and time per later token of live requests, in buckets by class and tenant.

Does not know: Prometheus (`metrics_text.py`).
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from ..dispatcher.request import Ending, Placement, Refusal, RequestEnd, RequestFacts

TTFT_BOUNDS_S = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
)  # fmt: skip
TPOT_BOUNDS_S = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
"""Upper bounds of the buckets, s: vLLM's own, without the ones that nobody reaches."""
CLASS_NAMES = ("interactive", "batch")
# Tenants that are told apart; of more, the rest are one, so that headers cannot fill the memory.
_MAX_TENANTS = 64
OTHER_TENANTS = "others"


@dataclass(slots=True)
class Histogram:
    """Counts by bucket, the last without a bound, and the sum of all values."""

    bounds_s: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds_s) + 1)

    def add(self, value_s: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds_s, value_s)] += 1
        self.sum_s += value_s


class LatencyHistograms:
    """A `DispatchListener` that keeps histograms by tenant and class."""

    def __init__(self) -> None:
        self.ttft: dict[tuple[str, str], Histogram] = {}
        self.tpot: dict[tuple[str, str], Histogram] = {}
        self._tenants: set[str] = set()

    def on_placed(self, placement: Placement) -> None:
        """Nothing is known yet."""

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """There is no latency."""

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """Count a whole answer that streamed; of others nothing is seen before their end."""
        facts = placement.facts
        if end.ending is not Ending.FINISHED or not facts.is_stream:
            return
        first_at_s = placement.first_token_at_s
        if first_at_s != first_at_s:
            return
        key = (self._name(facts.tenant), CLASS_NAMES[facts.priority])
        self._of(self.ttft, key, TTFT_BOUNDS_S).add(first_at_s - facts.arrived_at_s)
        if end.output_tokens > 1:
            span_s = end.ended_at_s - first_at_s
            self._of(self.tpot, key, TPOT_BOUNDS_S).add(span_s / (end.output_tokens - 1))

    def _name(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) >= _MAX_TENANTS:
            return OTHER_TENANTS
        self._tenants.add(tenant)
        return tenant

    @staticmethod
    def _of(
        found: dict[tuple[str, str], Histogram], key: tuple[str, str], bounds_s: tuple[float, ...]
    ) -> Histogram:
        histogram = found.get(key)
        if histogram is None:
            histogram = found[key] = Histogram(bounds_s)
        return histogram

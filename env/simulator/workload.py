"""A workload: one trace made ready for the simulator, as a request table and dense block ids.

Does not know: the fleet that it will run on.
"""

from dataclasses import dataclass

import numpy as np

from ...traces.hashing import mix_all
from ...traces.schema import RequestTrace
from .layout import NONE, NUM_PRIORITIES, PENDING, REQUEST_DTYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevels:
    """Limits for requests that carry none of their own, and what a met request is worth.

    Each tuple has one value per priority: 0 interactive, 1 batch.
    """

    ttft_slo_s: tuple[float, ...] = (0.5, 2.0)
    """Time to first token."""
    tpot_slo_s: tuple[float, ...] = (0.05, 0.1)
    """Time per output token after the first."""
    weights: tuple[float, ...] = (2.0, 1.0)
    """Worth of a request that meets both limits, in weighted goodput."""

    def __post_init__(self) -> None:
        for name in ("ttft_slo_s", "tpot_slo_s", "weights"):
            values = getattr(self, name)
            if len(values) != NUM_PRIORITIES or min(values) <= 0:
                msg = f"{name} must be {NUM_PRIORITIES} positive numbers, got {values}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in order of arrival, and their prompt blocks by dense id.

    Shapes: `requests` REQUEST_DTYPE [N], `blocks` int32 [sum of num_blocks], ids by first use.
    """

    name: str
    requests: np.ndarray
    blocks: np.ndarray
    num_distinct_blocks: int
    block_tokens: int

    @property
    def span_s(self) -> float:
        """Time from 0 to the last arrival."""
        return float(self.requests["arrival_s"][-1]) if self.requests.size else 0.0

    @property
    def mean_rate_rps(self) -> float:
        """Requests per second over the span."""
        return self.requests.size / self.span_s if self.span_s > 0 else 0.0


def compile_workload(
    trace: RequestTrace, *, name: str, levels: ServiceLevels | None = None
) -> Workload:
    """Turn a trace into a workload; requests without limits get those of their priority."""
    levels = levels or ServiceLevels()
    requests = np.zeros(len(trace), dtype=REQUEST_DTYPE)
    priority = np.minimum(trace.priority.astype(np.int64), NUM_PRIORITIES - 1)
    query = requests["query"]
    query["input_tokens"] = trace.input_tokens
    query["priority"] = priority
    query["session_hash"] = mix_all(trace.session_ids.astype(np.uint64), np.uint64(0))
    for field, limits in (("ttft_slo_s", levels.ttft_slo_s), ("tpot_slo_s", levels.tpot_slo_s)):
        own = getattr(trace, field)
        query[field] = np.where(np.isnan(own), np.asarray(limits)[priority], own)
    requests["arrival_s"] = trace.arrival_s
    requests["output_tokens"] = trace.output_tokens
    requests["weight"] = np.asarray(levels.weights)[priority]
    requests["status"] = PENDING
    requests["replica"] = NONE
    requests["next"] = NONE
    for moment in ("first_token_s", "finish_s"):
        requests[moment] = np.nan
    requests["first_block"] = trace.prefix_offsets[:-1]
    requests["num_blocks"] = np.diff(trace.prefix_offsets)
    _, first_uses, blocks = np.unique(
        trace.prefix_block_hashes, return_index=True, return_inverse=True
    )
    # Numbered by first use, so that what has arrived so far uses the lowest ids.
    ids = np.empty(first_uses.size, dtype=np.int32)
    ids[np.argsort(first_uses)] = np.arange(first_uses.size, dtype=np.int32)
    return Workload(
        name=name,
        requests=requests,
        blocks=ids[blocks],
        num_distinct_blocks=ids.size,
        block_tokens=trace.block_tokens,
    )

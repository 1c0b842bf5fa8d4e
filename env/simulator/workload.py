"""A workload: one trace made ready for the simulator, as a request table and dense block ids.

Does not know: the fleet that it will run on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...traces.hashing import mix_all, mix_rows
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
    model_names: tuple[str, ...] = ("default",)
    """Models that the requests' `query.model` counts; the fleet looks up which it serves."""
    tenant_names: tuple[str, ...] = ("default",)
    """Tenants that the requests' `tenant` counts."""
    adapter_names: tuple[str, ...] = ()
    """Adapters that the requests' `adapter` counts, from 1."""

    @property
    def span_s(self) -> float:
        """Time from 0 to the last arrival."""
        return float(self.requests["arrival_s"][-1]) if self.requests.size else 0.0

    @property
    def mean_rate_rps(self) -> float:
        """Requests per second over the span."""
        return self.requests.size / self.span_s if self.span_s > 0 else 0.0


def compile_workload(
    trace: RequestTrace,
    *,
    name: str,
    levels: ServiceLevels | None = None,
    model_map: Mapping[str, str] | None = None,
) -> Workload:
    """Turn a trace into a workload; requests without limits get those of their priority.

    `model_map` gives models of the trace the names by which a cluster serves them.
    """
    model_map = model_map or {}
    levels = levels or ServiceLevels()
    requests = np.zeros(len(trace), dtype=REQUEST_DTYPE)
    priority = np.minimum(trace.priority.astype(np.int64), NUM_PRIORITIES - 1)
    query = requests["query"]
    query["input_tokens"] = trace.input_tokens
    query["priority"] = priority
    query["model"] = trace.model_index
    query["session_hash"] = mix_all(trace.session_ids.astype(np.uint64), np.uint64(0))
    for field, limits in (("ttft_slo_s", levels.ttft_slo_s), ("tpot_slo_s", levels.tpot_slo_s)):
        own = getattr(trace, field)
        query[field] = np.where(np.isnan(own), np.asarray(limits)[priority], own)
    requests["arrival_s"] = trace.arrival_s
    requests["output_tokens"] = trace.output_tokens
    requests["weight"] = np.asarray(levels.weights)[priority]
    requests["worth_frac"] = 1.0
    requests["status"] = PENDING
    requests["replica"] = NONE
    requests["next"] = NONE
    requests["source"] = NONE
    for moment in ("first_token_s", "finish_s", "kv_ready_s"):
        requests[moment] = np.nan
    requests["extra_sequences"] = trace.num_sequences - 1
    requests["adapter"] = trace.adapter_index
    requests["tenant"] = trace.tenant_index
    requests["first_block"] = trace.prefix_offsets[:-1]
    # Engines cache full blocks only; a trace may hash the last, partial one too.
    full_blocks = trace.input_tokens // trace.block_tokens
    requests["num_blocks"] = np.minimum(np.diff(trace.prefix_offsets), full_blocks)
    _, first_uses, blocks = np.unique(_block_hashes(trace), return_index=True, return_inverse=True)
    # Numbered by first use, so that what has arrived so far uses the lowest ids.
    ids = np.empty(first_uses.size, dtype=np.int32)
    ids[np.argsort(first_uses)] = np.arange(first_uses.size, dtype=np.int32)
    _find_output_blocks(requests, ids[blocks], trace)
    return Workload(
        name=name,
        requests=requests,
        blocks=ids[blocks],
        num_distinct_blocks=ids.size,
        block_tokens=trace.block_tokens,
        model_names=tuple(model_map.get(model, model) for model in trace.model_names),
        tenant_names=trace.tenant_names,
        adapter_names=trace.adapter_names,
    )


def _block_hashes(trace: RequestTrace) -> np.ndarray:
    """Return the hash of every prompt block; the KV of a block differs between adapters."""
    hashes, adapter = trace.prefix_block_hashes, trace.adapter_index
    if not adapter.any():
        return hashes
    mixed = mix_rows(trace.prefix_offsets, hashes, adapter.astype(np.uint64))
    has_adapter = np.repeat(adapter > 0, np.diff(trace.prefix_offsets))
    return np.where(has_adapter, mixed, hashes)


def _find_output_blocks(requests: np.ndarray, blocks: np.ndarray, trace: RequestTrace) -> None:
    """Note which blocks of a session's next prompt are filled by this prompt and its answer.

    A next prompt continues this one if it is at least as long as prompt and answer together and
    has this prompt's last full block in the same place. The answer's last token is not in KV.
    """
    if requests.size == 0:
        return
    order = np.argsort(trace.session_ids, kind="stable")
    this, following = order[:-1], order[1:]
    total_tokens = trace.input_tokens[this].astype(np.int64) + trace.output_tokens[this]
    first_block, num_blocks = requests["first_block"], requests["num_blocks"].astype(np.int64)
    count = np.minimum((total_tokens - 1) // trace.block_tokens, num_blocks[following])
    count -= num_blocks[this]
    is_next = trace.session_ids[this] == trace.session_ids[following]
    is_next &= (trace.input_tokens[following] >= total_tokens) & (count > 0)
    this, following, count = this[is_next], following[is_next], count[is_next]
    last = np.maximum(num_blocks[this] - 1, 0)
    is_same = blocks[first_block[this] + last] == blocks[first_block[following] + last]
    is_same |= num_blocks[this] == 0
    this, following, count = this[is_same], following[is_same], count[is_same]
    requests["output_first_block"][this] = first_block[following] + num_blocks[this]
    requests["num_output_blocks"][this] = count

"""What a trace looks like in figures: rates, bursts, lengths, prefix reuse, shares.

Definitions. Rates are requests over the span from first to last arrival. Peak is the busiest
10 s bin divided by 10 s. Dispersion is the variance over the mean of the counts in full 10 s
bins (1 for Poisson). Prefix-hit share: for each request in order of arrival, the longest run of
leading blocks that an earlier request of the same model had, summed and divided by all blocks.

Does not know: caches of finite size, or replicas.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from .errors import TraceError
from .hashing import mix64
from .schema import RequestTrace

BIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Figures of a token count."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStatistics:
    """Figures of a trace; None where a figure has no meaning for it."""

    rows: int
    span_s: float
    mean_rate_rps: float
    peak_10s_rps: float
    cv_interarrival: float | None
    """standard deviation over mean of the gaps; None for fewer than two gaps or no span"""
    dispersion_10s: float | None
    """None for fewer than two full bins"""
    input_tokens: TokenStatistics
    output_tokens: TokenStatistics
    prefix_hit_frac: float | None
    """None for a trace without prefix blocks"""
    num_sessions: int
    """requests without a session count as one each"""
    tenant_fracs: dict[str, float]
    model_fracs: dict[str, float]
    priority_fracs: dict[int, float]


def statistics(trace: RequestTrace) -> TraceStatistics:
    """The figures of a trace.

    Raises: TraceError for a trace of no requests.
    """
    if not len(trace):
        msg = (
            f"trace {trace.source.name!r} has 0 requests; expected at least 1; "
            "check the slice or the import"
        )
        raise TraceError(msg)
    num_blocks = trace.prefix_block_hashes.size
    return TraceStatistics(
        rows=len(trace),
        span_s=trace.span_s,
        mean_rate_rps=trace.mean_rate_rps,
        peak_10s_rps=float(_bin_counts(trace).max()) / BIN_S,
        cv_interarrival=_cv_interarrival(trace),
        dispersion_10s=_dispersion(trace),
        input_tokens=_token_statistics(trace.input_tokens),
        output_tokens=_token_statistics(trace.output_tokens),
        prefix_hit_frac=float(prefix_hit_blocks(trace).sum() / num_blocks) if num_blocks else None,
        num_sessions=int(np.unique(trace.session_ids).size),
        tenant_fracs=_label_fracs(trace.tenant_names, trace.tenant_index),
        model_fracs=_label_fracs(trace.model_names, trace.model_index),
        priority_fracs=_priority_fracs(trace.priority),
    )


def prefix_hit_blocks(trace: RequestTrace) -> npt.NDArray[np.int32]:
    """Leading blocks of each request that a cache without limit would hold on arrival, [N].

    One cache a model, shared by all tenants.
    """
    return _leading_hits(
        trace.prefix_offsets, trace.prefix_block_hashes, trace.model_index.astype(np.uint64)
    )


def _bin_counts(trace: RequestTrace) -> npt.NDArray[np.int64]:
    """Requests in each 10 s bin from the first arrival; the last bin may not be full."""
    from_start_s = trace.arrival_s - trace.arrival_s[0]
    return np.bincount((from_start_s / BIN_S).astype(np.int64))


def _dispersion(trace: RequestTrace) -> float | None:
    full_bins = _bin_counts(trace)[: int(trace.span_s / BIN_S)]
    if full_bins.size < 2 or not full_bins.any():
        return None
    return float(full_bins.var() / full_bins.mean())


def _cv_interarrival(trace: RequestTrace) -> float | None:
    gaps_s = np.diff(trace.arrival_s)
    if gaps_s.size < 2 or trace.span_s <= 0.0:
        return None
    return float(gaps_s.std() / gaps_s.mean())


def _token_statistics(tokens: npt.NDArray[np.int32]) -> TokenStatistics:
    p50, p95, p99 = np.percentile(tokens, [50, 95, 99])
    return TokenStatistics(
        mean=float(tokens.mean()),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        max=int(tokens.max()),
    )


def _label_fracs(names: tuple[str, ...], index: npt.NDArray[np.int32]) -> dict[str, float]:
    counts = np.bincount(index, minlength=len(names))
    return {name: float(counts[i] / index.size) for i, name in enumerate(names)}


def _priority_fracs(priority: npt.NDArray[np.int8]) -> dict[int, float]:
    classes, counts = np.unique(priority, return_counts=True)
    return {int(c): float(n / priority.size) for c, n in zip(classes, counts, strict=True)}


@njit(cache=True, nogil=True)
def _leading_hits(
    offsets: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    model_index: npt.NDArray[np.uint64],
) -> npt.NDArray[np.int32]:
    """Leading-run hits against all earlier rows, by one open-addressing table."""
    num_slots = 16
    while num_slots < 2 * hashes.size:
        num_slots *= 2
    keys = np.zeros(num_slots, np.uint64)
    is_taken = np.zeros(num_slots, np.bool_)
    hits = np.zeros(model_index.size, np.int32)
    last_slot = np.uint64(num_slots - 1)
    for row in range(model_index.size):
        is_leading = True
        model_salt = mix64(model_index[row])
        for k in range(offsets[row], offsets[row + 1]):
            key = mix64(hashes[k] ^ model_salt)
            slot = key & last_slot
            while is_taken[slot] and keys[slot] != key:
                slot = (slot + np.uint64(1)) & last_slot
            is_leading = is_leading and is_taken[slot]
            hits[row] += is_leading
            keys[slot] = key
            is_taken[slot] = True
    return hits

"""Traces from traces: slices, parts, unions, and the same requests under other service terms.

Does not know: rates (`superposition.py`) and conversations (`conversations.py`).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import label_array, limit_array, prefix_array, priority_array
from .errors import TraceError
from .hashing import mix_rows
from .schema import RequestTrace, TraceSource


def select(trace: RequestTrace, rows: npt.NDArray[np.int64]) -> RequestTrace:
    """Return some rows of a trace, in its order; arrivals stay as they are."""
    return RequestTrace(trace.table.take(np.sort(rows)), trace.block_tokens, trace.source)


def shortened(trace: RequestTrace, max_input_tokens: int, max_output_tokens: int) -> RequestTrace:
    """Return a trace whose longer prompts and answers are cut, with the blocks that are left.

    Raises: ValueError for a length below 1.
    """
    for name, value in (
        ("max_input_tokens", max_input_tokens), ("max_output_tokens", max_output_tokens)
    ):  # fmt: skip
        if value < 1:
            msg = f"{name} must be at least 1, got {value}"
            raise ValueError(msg)
    inputs = np.minimum(trace.input_tokens, max_input_tokens)
    offsets, hashes = trace.prefix_offsets, trace.prefix_block_hashes
    kept = [
        hashes[offsets[i] : offsets[i + 1]][: inputs[i] // trace.block_tokens]
        for i in range(len(trace))
    ]
    ends = np.cumsum([0, *(len(each) for each in kept)])
    blocks = np.concatenate(kept) if kept else hashes[:0]
    return trace.with_columns(
        input_tokens=pa.array(inputs, pa.int32()),
        output_tokens=pa.array(np.minimum(trace.output_tokens, max_output_tokens), pa.int32()),
        prefix_blocks=prefix_array((ends, blocks), len(trace)),
    )


def slice_time(trace: RequestTrace, start_s: float, end_s: float) -> RequestTrace:
    """The requests that arrive in [start_s, end_s), with `start_s` as their time 0."""
    if not start_s < end_s:
        msg = f"start_s {start_s} must be below end_s {end_s}"
        raise ValueError(msg)
    first, last = np.searchsorted(trace.arrival_s, [start_s, end_s])
    return _take_rows(trace, int(first), int(last), start_s)


def split(trace: RequestTrace, fracs: Sequence[float]) -> tuple[RequestTrace, ...]:
    """Consecutive parts of the time from 0 to the last arrival, each with its own time 0.

    Raises: ValueError unless the fractions are above 0 and sum to 1.
    """
    if not fracs or min(fracs) <= 0.0 or abs(sum(fracs) - 1.0) > 1e-9:
        msg = f"fracs must be above 0 and sum to 1, got {list(fracs)}"
        raise ValueError(msg)
    end_s = float(trace.arrival_s[-1]) if len(trace) else 0.0
    bounds_s = end_s * np.concatenate([[0.0], np.cumsum(fracs)])
    rows = np.searchsorted(trace.arrival_s, bounds_s)
    rows[-1] = len(trace)
    return tuple(
        _take_rows(trace, int(rows[i]), int(rows[i + 1]), float(bounds_s[i]))
        for i in range(len(fracs))
    )


def merge(traces: Sequence[RequestTrace], *, are_ids_shared: bool = False) -> RequestTrace:
    """All requests of several traces in order of arrival; ties keep the order of the traces.

    Sessions are renumbered and prefix hashes mixed so that different traces share neither,
    unless `are_ids_shared` says that their numbers mean the same (two parts of one trace).

    Raises: ValueError for no traces; TraceError when block_tokens differ.
    """
    if not traces:
        msg = "traces must hold at least 1 trace, got 0"
        raise ValueError(msg)
    block_tokens = traces[0].block_tokens
    for trace in traces:
        if trace.block_tokens != block_tokens:
            msg = (
                f"trace {trace.source.name!r} has block_tokens {trace.block_tokens}; expected "
                f"{block_tokens} as trace {traces[0].source.name!r}; merge traces of equal blocks"
            )
            raise TraceError(msg)
    table = pa.concat_tables([trace.table for trace in traces]).unify_dictionaries()
    merged_s = np.concatenate([trace.arrival_s for trace in traces])
    order = np.argsort(merged_s, kind="stable")
    source = _joint_source([trace.source for trace in traces])
    copy_index = np.repeat(np.arange(len(traces)), [len(trace) for trace in traces])[order]
    merged = RequestTrace(table.take(pa.array(order)), block_tokens, source)
    return merged if are_ids_shared else separate_copies(merged, copy_index)


def with_service(
    trace: RequestTrace,
    *,
    priority: int | None = None,
    tenant: str | None = None,
    model: str | None = None,
    ttft_slo_s: float | None = None,
    tpot_slo_s: float | None = None,
) -> RequestTrace:
    """The same requests with the terms given; a term that is None stays as it is."""
    num_rows = len(trace)
    arrays = {}
    if priority is not None:
        arrays["priority"] = priority_array(priority, num_rows)
    for name, label in (("tenant", tenant), ("model", model)):
        if label is not None:
            arrays[name] = label_array(label, num_rows)
    for name, limit_s in (("ttft_slo_s", ttft_slo_s), ("tpot_slo_s", tpot_slo_s)):
        if limit_s is not None:
            arrays[name] = limit_array(limit_s, num_rows)
    return trace.with_columns(**arrays)


def cut_lengths(
    trace: RequestTrace, *, max_input_tokens: int, max_output_tokens: int
) -> RequestTrace:
    """The same requests with prompts and answers no longer than that; prefixes are cut as well.

    Raises: ValueError for a limit below 1.
    """
    for name, limit in (
        ("max_input_tokens", max_input_tokens),
        ("max_output_tokens", max_output_tokens),
    ):
        if limit < 1:
            msg = f"{name} must be at least 1, got {limit}"
            raise ValueError(msg)
    input_tokens = np.minimum(trace.input_tokens, max_input_tokens)
    offsets = trace.prefix_offsets
    counts = np.minimum(np.diff(offsets), input_tokens // trace.block_tokens)
    place = np.arange(trace.prefix_block_hashes.size) - np.repeat(offsets[:-1], np.diff(offsets))
    is_kept = place < np.repeat(counts, np.diff(offsets))
    kept = (np.concatenate([[0], np.cumsum(counts)]), trace.prefix_block_hashes[is_kept])
    return trace.with_columns(
        input_tokens=pa.array(input_tokens.astype(np.int32)),
        output_tokens=pa.array(np.minimum(trace.output_tokens, max_output_tokens).astype(np.int32)),
        prefix_blocks=prefix_array(kept, len(trace)),
    )


def with_default_limits(
    trace: RequestTrace, ttft_slo_s: Sequence[float], tpot_slo_s: Sequence[float]
) -> RequestTrace:
    """The same requests, where those without limits have the ones of their priority.

    Shapes: limits by priority; the last ones also hold for all beyond them.
    """
    arrays = {}
    for name, limits in (("ttft_slo_s", ttft_slo_s), ("tpot_slo_s", tpot_slo_s)):
        own = getattr(trace, name)
        given = np.asarray(limits, np.float64)[np.minimum(trace.priority, len(limits) - 1)]
        arrays[name] = limit_array(np.where(np.isnan(own), given, own), len(trace))
    return trace.with_columns(**arrays)


def separate_copies(trace: RequestTrace, copy_index: npt.NDArray[np.int64]) -> RequestTrace:
    """The trace with sessions and prefix hashes made distinct between rows of unequal copies.

    Inside a copy what was equal stays equal. Requests without a session stay without one.
    Shapes: copy_index [N].
    """
    has_session = trace.has_session
    pairs = np.stack([copy_index, trace.session_ids])[:, has_session]
    sessions = np.zeros(len(trace), np.int64)
    sessions[has_session] = _rank_pairs(pairs)
    hashes = mix_rows(trace.prefix_offsets, trace.prefix_block_hashes, copy_index.astype(np.uint64))
    return trace.with_columns(
        session=pa.array(sessions, mask=~has_session),
        prefix_blocks=prefix_array((trace.prefix_offsets, hashes), len(trace)),
    )


def _rank_pairs(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A number from 0 for each distinct column of a [2, N] array."""
    order = np.lexsort((pairs[1], pairs[0]))
    in_order = pairs[:, order]
    is_new = (np.diff(in_order, axis=1) != 0).any(axis=0)
    ranks = np.zeros(order.size, np.int64)
    ranks[order[1:]] = np.cumsum(is_new)
    return ranks


def _take_rows(trace: RequestTrace, first: int, last: int, start_s: float) -> RequestTrace:
    table = trace.table.slice(first, last - first)
    part = RequestTrace(table, trace.block_tokens, trace.source)
    return part.with_columns(arrival_s=pa.array(part.arrival_s - start_s))


def _joint_source(sources: Sequence[TraceSource]) -> TraceSource:
    """One source that names each different one once."""
    different = list(dict.fromkeys(sources))

    def joined(texts: list[str]) -> str:
        return "; ".join(dict.fromkeys(text for text in texts if text))

    return TraceSource(
        name=" + ".join(dict.fromkeys(source.name for source in different)),
        licence=joined([source.licence for source in different]),
        citation=joined([source.citation for source in different]),
        url=joined([source.url for source in different]),
    )

"""Conversations laid over a recorded trace that has no session identity.

Arrivals, prompt lengths and answer lengths stay as recorded; which requests belong together is
invented: a synthetic overlay on real load, to be named as such wherever results are shown. A
request whose prompt is long enough becomes, with some probability, the next turn of an earlier
request whose prompt and answer fit into it best.

Does not know: what the users really did. Nothing here is an estimate of it.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from .columns import prefix_array
from .hashing import chain_hashes, mix_all
from .schema import RequestTrace

_NONE = -1  # inside the compiled part only: no earlier request


def assign_sessions(
    trace: RequestTrace,
    *,
    seed: int,
    follow_up_frac: float = 0.4,
    min_gap_s: float = 5.0,
    max_gap_s: float = 600.0,
    max_new_tokens: int = 1000,
) -> RequestTrace:
    """The trace with invented sessions and the prefix blocks that follow from them.

    With probability `follow_up_frac` a request continues an earlier one of the same model and
    tenant that arrived `min_gap_s` to `max_gap_s` before it and that nothing continues yet: the
    one with the most input and output tokens that leave 1 to `max_new_tokens` of its input for
    the new message. Where none fits it opens a conversation, so that the share of follow-ups
    comes out below `follow_up_frac`. The follow-up shares all full blocks of the earlier prompt
    and answer.

    Raises: ValueError when the trace has sessions or prefix blocks, or for arguments out of range.
    """
    _check_arguments(trace, follow_up_frac, min_gap_s, max_gap_s, max_new_tokens)
    rng = np.random.Generator(np.random.PCG64(seed))
    wants_follow_up = rng.random(len(trace)) < follow_up_frac
    roots = np.arange(len(trace))
    group = trace.model_index.astype(np.int64) * len(trace.tenant_names) + trace.tenant_index
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        tokens = trace.input_tokens[rows]
        local_roots = _link(
            np.ascontiguousarray(trace.arrival_s[rows]),
            wants_follow_up[rows],
            tokens,
            tokens.astype(np.int64) + trace.output_tokens[rows],
            min_gap_s,
            max_gap_s,
            max_new_tokens,
        )
        roots[rows] = rows[local_roots]
    return _with_conversations(trace, roots, seed)


def _check_arguments(
    trace: RequestTrace,
    follow_up_frac: float,
    min_gap_s: float,
    max_gap_s: float,
    max_new_tokens: int,
) -> None:
    num_named, num_blocks = int(trace.has_session.sum()), trace.prefix_block_hashes.size
    if num_named or num_blocks:
        msg = (
            f"trace {trace.source.name!r} has {num_named} requests with a session and "
            f"{num_blocks} prefix blocks; expected none of either; use it as it is"
        )
        raise ValueError(msg)
    if not 0.0 <= follow_up_frac <= 1.0:
        msg = f"follow_up_frac must be in [0, 1], got {follow_up_frac}"
        raise ValueError(msg)
    if not 0.0 <= min_gap_s < max_gap_s:
        msg = f"min_gap_s {min_gap_s} must be from 0 to below max_gap_s {max_gap_s}"
        raise ValueError(msg)
    if max_new_tokens < 1:
        msg = f"max_new_tokens must be at least 1, got {max_new_tokens}"
        raise ValueError(msg)


def _with_conversations(
    trace: RequestTrace, roots: npt.NDArray[np.int64], seed: int
) -> RequestTrace:
    """Sessions and hash chains of the full blocks, from each request's opening request."""
    offsets = np.concatenate([[0], np.cumsum(trace.input_tokens // trace.block_tokens)])
    content = mix_all(roots.astype(np.uint64), np.uint64(seed))
    no_shared = np.zeros(len(trace), np.int32)
    hashes = chain_hashes(offsets, content, no_shared, content)
    sessions = np.unique(roots, return_inverse=True)[1].astype(np.int64)
    return trace.with_columns(
        session=pa.array(sessions), prefix_blocks=prefix_array((offsets, hashes), len(trace))
    )


@njit(cache=True, nogil=True)
def _link(
    arrival_s: npt.NDArray[np.float64],
    wants_follow_up: npt.NDArray[np.bool_],
    input_tokens: npt.NDArray[np.int32],
    total_tokens: npt.NDArray[np.int64],
    min_gap_s: float,
    max_gap_s: float,
    max_new_tokens: int,
) -> npt.NDArray[np.int64]:
    """For each request the one that opened its conversation. Shapes: all [N].

    Waiting requests hang in one stack per total of tokens, the latest on top; a Fenwick tree
    over the totals finds the largest stack that is not empty up to a bound.
    """
    num_rows = arrival_s.size
    roots = np.arange(num_rows)
    num_totals = int(input_tokens.max()) + 1 if num_rows else 1
    top = np.full(num_totals, _NONE, np.int64)
    below = np.full(num_rows, _NONE, np.int64)
    tree = np.zeros(num_totals + 1, np.int64)
    next_waiting = 0
    for i in range(num_rows):
        while arrival_s[next_waiting] <= arrival_s[i] - min_gap_s and next_waiting < i:
            total = total_tokens[next_waiting]
            if total < num_totals:
                if top[total] == _NONE:
                    _add(tree, total, 1)
                below[next_waiting] = top[total]
                top[total] = next_waiting
            next_waiting += 1
        while wants_follow_up[i]:
            total = _largest(tree, input_tokens[i] - 1)
            if total == _NONE or input_tokens[i] - total > max_new_tokens:
                break
            earlier = top[total]
            is_fresh = arrival_s[i] - arrival_s[earlier] <= max_gap_s
            # What lies below the top is older still, so a stale top empties its stack.
            top[total] = below[earlier] if is_fresh else _NONE
            if top[total] == _NONE:
                _add(tree, total, -1)
            if is_fresh:
                roots[i] = roots[earlier]
                break
    return roots


@njit(cache=True, nogil=True)
def _add(tree: npt.NDArray[np.int64], key: int, amount: int) -> None:
    """Add to the count of a key in a Fenwick tree."""
    place = key + 1
    while place < tree.size:
        tree[place] += amount
        place += place & -place


@njit(cache=True, nogil=True)
def _largest(tree: npt.NDArray[np.int64], bound: int) -> int:
    """The largest key up to `bound` with a count above 0, or _NONE."""
    rank = 0
    place = min(bound + 1, tree.size - 1)
    while place > 0:
        rank += tree[place]
        place -= place & -place
    if rank == 0:
        return _NONE
    step = 1
    while 2 * step < tree.size:
        step *= 2
    while step > 0:
        if place + step < tree.size and tree[place + step] < rank:
            place += step
            rank -= tree[place]
        step //= 2
    return place

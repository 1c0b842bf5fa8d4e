"""Layers with a sliding window: how much context they read, and when that changes.

A decoding sequence reads min(context, window) tokens: it grows until its context fills the
window. A heap keyed by that iteration limits the jump, so the sum stays exact in closed form.
Pages are held for the whole context, as without a window.

Does not know: pages, queues or layers without a window.
"""

import numpy as np

from ..compiled import compiled
from ..latency import HALF_TILE_TOKENS
from .layout import NONE
from .memory import actual_of, growing_of, replicas_of, requests_of
from .queues import push_sequence, remove_sequence


@compiled
def _windowed_sum(position, window):
    """Return the sum of min(i, window) for i from 1 to a position."""
    inside = min(position, window)
    return inside * (inside + 1) / 2.0 + (position - inside) * window


@compiled
def enter_window(sim, r, index, kv_tokens):
    """Count a request that joins the decode batch with some tokens in KV."""
    replica = replicas_of(sim)[r]
    window = int(actual_of(sim)[r].window_tokens)
    sequences = 1 + requests_of(sim)[index].extra_sequences
    replica.windowed_tokens += sequences * min(kv_tokens, window)
    if kv_tokens < window:
        full_iteration = replica.decode_iteration + window - kv_tokens
        push_sequence(growing_of(sim, r), replica.num_growing, full_iteration, index)
        replica.num_growing += 1
        replica.num_growing_sequences += sequences


@compiled
def leave_window(sim, r, index, kv_tokens):
    """Take a request that leaves the decode batch out of the count."""
    replica, growing = replicas_of(sim)[r], growing_of(sim, r)
    window = int(actual_of(sim)[r].window_tokens)
    sequences = 1 + requests_of(sim)[index].extra_sequences
    replica.windowed_tokens -= sequences * min(kv_tokens, window)
    if kv_tokens < window:
        position = np.int64(0)
        while growing[position].request != index:
            position += 1
        remove_sequence(growing, replica.num_growing, position)
        replica.num_growing -= 1
        replica.num_growing_sequences -= sequences


@compiled
def advance_windows(sim, r, iterations):
    """Let some iterations of the decode batch happen, `decode_iteration` included."""
    replica, growing = replicas_of(sim)[r], growing_of(sim, r)
    replica.windowed_tokens += replica.num_growing_sequences * iterations
    while replica.num_growing > 0 and growing[0].end_iteration <= replica.decode_iteration:
        index = remove_sequence(growing, replica.num_growing, np.int64(0))
        replica.num_growing -= 1
        replica.num_growing_sequences -= 1 + requests_of(sim)[index].extra_sequences


@compiled
def _chunk_positions(sim, r, chunk, window):
    """Return the sum, over the tokens of a chunk, of the windowed tokens up to each."""
    requests, index, left, positions = (
        requests_of(sim),
        replicas_of(sim)[r].prefill_head,
        chunk,
        0.0,
    )
    while index != NONE and left > 0:
        done = requests[index].prefill_done_tokens
        part = min(requests[index].prefill_target_tokens - done, left)
        positions += _windowed_sum(done + part, window) - _windowed_sum(done, window)
        left -= part
        index = requests[index].next
    return positions


@compiled
def window_plan(sim, r, chunk, limit, mixed_factor):
    """Return what windowed layers add to a plan: (iterations at most, first_s, slope_s).

    `mixed_factor` slows decode attention down beside prefill.
    """
    replica, c = replicas_of(sim)[r], actual_of(sim)[r]
    window = int(c.window_tokens)
    context_s = c.window_context_s * mixed_factor
    # An iteration reads the token that it writes as well, where the window is not full.
    first_s = context_s * (replica.windowed_tokens + replica.num_growing_sequences)
    slope_s = context_s * replica.num_growing_sequences
    if replica.num_growing > 0:
        limit = min(limit, growing_of(sim, r)[0].end_iteration - replica.decode_iteration)
    if chunk > 0:
        positions = _chunk_positions(sim, r, chunk, window) + HALF_TILE_TOKENS * chunk
        first_s += c.window_attention_s * positions
        done = requests_of(sim)[replica.prefill_head].prefill_done_tokens
        if limit > 1 and done < window:
            limit = max(1, min(limit, (window - done) // chunk))
            slope_s += c.window_attention_s * float(chunk) * chunk
    return limit, first_s, slope_s


@compiled
def clear_windows(sim, r):
    """Forget the decode batch."""
    replica = replicas_of(sim)[r]
    replica.windowed_tokens = 0
    replica.num_growing = 0
    replica.num_growing_sequences = 0

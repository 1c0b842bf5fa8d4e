"""One replica's iterations: continuous batching, chunked prefill, and the jump.

While nothing is admitted, finished or preempted, iteration time is affine in the number of
iterations, so k iterations are taken at once: T(k) = first k + slope k (k - 1) / 2. A replica
is advanced lazily, and never past an iteration that starts after the given moment.

Does not know: other replicas, or why a request came here.
Source: vLLM's scheduler (decode first, then prefill chunks within a token budget); the jump
follows the project's prototype study.
"""

import numpy as np

from ..compiled import compiled
from ..latency import context_time_s, linear_time_s, other_time_s, position_time_s
from . import gateway
from .admission import (
    admit,
    end_request,
    fail_oversized,
    first_ready_s,
    leave_decode,
    make_room,
    next_ready_s,
    prefill_budget,
)
from .kv_pages import growth_pages, iterations_within_pages, release, take_pages
from .layout import DECODING, FINISHED, NONE
from .memory import (
    actual_of,
    blocks_of,
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    linear_s_of,
    next_events_of,
    page_phases_of,
    pinned_entries_of,
    replicas_of,
    requests_of,
    sequences_of,
    slowdowns_of,
)
from .prefix_cache import find_entry, insert_pinned, is_held, pin
from .queues import pop_prefill, push_sequence


@compiled
def jump_time_s(first_s, slope_s, iterations):
    """Return the time of some iterations when each takes `slope_s` more than the one before."""
    return first_s * iterations + 0.5 * slope_s * iterations * (iterations - 1)


@compiled
def iterations_until(first_s, slope_s, span_s, limit):
    """Return how many iterations start within a span, at least 1 and at most `limit`."""
    half = 0.5 * slope_s
    b = first_s - half
    k = int(2.0 * span_s / (b + np.sqrt(b * b + 4.0 * half * span_s)))
    k = max(1, min(k, limit))
    while k < limit and jump_time_s(first_s, slope_s, k) < span_s:
        k += 1
    while k > 1 and jump_time_s(first_s, slope_s, k - 1) >= span_s:
        k -= 1
    return k


@compiled
def _prefill_work(sim, r, budget):
    """Return the chunk of the next iteration: tokens, positions, and whole iterations like it."""
    requests = requests_of(sim)
    head = requests[replicas_of(sim)[r].prefill_head]
    left = head.prefill_target_tokens - head.prefill_done_tokens
    if left > budget:
        positions = budget * head.prefill_done_tokens + budget * (budget + 1) / 2.0
        return budget, positions, (left + budget - 1) // budget - 1
    tokens, positions, index = 0, 0.0, replicas_of(sim)[r].prefill_head
    while index != NONE and tokens < budget:
        request = requests[index]
        left = request.prefill_target_tokens - request.prefill_done_tokens
        part = min(left, budget - tokens)
        positions += part * request.prefill_done_tokens + part * (part + 1) / 2.0
        tokens += part
        index = request.next
    return tokens, positions, 1


@compiled
def _linear_s(sim, r, tokens):
    """Return the layers' time for a number of tokens, remembered where it was asked before."""
    remembered = linear_s_of(sim, replicas_of(sim)[r].kind)
    if tokens >= remembered.size:
        return linear_time_s(actual_of(sim)[r], float(tokens))
    if np.isnan(remembered[tokens]):
        remembered[tokens] = linear_time_s(actual_of(sim)[r], float(tokens))
    return remembered[tokens]


@compiled
def _plan(sim, r):
    """Return (iterations to the next change, chunk tokens, first_s, slope_s)."""
    replica, c = replicas_of(sim)[r], actual_of(sim)[r]
    seqs = replica.num_decoding
    chunk, positions, limit = 0, 0.0, np.int64(1) << np.int64(40)
    if replica.num_prefilling > 0:
        chunk, positions, limit = _prefill_work(sim, r, prefill_budget(sim, r))
    if seqs > 0:
        to_finish = sequences_of(sim, r)[0].end_iteration - replica.decode_iteration
        limit = iterations_within_pages(sim, r, min(limit, to_finish))
    if fleet_of(sim).is_single_step != 0 or replica.has_preempted != 0:
        limit = np.int64(1)
    context_s = context_time_s(c, chunk > 0)
    # An iteration reads the KV written so far and the token that it writes itself.
    context_tokens = replica.context_tokens + seqs
    first_s = _linear_s(sim, r, chunk + seqs) + context_s * context_tokens
    first_s += other_time_s(c, chunk, positions, seqs)
    slope_s = context_s * seqs
    if limit > 1:
        slope_s += position_time_s(c, chunk) * float(chunk) * chunk
    first_s, slope_s = first_s * replica.slow_factor, slope_s * replica.slow_factor
    change_s = min(next_ready_s(sim, r), slowdowns_of(sim, r)[replica.next_slow_index].at_s)
    if limit > 1 and change_s < replica.clock_s + jump_time_s(first_s, slope_s, limit):
        limit = iterations_until(first_s, slope_s, max(0.0, change_s - replica.clock_s), limit)
    return limit, chunk, first_s, slope_s


@compiled
def _finish_prefill(sim, r, index):
    """End a request's prefill: cache its blocks, emit a token, start decoding."""
    replica, request, fleet = replicas_of(sim)[r], requests_of(sim)[index], fleet_of(sim)
    cache, holders = cache_of(sim, r), holders_of(sim)
    for position in range(request.pinned_blocks, request.num_blocks):
        block = blocks_of(sim)[request.first_block + position]
        if is_held(holders, block, r):
            entry = find_entry(cache_table_of(sim, r), cache, block)
            pin(replica, cache, entry)
            replica.free_pages += fleet.block_pages
        else:
            entry = insert_pinned(replica, cache_table_of(sim, r), cache, holders, r, block)
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1
    request.generated_tokens += 1
    replica.generated_tokens += 1
    if request.generated_tokens == 1:
        request.first_token_s = replica.clock_s
        gateway.on_first_token(sim, index)
    left = request.output_tokens - request.generated_tokens
    if left <= 0:
        release(sim, r, request, request.prefill_target_tokens)
        end_request(sim, r, index, FINISHED)
        return
    request.status = DECODING
    request.joined_iteration = replica.decode_iteration
    end_iteration = replica.decode_iteration + left
    push_sequence(sequences_of(sim, r), replica.num_decoding, end_iteration, index)
    replica.num_decoding += 1
    replica.context_tokens += request.prefill_target_tokens
    start = replica.decode_iteration + 1 - request.prefill_target_tokens
    request.page_phase = start & (fleet.page_tokens - 1)
    page_phases_of(sim, r)[request.page_phase] += 1


@compiled
def _advance_prefill(sim, r, tokens):
    """Spend prefill tokens on the list's head and those behind it; end those that complete."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    replica.prefill_tokens += tokens
    replica.prefill_left_tokens -= tokens
    while tokens > 0:
        request = requests[replica.prefill_head]
        left = request.prefill_target_tokens - request.prefill_done_tokens
        part = min(left, tokens)
        request.prefill_done_tokens += part
        tokens -= part
        if part == left:
            _finish_prefill(sim, r, pop_prefill(replica, requests))


@compiled
def _apply(sim, r, iterations, chunk, first_s, slope_s):
    """Let some planned iterations happen."""
    replica = replicas_of(sim)[r]
    seqs = replica.num_decoding
    if seqs > 0:
        take_pages(sim, r, growth_pages(sim, r, iterations))
    span_s = jump_time_s(first_s, slope_s, iterations)
    replica.seen_s = replica.clock_s + jump_time_s(first_s, slope_s, iterations - 1)
    replica.clock_s += span_s
    replica.busy_s += span_s
    replica.measured_s += span_s
    replica.nominal_s += span_s / replica.slow_factor
    power_w = replica.decode_w
    if chunk > 0:
        share = min(1.0, chunk / replica.max_batch_tokens)
        power_w += share * (replica.prefill_w - replica.decode_w)
        replica.prefill_s += span_s
    replica.energy_j += power_w * span_s
    replica.has_preempted = 0
    replica.num_iterations += iterations
    replica.num_steps += 1
    replica.decode_iteration += iterations
    replica.context_tokens += seqs * iterations
    replica.generated_tokens += seqs * iterations
    if chunk > 0:
        _advance_prefill(sim, r, chunk * iterations)
    while (
        replica.num_decoding > 0
        and sequences_of(sim, r)[0].end_iteration <= replica.decode_iteration
    ):
        end_request(sim, r, leave_decode(sim, r, 0), FINISHED)


@compiled
def idle_until(replica, until_s):
    """Move an idle replica's clock forward at idle power."""
    if until_s > replica.clock_s:
        replica.energy_j += replica.idle_w * (until_s - replica.clock_s)
        replica.clock_s = until_s


@compiled
def _update_slow_factor(sim, r):
    replica = replicas_of(sim)[r]
    while slowdowns_of(sim, r)[replica.next_slow_index].at_s <= replica.clock_s:
        replica.slow_factor = slowdowns_of(sim, r)[replica.next_slow_index].factor
        replica.next_slow_index += 1


@compiled
def _prepare(sim, r, until_s):
    """Bring a replica to the start of its next iteration; return whether there is one.

    Leaves `next_event_s` at the time when there will be one, if it is known.
    """
    replica = replicas_of(sim)[r]
    while True:
        is_idle = replica.num_prefilling + replica.num_decoding == 0
        if is_idle:
            ready_s = first_ready_s(sim, r)
            if ready_s > until_s:
                next_events_of(sim)[r] = ready_s
                return False
            idle_until(replica, ready_s)
            replica.seen_s = replica.clock_s
        _update_slow_factor(sim, r)
        if replica.has_preempted == 0:
            admit(sim, r)
        make_room(sim, r)
        if replica.num_prefilling + replica.num_decoding > 0:
            return True
        replica.has_preempted = 0
        if is_idle:
            fail_oversized(sim, r)


@compiled
def advance(sim, r, until_s, is_partial):
    """Advance a replica through every change up to a moment.

    With `is_partial`, iterations of the jump in progress that end by then are taken as well, so
    that counters read at that moment are right.
    """
    replica = replicas_of(sim)[r]
    if replica.is_up == 0:
        next_events_of(sim)[r] = np.inf
        return
    while _prepare(sim, r, until_s):
        iterations, chunk, first_s, slope_s = _plan(sim, r)
        end_s = replica.clock_s + jump_time_s(first_s, slope_s, iterations)
        if end_s > until_s:
            next_events_of(sim)[r] = end_s
            if is_partial and until_s > replica.clock_s:
                span_s = until_s - replica.clock_s
                part = iterations_until(first_s, slope_s, span_s, iterations)
                if jump_time_s(first_s, slope_s, part) > span_s:
                    part -= 1
                if part > 0:
                    _apply(sim, r, part, chunk, first_s, slope_s)
            return
        _apply(sim, r, iterations, chunk, first_s, slope_s)
    if is_partial:
        idle_until(replica, until_s)

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
from ..jump import iterations_until, jump_time_s
from ..latency import context_time_s, linear_time_s, other_time_s, position_time_s
from . import gateway, handoff
from .admission import (
    end_request,
    fail_oversized,
    first_ready_s,
    make_room,
    next_ready_s,
    prefill_budget,
)
from .calls import admit, called_as, settle, settle_freeze
from .due import set_next_event
from .freeze import iterations_to_freeze
from .kv_pages import (
    cache_output,
    cache_prompt,
    growth_pages,
    iterations_within_pages,
    take_pages,
)
from .layout import FINISHED, NONE, ROLE_PREFILL
from .life import note_first_chunk, note_token
from .memory import (
    actual_of,
    fleet_of,
    linear_s_of,
    replicas_of,
    requests_of,
    sequences_of,
    slowdowns_of,
)
from .power import spend, stand_by, throttle
from .queues import pop_prefill
from .sequences import held_tokens, leave_decode, let_go, start_decoding
from .windows import advance_windows, window_plan


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
    seqs = replica.num_sequences
    chunk, positions, limit = 0, 0.0, np.int64(1) << np.int64(40)
    if replica.num_prefilling > 0:
        chunk, positions, limit = _prefill_work(sim, r, prefill_budget(sim, r))
    if seqs > 0:
        to_finish = sequences_of(sim, r)[0].end_iteration - replica.decode_iteration
        limit = iterations_within_pages(sim, r, min(limit, to_finish))
        if replica.is_freezing != 0:
            limit = iterations_to_freeze(sim, r, limit)
    # Copies over PCIe lengthen one iteration, which is then taken by itself.
    if fleet_of(sim).is_single_step != 0 or replica.has_preempted != 0 or replica.copy_s > 0.0:
        limit = np.int64(1)
    context_s = context_time_s(c, chunk > 0)
    # An iteration reads the KV written so far and the token that it writes itself.
    context_tokens = replica.context_tokens + seqs
    first_s = _linear_s(sim, r, chunk + seqs) + context_s * context_tokens
    first_s += other_time_s(c, chunk, positions, seqs) + replica.copy_s
    slope_s = context_s * seqs
    if limit > 1:
        slope_s += position_time_s(c, chunk) * float(chunk) * chunk
    if replica.power_cap_w < np.inf:
        throttle(sim, r, seqs, chunk, positions)
        first_s += replica.throttled_first_s
        if limit > 1:
            slope_s += replica.throttled_slope_s
    if c.window_tokens > 0.0:
        mixed_factor = c.mixed_context_factor if chunk > 0 else 1.0
        limit, window_s, window_slope_s = window_plan(sim, r, chunk, limit, mixed_factor)
        first_s, slope_s = first_s + window_s, slope_s + window_slope_s
    first_s, slope_s = first_s * replica.slow_factor, slope_s * replica.slow_factor
    change_s = min(next_ready_s(sim, r), slowdowns_of(sim, r)[replica.next_slow_index].at_s)
    change_s = min(change_s, replica.change_at_s)
    if limit > 1 and change_s < replica.clock_s + jump_time_s(first_s, slope_s, limit):
        limit = iterations_until(first_s, slope_s, max(0.0, change_s - replica.clock_s), limit)
    return limit, chunk, first_s, slope_s


@compiled
def _finish_prefill(sim, r, index):
    """End a request's prefill: cache its blocks, emit a token, start decoding."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    cache_prompt(sim, r, request)
    request.generated_tokens += 1
    replica.generated_tokens += 1 + request.extra_sequences
    replica.first_tokens += 1 + request.extra_sequences
    if request.generated_tokens == 1:
        request.first_token_s = replica.clock_s
        gateway.on_first_token(sim, index)
    note_token(sim, index)
    if request.generated_tokens >= request.output_tokens:
        let_go(sim, r, request, held_tokens(request))
        end_request(sim, r, index, np.int64(FINISHED))
        return
    if replica.role == ROLE_PREFILL:
        handoff.depart(sim, r, index)
        return
    start_decoding(sim, r, index, held_tokens(request))


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
        done = np.int64(request.prefill_done_tokens)
        replica.prefill_positions += part * done + (part * (part + 1) >> 1)
        request.prefill_done_tokens += part
        tokens -= part
        if part == left:
            _finish_prefill(sim, r, pop_prefill(replica, requests))


@compiled
def _finish_decode(sim, r):
    """End the request at the top of the heap; what its session will ask next stays cached."""
    request = requests_of(sim)[sequences_of(sim, r)[0].request]
    if request.num_output_blocks > 0:
        cache_output(sim, r, request)
    end_request(sim, r, leave_decode(sim, r, np.int64(0)), np.int64(FINISHED))


@compiled
def _apply(sim, r, iterations, chunk, first_s, slope_s):
    """Let some planned iterations happen."""
    replica = replicas_of(sim)[r]
    seqs = replica.num_sequences
    if seqs > 0:
        take_pages(sim, r, growth_pages(sim, r, iterations))
    if chunk > 0:
        note_first_chunk(sim, r, chunk)
    span_s = jump_time_s(first_s, slope_s, iterations)
    replica.seen_s = replica.clock_s + jump_time_s(first_s, slope_s, iterations - 1)
    replica.clock_s += span_s
    replica.busy_s += span_s
    replica.measured_s += span_s
    replica.nominal_s += span_s / replica.slow_factor
    if replica.power_cap_w < np.inf:
        replica.nominal_s -= jump_time_s(
            replica.throttled_first_s, replica.throttled_slope_s, iterations
        )
        replica.throttled_first_s += iterations * replica.throttled_slope_s
    if chunk > 0:
        replica.prefill_s += span_s
        replica.num_prefill_iterations += iterations
    spend(sim, r, seqs, chunk, span_s)
    replica.has_preempted = 0
    replica.copied_s += replica.copy_s
    replica.copy_s = 0.0
    replica.num_iterations += iterations
    replica.num_steps += 1
    replica.decode_iteration += iterations
    replica.read_tokens += iterations * replica.context_tokens + (
        seqs * iterations * (iterations + 1) >> 1
    )
    replica.context_tokens += seqs * iterations
    replica.generated_tokens += seqs * iterations
    if replica.num_growing > 0:
        advance_windows(sim, r, iterations)
    if chunk > 0:
        _advance_prefill(sim, r, chunk * iterations)
    while (
        replica.num_decoding > 0
        and sequences_of(sim, r)[0].end_iteration <= replica.decode_iteration
    ):
        _finish_decode(sim, r)


@compiled
def idle_until(sim, r, until_s):
    """Move the clock of a replica on which nothing runs."""
    replica = replicas_of(sim)[r]
    if until_s > replica.clock_s:
        stand_by(sim, r, until_s - replica.clock_s)
        replica.clock_s = until_s


@compiled
def _update_slow_factor(sim, r):
    replica = replicas_of(sim)[r]
    while slowdowns_of(sim, r)[replica.next_slow_index].at_s <= replica.clock_s:
        replica.outer_factor = slowdowns_of(sim, r)[replica.next_slow_index].factor
        replica.slow_factor = replica.outer_factor * replica.warm_factor * replica.share_factor
        replica.next_slow_index += 1


@compiled
def _waits_for_room(sim, r, until_s):
    """Whether an idle replica can do nothing by a moment: requests on the move hold its pages."""
    replica = replicas_of(sim)[r]
    change_s = min(next_ready_s(sim, r), replica.change_at_s)
    if change_s > until_s:
        set_next_event(sim, r, change_s)
        return True
    idle_until(sim, r, change_s)
    return False


@compiled
def _prepare(sim, r, until_s):
    """Bring a replica to the start of its next iteration; return whether there is one.

    Leaves `next_event_s` at the time when there will be one, if it is known.
    """
    replica = replicas_of(sim)[r]
    if replica.clock_s > until_s:
        # A stall: nothing starts before it is over.
        set_next_event(sim, r, replica.clock_s)
        return False
    while True:
        is_idle = replica.num_prefilling + replica.num_decoding == 0
        if is_idle:
            ready_s = min(first_ready_s(sim, r), replica.change_at_s)
            if ready_s > until_s:
                set_next_event(sim, r, ready_s)
                return False
            idle_until(sim, r, ready_s)
            replica.seen_s = replica.clock_s
        _update_slow_factor(sim, r)
        if replica.change_at_s <= replica.clock_s:
            settle(sim, r)
        if replica.is_freezing != 0:
            settle_freeze(sim, r)
        if replica.has_preempted == 0:
            admit(sim, r)
        make_room(sim, r)
        if replica.num_prefilling + replica.num_decoding > 0:
            return True
        replica.has_preempted = 0
        if is_idle and replica.num_coming + replica.num_leaving == 0:
            fail_oversized(sim, r)
        elif is_idle and _waits_for_room(sim, r, until_s):
            return False


@compiled
def _apply_part(sim, r, until_s):
    """Take the iterations of the jump in progress that end by a moment; the rest stays planned."""
    replica = replicas_of(sim)[r]
    first_s, slope_s = replica.plan_first_s, replica.plan_slope_s
    span_s = until_s - replica.clock_s
    if span_s < first_s:
        return
    part = iterations_until(first_s, slope_s, span_s, replica.plan_iterations)
    if jump_time_s(first_s, slope_s, part) > span_s:
        part -= 1
    if part > 0:
        replica.plan_iterations -= part
        replica.plan_first_s += part * slope_s
        _apply(sim, r, part, replica.plan_chunk, first_s, slope_s)


@called_as("advance")
def advance(sim, r, until_s, is_partial):
    """Advance a replica through every change up to a moment.

    With `is_partial`, iterations of the jump in progress that end by then are taken as well, so
    that counters read at that moment are right. The jump stays planned until it is over or
    somebody wakes the replica (`due.wake`).
    """
    replica = replicas_of(sim)[r]
    if replica.is_up == 0:
        set_next_event(sim, r, np.inf)
        if is_partial:
            idle_until(sim, r, until_s)
        return
    while replica.plan_iterations > 0 or _prepare(sim, r, until_s):
        if replica.plan_iterations == 0:
            iterations, chunk, first_s, slope_s = _plan(sim, r)
            replica.plan_iterations = iterations
            replica.plan_chunk = chunk
            replica.plan_first_s = first_s
            replica.plan_slope_s = slope_s
        iterations = replica.plan_iterations
        first_s, slope_s = replica.plan_first_s, replica.plan_slope_s
        end_s = replica.clock_s + jump_time_s(first_s, slope_s, iterations)
        if end_s > until_s:
            set_next_event(sim, r, end_s)
            if is_partial:
                _apply_part(sim, r, until_s)
            return
        replica.plan_iterations = 0
        _apply(sim, r, iterations, replica.plan_chunk, first_s, slope_s)
    if is_partial:
        idle_until(sim, r, until_s)

"""One replica: continuous batching, chunked prefill, paged KV, preemption, and the jump.

While nothing is admitted, finished or preempted, iteration time is affine in the number of
iterations, so k iterations are taken at once: T(k) = first k + slope k (k - 1) / 2. A replica
is advanced lazily, and never past an iteration that starts after the given moment.

Does not know: other replicas, or why a request came here.
Source: vLLM's scheduler (decode first, then prefill chunks within a token budget; preemption by
recompute of the latest, least urgent request); the jump follows the project's prototype study.
"""

import numpy as np
from numba import njit

from ..latency import context_time_s, linear_time_s, other_time_s
from . import gateway
from .layout import DECODING, FAILED, FINISHED, NONE, NUM_PRIORITIES, PREFILLING, WAITING
from .memory import (
    actual_of,
    blocks_of,
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    knobs_of,
    next_events_of,
    page_phases_of,
    pinned_entries_of,
    replicas_of,
    requests_of,
    sequences_of,
    slowdowns_of,
)
from .prefix_cache import evict_oldest, find_entry, insert_pinned, is_held, pin, unpin
from .queues import (
    pop_prefill,
    pop_waiting,
    push_prefill,
    push_sequence,
    push_waiting,
    remove_sequence,
)

# Share of KV pages kept free at admission, so that running sequences can grow (vLLM's watermark).
WATERMARK_FRAC = 0.01


@njit(cache=True, nogil=True)
def _pages(tokens, fleet):
    return (tokens + fleet.page_tokens - 1) >> fleet.page_shift


@njit(cache=True, nogil=True)
def _available_pages(sim, r):
    replica = replicas_of(sim)[r]
    return replica.free_pages + replica.num_evictable_blocks * fleet_of(sim).block_pages


@njit(cache=True, nogil=True)
def _take_pages(sim, r, pages):
    replica = replicas_of(sim)[r]
    while replica.free_pages < pages:
        evict_oldest(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
        replica.free_pages += fleet_of(sim).block_pages
    replica.free_pages -= pages


@njit(cache=True, nogil=True)
def _unpin_blocks(sim, r, request):
    # Last block first, so that the tail of a prompt is evicted before its head.
    for position in range(request.pinned_blocks - 1, -1, -1):
        entry = pinned_entries_of(sim)[request.first_block + position]
        unpin(replicas_of(sim)[r], cache_of(sim, r), entry)
    request.pinned_blocks = 0


@njit(cache=True, nogil=True)
def _pin_hits(sim, r, request):
    """Pin the leading cached blocks of a request; at least one token is left to compute."""
    block_tokens = fleet_of(sim).block_pages * fleet_of(sim).page_tokens
    limit = min(request.num_blocks, (request.prefill_target_tokens - 1) // max(block_tokens, 1))
    for position in range(limit):
        block = blocks_of(sim)[request.first_block + position]
        if not is_held(holders_of(sim), block, r):
            break
        entry = find_entry(cache_table_of(sim, r), cache_of(sim, r), block)
        pin(replicas_of(sim)[r], cache_of(sim, r), entry)
        pinned_entries_of(sim)[request.first_block + position] = entry
        request.pinned_blocks += 1


@njit(cache=True, nogil=True)
def _try_admit(sim, r, index, waiting_index):
    """Move a waiting request to prefill if its KV pages can be had."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    fleet = fleet_of(sim)
    request.prefill_target_tokens = request.query.input_tokens + request.generated_tokens
    pages = _pages(request.prefill_target_tokens, fleet)
    reserve = int(WATERMARK_FRAC * replica.total_pages)
    if replica.num_prefilling + replica.num_decoding == 0:
        reserve = 0
    room = _available_pages(sim, r) - reserve
    if pages - request.num_blocks * fleet.block_pages > room:
        return False
    _pin_hits(sim, r, request)
    own_pages = pages - request.pinned_blocks * fleet.block_pages
    if own_pages > _available_pages(sim, r) - reserve:
        _unpin_blocks(sim, r, request)
        return False
    _take_pages(sim, r, own_pages)
    pop_waiting(replica, requests_of(sim), waiting_index)
    push_prefill(replica, requests_of(sim), index)
    request.status = PREFILLING
    request.admission = replica.num_admissions
    replica.num_admissions += 1
    request.prefill_done_tokens = request.pinned_blocks * fleet.block_pages * fleet.page_tokens
    replica.prefill_left_tokens += request.prefill_target_tokens - request.prefill_done_tokens
    if request.num_preemptions == 0:
        request.hit_tokens = request.prefill_done_tokens
        replica.hit_tokens += request.hit_tokens
        replica.prompt_tokens += request.query.input_tokens
    return True


@njit(cache=True, nogil=True)
def _prefill_budget(sim, r):
    replica = replicas_of(sim)[r]
    budget = int(replica.max_batch_tokens * knobs_of(sim).batch_tokens_scale)
    return max(budget - replica.num_decoding, fleet_of(sim).page_tokens)


@njit(cache=True, nogil=True)
def _admit(sim, r):
    """Admit waiting requests, most urgent first, while the next iteration has tokens for them."""
    replica = replicas_of(sim)[r]
    slots = max(1, int(replica.max_num_seqs * knobs_of(sim).max_num_seqs_frac))
    budget = _prefill_budget(sim, r)
    while (
        replica.num_waiting > 0
        and replica.num_prefilling + replica.num_decoding < slots
        and replica.prefill_left_tokens < budget
    ):
        is_admitted = False
        for k in range(NUM_PRIORITIES):
            head = replica.waiting_head[k]
            if head != NONE and requests_of(sim)[head].ready_s <= replica.clock_s:
                is_admitted = _try_admit(sim, r, head, k)
                break
        if not is_admitted:
            return


@njit(cache=True, nogil=True)
def _next_ready_s(sim, r):
    """Return when the next waiting request gets ready that admission has not seen yet."""
    replica = replicas_of(sim)[r]
    soonest_s = np.inf
    for k in range(NUM_PRIORITIES):
        head = replica.waiting_head[k]
        if head != NONE:
            ready_s = requests_of(sim)[head].ready_s
            if ready_s <= replica.clock_s:
                break  # ready, and blocked: nothing behind it is tried before it
            soonest_s = min(soonest_s, ready_s)
    return soonest_s


@njit(cache=True, nogil=True)
def _first_ready_s(sim, r):
    """Return when the first of the waiting requests is or was ready; infinity if there is none."""
    soonest_s = np.inf
    for k in range(NUM_PRIORITIES):
        head = replicas_of(sim)[r].waiting_head[k]
        if head != NONE:
            soonest_s = min(soonest_s, requests_of(sim)[head].ready_s)
    return soonest_s


@njit(cache=True, nogil=True)
def _release(sim, r, request, kv_tokens):
    """Give back a running request's KV pages; its cached blocks stay, unpinned."""
    fleet = fleet_of(sim)
    own_pages = _pages(kv_tokens, fleet) - request.pinned_blocks * fleet.block_pages
    replicas_of(sim)[r].free_pages += own_pages
    _unpin_blocks(sim, r, request)


@njit(cache=True, nogil=True)
def _leave_decode(sim, r, position):
    """Take a sequence out of the decode batch, free its pages, and return its request."""
    replica = replicas_of(sim)[r]
    index = remove_sequence(sequences_of(sim, r), replica.num_decoding, position)
    request = requests_of(sim)[index]
    replica.num_decoding -= 1
    taken = replica.decode_iteration - request.joined_iteration
    kv_tokens = request.prefill_target_tokens + taken
    request.generated_tokens += taken
    replica.context_tokens -= kv_tokens
    page_phases_of(sim, r)[request.page_phase] -= 1
    _release(sim, r, request, kv_tokens)
    return index


@njit(cache=True, nogil=True)
def _is_worse(a, b):
    """Whether request `a` is preempted before `b`: less urgent, or as urgent and later."""
    if a.query.priority != b.query.priority:
        return a.query.priority > b.query.priority
    return a.admission > b.admission


@njit(cache=True, nogil=True)
def _preempt_one(sim, r):
    """Preempt the least urgent, latest running request, to be recomputed. Needs two running."""
    replica, requests, heap = replicas_of(sim)[r], requests_of(sim), sequences_of(sim, r)
    worst, worst_position, worst_before = NONE, NONE, NONE
    for position in range(replica.num_decoding):
        index = heap[position].request
        if worst == NONE or _is_worse(requests[index], requests[worst]):
            worst, worst_position = index, position
    before, index = NONE, replica.prefill_head
    while index != NONE:
        if worst == NONE or _is_worse(requests[index], requests[worst]):
            worst, worst_position, worst_before = index, NONE, before
        before, index = index, requests[index].next
    if worst_position != NONE:
        _leave_decode(sim, r, worst_position)
    else:
        _unlink_prefill(replica, requests, worst, worst_before)
        lost = requests[worst]
        replica.prefill_left_tokens -= lost.prefill_target_tokens - lost.prefill_done_tokens
        _release(sim, r, lost, lost.prefill_target_tokens)
    requests[worst].status = WAITING
    requests[worst].num_preemptions += 1
    replica.num_preemptions += 1
    replica.has_preempted = 1
    push_waiting(replica, requests, worst, True)


@njit(cache=True, nogil=True)
def _unlink_prefill(replica, requests, index, before):
    if before == NONE:
        replica.prefill_head = requests[index].next
    else:
        requests[before].next = requests[index].next
    if requests[index].next == NONE:
        replica.prefill_tail = before
    replica.num_prefilling -= 1


@njit(cache=True, nogil=True)
def _growth_pages(sim, r, iterations):
    """Pages that the decode batch takes in the next iterations: one each `page_tokens`."""
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    mask = fleet.page_tokens - 1
    pages = (iterations >> fleet.page_shift) * replica.num_decoding
    for i in range(iterations & mask):
        pages += phases[(replica.decode_iteration + 1 + i) & mask]
    return pages


@njit(cache=True, nogil=True)
def _iterations_within_pages(sim, r, limit):
    """Return the most iterations, up to a limit, whose growth fits the available pages."""
    available = _available_pages(sim, r)
    fleet, replica, phases = fleet_of(sim), replicas_of(sim)[r], page_phases_of(sim, r)
    # Each sequence takes at most one page for every started cycle.
    if ((limit >> fleet.page_shift) + 1) * replica.num_decoding <= available:
        return limit
    if _growth_pages(sim, r, limit) <= available:
        return limit
    cycles = available // replica.num_decoding
    iterations = cycles << fleet.page_shift
    left = available - cycles * replica.num_decoding
    while iterations < limit:
        left -= phases[(replica.decode_iteration + 1 + iterations) & (fleet.page_tokens - 1)]
        if left < 0:
            break
        iterations += 1
    return iterations


@njit(cache=True, nogil=True)
def _make_room(sim, r):
    """Preempt until the next iteration's pages can be had; fail a lone request that cannot grow."""
    replica = replicas_of(sim)[r]
    # The batch can need at most a page a sequence; the exact count is only taken when it is tight.
    while replica.num_decoding > _available_pages(sim, r):
        if _growth_pages(sim, r, 1) <= _available_pages(sim, r):
            return
        if replica.num_decoding + replica.num_prefilling > 1:
            _preempt_one(sim, r)
        else:
            index = _leave_decode(sim, r, 0)
            _end_request(sim, r, index, FAILED)


@njit(cache=True, nogil=True)
def _end_request(sim, r, index, status):
    requests_of(sim)[index].status = status
    requests_of(sim)[index].finish_s = replicas_of(sim)[r].clock_s
    gateway.on_finish(sim, index)


@njit(cache=True, nogil=True)
def jump_time_s(first_s, slope_s, iterations):
    """Return the time of some iterations when each takes `slope_s` more than the one before."""
    return first_s * iterations + 0.5 * slope_s * iterations * (iterations - 1)


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _linear_s(sim, r, tokens):
    """Return the layers' time, remembered for the number of tokens last asked for."""
    replica = replicas_of(sim)[r]
    if tokens != replica.linear_tokens:
        replica.linear_tokens = tokens
        replica.linear_s = linear_time_s(actual_of(sim)[r], float(tokens))
    return replica.linear_s


@njit(cache=True, nogil=True)
def _plan(sim, r):
    """Return (iterations to the next change, chunk tokens, first_s, slope_s)."""
    replica, c = replicas_of(sim)[r], actual_of(sim)[r]
    seqs = replica.num_decoding
    chunk, positions, limit = 0, 0.0, np.int64(1) << np.int64(40)
    if replica.num_prefilling > 0:
        chunk, positions, limit = _prefill_work(sim, r, _prefill_budget(sim, r))
    if seqs > 0:
        to_finish = sequences_of(sim, r)[0].end_iteration - replica.decode_iteration
        limit = _iterations_within_pages(sim, r, min(limit, to_finish))
    if fleet_of(sim).is_single_step != 0 or replica.has_preempted != 0:
        limit = np.int64(1)
    context_s = context_time_s(c, chunk > 0)
    # An iteration reads the KV written so far and the token that it writes itself.
    context_tokens = replica.context_tokens + seqs
    first_s = _linear_s(sim, r, chunk + seqs) + context_s * context_tokens
    first_s += other_time_s(c, chunk, positions, seqs)
    slope_s = context_s * seqs
    if limit > 1:
        slope_s += c.prefill_attention_s * float(chunk) * chunk
    first_s, slope_s = first_s * replica.slow_factor, slope_s * replica.slow_factor
    change_s = min(_next_ready_s(sim, r), slowdowns_of(sim, r)[replica.next_slow_index].at_s)
    if limit > 1 and change_s < replica.clock_s + jump_time_s(first_s, slope_s, limit):
        limit = iterations_until(first_s, slope_s, change_s - replica.clock_s, limit)
    return limit, chunk, first_s, slope_s


@njit(cache=True, nogil=True)
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
        _release(sim, r, request, request.prefill_target_tokens)
        _end_request(sim, r, index, FINISHED)
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


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def _apply(sim, r, iterations, chunk, first_s, slope_s):
    """Let some planned iterations happen."""
    replica = replicas_of(sim)[r]
    seqs = replica.num_decoding
    if seqs > 0:
        _take_pages(sim, r, _growth_pages(sim, r, iterations))
    span_s = jump_time_s(first_s, slope_s, iterations)
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
        _end_request(sim, r, _leave_decode(sim, r, 0), FINISHED)


@njit(cache=True, nogil=True)
def idle_until(replica, until_s):
    """Move an idle replica's clock forward at idle power."""
    if until_s > replica.clock_s:
        replica.energy_j += replica.idle_w * (until_s - replica.clock_s)
        replica.clock_s = until_s


@njit(cache=True, nogil=True)
def _update_slow_factor(sim, r):
    replica = replicas_of(sim)[r]
    while slowdowns_of(sim, r)[replica.next_slow_index].at_s <= replica.clock_s:
        replica.slow_factor = slowdowns_of(sim, r)[replica.next_slow_index].factor
        replica.next_slow_index += 1


@njit(cache=True, nogil=True)
def _prepare(sim, r, until_s):
    """Bring a replica to the start of its next iteration; return whether there is one.

    Leaves `next_event_s` at the time when there will be one, if it is known.
    """
    replica = replicas_of(sim)[r]
    while True:
        is_idle = replica.num_prefilling + replica.num_decoding == 0
        if is_idle:
            ready_s = _first_ready_s(sim, r)
            if ready_s > until_s:
                next_events_of(sim)[r] = ready_s
                return False
            idle_until(replica, ready_s)
        _update_slow_factor(sim, r)
        if replica.has_preempted == 0:
            _admit(sim, r)
        _make_room(sim, r)
        if replica.num_prefilling + replica.num_decoding > 0:
            return True
        replica.has_preempted = 0
        if is_idle:
            _fail_oversized(sim, r)


@njit(cache=True, nogil=True)
def _fail_oversized(sim, r):
    """Fail the waiting request that an idle replica cannot admit: it exceeds the KV cache."""
    replica = replicas_of(sim)[r]
    for k in range(NUM_PRIORITIES):
        head = replica.waiting_head[k]
        if head != NONE and requests_of(sim)[head].ready_s <= replica.clock_s:
            _end_request(sim, r, pop_waiting(replica, requests_of(sim), k), FAILED)
            return


@njit(cache=True, nogil=True)
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

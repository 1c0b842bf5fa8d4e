"""Who runs on a replica: admission from the waiting lists, preemption, and the end of requests.

Does not know: iteration times.
Source: vLLM's scheduler (waiting requests are admitted while the iteration has tokens left;
preemption by recompute of the latest, least urgent request).
"""

import numpy as np

from ..compiled import compiled
from . import gateway
from .closed_loop import on_end
from .kv_pages import (
    available_pages,
    growth_pages,
    pages_of,
    pin_hits,
    release,
    take_pages,
    unpin_blocks,
)
from .layout import FAILED, NONE, NUM_PRIORITIES, PREFILLING, WAITING
from .memory import (
    fleet_of,
    knobs_of,
    page_phases_of,
    replicas_of,
    requests_of,
    sequences_of,
)
from .queues import pop_waiting, push_prefill, push_waiting, remove_sequence

# Share of KV pages kept free at admission, so that running sequences can grow (vLLM's watermark).
WATERMARK_FRAC = 0.01


@compiled
def seen_until_s(sim, r):
    """Return up to when the requests arrived that can be in the next batch.

    An engine that schedules ahead (vLLM's async scheduling, SGLang's overlap) has composed that
    batch at the start of the last iteration, so a request waits for one iteration more.
    """
    if fleet_of(sim).is_async_scheduling != 0:
        return replicas_of(sim)[r].seen_s
    return replicas_of(sim)[r].clock_s


@compiled
def prefill_budget(sim, r):
    """Return the prefill tokens that the next iteration has room for."""
    replica = replicas_of(sim)[r]
    budget = int(replica.max_batch_tokens * knobs_of(sim).batch_tokens_scale)
    return max(budget - replica.num_decoding, fleet_of(sim).page_tokens)


@compiled
def _try_admit(sim, r, index, waiting_index):
    """Move a waiting request to prefill if its KV pages can be had."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    fleet = fleet_of(sim)
    request.prefill_target_tokens = request.query.input_tokens + request.generated_tokens
    pages = pages_of(request.prefill_target_tokens, fleet)
    reserve = int(WATERMARK_FRAC * replica.total_pages)
    if replica.num_prefilling + replica.num_decoding == 0:
        reserve = 0
    room = available_pages(sim, r) - reserve
    if pages - request.num_blocks * fleet.block_pages > room:
        return False
    pin_hits(sim, r, request)
    own_pages = pages - request.pinned_blocks * fleet.block_pages
    if own_pages > available_pages(sim, r) - reserve:
        unpin_blocks(sim, r, request)
        return False
    take_pages(sim, r, own_pages)
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


@compiled
def admit(sim, r):
    """Admit waiting requests, most urgent first, while the next iteration has tokens for them."""
    replica = replicas_of(sim)[r]
    slots = max(1, int(replica.max_num_seqs * knobs_of(sim).max_num_seqs_frac))
    budget = prefill_budget(sim, r)
    seen_s = seen_until_s(sim, r)
    while (
        replica.num_waiting > 0
        and replica.num_prefilling + replica.num_decoding < slots
        and replica.prefill_left_tokens < budget
    ):
        is_admitted = False
        for k in range(NUM_PRIORITIES):
            head = replica.waiting_head[k]
            if head != NONE and requests_of(sim)[head].ready_s <= seen_s:
                is_admitted = _try_admit(sim, r, head, k)
                break
        if not is_admitted:
            return


@compiled
def next_ready_s(sim, r):
    """Return when the next waiting request gets ready that admission has not seen yet."""
    replica, seen_s = replicas_of(sim)[r], seen_until_s(sim, r)
    soonest_s = np.inf
    for k in range(NUM_PRIORITIES):
        head = replica.waiting_head[k]
        if head != NONE:
            ready_s = requests_of(sim)[head].ready_s
            if ready_s <= seen_s:
                break  # ready, and blocked: nothing behind it is tried before it
            soonest_s = min(soonest_s, ready_s)
    return soonest_s


@compiled
def first_ready_s(sim, r):
    """Return when the first of the waiting requests is or was ready; infinity if there is none."""
    soonest_s = np.inf
    for k in range(NUM_PRIORITIES):
        head = replicas_of(sim)[r].waiting_head[k]
        if head != NONE:
            soonest_s = min(soonest_s, requests_of(sim)[head].ready_s)
    return soonest_s


@compiled
def leave_decode(sim, r, position):
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
    release(sim, r, request, kv_tokens)
    return index


@compiled
def _is_worse(a, b):
    """Whether request `a` is preempted before `b`: less urgent, or as urgent and later."""
    if a.query.priority != b.query.priority:
        return a.query.priority > b.query.priority
    return a.admission > b.admission


@compiled
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
        leave_decode(sim, r, worst_position)
    else:
        _unlink_prefill(replica, requests, worst, worst_before)
        lost = requests[worst]
        replica.prefill_left_tokens -= lost.prefill_target_tokens - lost.prefill_done_tokens
        release(sim, r, lost, lost.prefill_target_tokens)
    requests[worst].status = WAITING
    requests[worst].num_preemptions += 1
    replica.num_preemptions += 1
    replica.has_preempted = 1
    push_waiting(replica, requests, worst, True)


@compiled
def _unlink_prefill(replica, requests, index, before):
    if before == NONE:
        replica.prefill_head = requests[index].next
    else:
        requests[before].next = requests[index].next
    if requests[index].next == NONE:
        replica.prefill_tail = before
    replica.num_prefilling -= 1


@compiled
def make_room(sim, r):
    """Preempt until the next iteration's pages can be had; fail a lone request that cannot grow."""
    replica = replicas_of(sim)[r]
    # The batch can need at most a page a sequence; the exact count is only taken when it is tight.
    while replica.num_decoding > available_pages(sim, r):
        if growth_pages(sim, r, 1) <= available_pages(sim, r):
            return
        if replica.num_decoding + replica.num_prefilling > 1:
            _preempt_one(sim, r)
        else:
            index = leave_decode(sim, r, 0)
            end_request(sim, r, index, FAILED)


@compiled
def end_request(sim, r, index, status):
    """Note that a request ended, finished or failed."""
    requests_of(sim)[index].status = status
    requests_of(sim)[index].finish_s = replicas_of(sim)[r].clock_s
    gateway.on_finish(sim, index)
    on_end(sim, replicas_of(sim)[r].clock_s)


@compiled
def fail_oversized(sim, r):
    """Fail the waiting request that an idle replica cannot admit: it exceeds the KV cache."""
    replica = replicas_of(sim)[r]
    for k in range(NUM_PRIORITIES):
        head = replica.waiting_head[k]
        if head != NONE and requests_of(sim)[head].ready_s <= replica.clock_s:
            end_request(sim, r, pop_waiting(replica, requests_of(sim), k), FAILED)
            return

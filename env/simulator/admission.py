"""Who runs on a replica: admission from the waiting lists, preemption, and the end of requests.

Does not know: iteration times.
Source: vLLM `v1/core/sched/scheduler.py`: waiting requests are admitted while the iteration has
tokens left and if their whole prompt fits (`scheduler_reserve_full_isl`); one whose LoRA adapter
finds no slot is passed over; preemption takes the latest, least urgent request.
"""

import numpy as np

from ..compiled import compiled
from . import calls, gateway
from .adapters import can_use_adapter, use_adapter
from .calls import called_as
from .closed_loop import on_end
from .freeze import pop_latest_frozen
from .host_tier import load_blocks
from .kv_pages import (
    available_pages,
    growth_pages,
    pin_hits,
    request_pages,
    take_pages,
    unpin_blocks,
)
from .layout import FAILED, NONE, NUM_PRIORITIES, PREFILLING, WAITING
from .life import Moment, note, note_end
from .memory import (
    fleet_of,
    hosts_of,
    knobs_of,
    replicas_of,
    requests_of,
    sequences_of,
)
from .queues import pop_waiting, push_prefill, push_waiting, remove_prefill, remove_waiting
from .sequences import held_tokens, leave_decode, let_go
from .swap import swap_in, swap_out


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
    share = knobs_of(sim).batch_tokens_scale * replica.token_budget_frac
    budget = int(replica.max_batch_tokens * share)
    return max(budget - replica.num_sequences, fleet_of(sim).page_tokens)


@compiled
def running_sequences(replica):
    """Return the sequences that prefill or decode."""
    return replica.num_prefill_sequences + replica.num_sequences


@compiled
def _take_prompt_pages(sim, r, request, kv_tokens):
    """Take the pages that a request needs to run; return if they could be had, and how many."""
    replica, fleet = replicas_of(sim)[r], fleet_of(sim)
    pages = request_pages(request, kv_tokens, fleet)
    reserve = replica.reserve_pages
    if replica.num_prefilling + replica.num_decoding == 0:
        reserve = 0
    if pages - request.num_blocks * fleet.block_pages > available_pages(sim, r) - reserve:
        return False, pages
    pin_hits(sim, r, request)
    own_pages = pages - request.pinned_blocks * fleet.block_pages
    if own_pages > available_pages(sim, r) - reserve:
        unpin_blocks(sim, r, request)
        return False, pages
    take_pages(sim, r, own_pages)
    return True, own_pages


@compiled
def _start_prefill(sim, r, index):
    """Move a request whose pages are taken to prefill, behind what is cached of its prompt."""
    replica, request, fleet = replicas_of(sim)[r], requests_of(sim)[index], fleet_of(sim)
    if hosts_of(sim)[r].is_tier != 0:
        load_blocks(sim, r, request)
    push_prefill(replica, requests_of(sim), index)
    request.status = PREFILLING
    request.prefill_done_tokens = request.pinned_blocks * fleet.block_pages * fleet.page_tokens
    replica.prefill_left_tokens += request.prefill_target_tokens - request.prefill_done_tokens
    note(sim, index, Moment.ADMITTED, replica.clock_s, r, request.prefill_done_tokens)
    if request.num_preemptions == 0:
        request.hit_tokens = request.prefill_done_tokens
        replica.hit_tokens += request.hit_tokens
        replica.prompt_tokens += request.query.input_tokens


@compiled
def _try_admit(sim, r, index, before, k):
    """Let a waiting request run if its KV pages can be had: prefill, or decode if swapped out."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    is_swapped = request.host_pages > 0
    if is_swapped:
        kv_tokens = held_tokens(request)
        request.prefill_target_tokens = kv_tokens
    else:
        # After a preemption each of several sequences computes its own answer again.
        kv_tokens = request.query.input_tokens + request.generated_tokens
        extra_tokens = request.extra_sequences * request.generated_tokens
        request.prefill_target_tokens = kv_tokens + extra_tokens
    is_taken, own_pages = _take_prompt_pages(sim, r, request, kv_tokens)
    if not is_taken:
        return False
    remove_waiting(replica, requests_of(sim), k, before, index)
    request.admission = replica.num_admissions
    replica.num_admissions += 1
    use_adapter(sim, r, request.adapter)
    if is_swapped:
        swap_in(sim, r, index, own_pages)
    else:
        _start_prefill(sim, r, index)
    return True


@compiled
def _candidate(sim, r, k):
    """Return the first of a waiting list that its adapter does not hold up, and the one before."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    before, index = np.int64(NONE), np.int64(replica.waiting_head[k])
    while (
        index != NONE
        and requests[index].ready_s <= replica.clock_s
        and not can_use_adapter(sim, r, requests[index].adapter)
    ):
        before, index = index, np.int64(requests[index].next)
    return index, before


@compiled
def _has_slots(sim, r, request, slots):
    """Whether all sequences of a request find slots; alone it may use more than the knob gives."""
    replica = replicas_of(sim)[r]
    running = running_sequences(replica) + replica.num_coming
    if running == 0:
        return request.extra_sequences < replica.max_num_seqs
    return running + request.extra_sequences < slots


@called_as("admit")
def admit(sim, r):
    """Admit waiting requests, most urgent first, while the next iteration has tokens for them."""
    replica = replicas_of(sim)[r]
    slots = max(1, int(replica.max_num_seqs * knobs_of(sim).max_num_seqs_frac))
    budget = prefill_budget(sim, r)
    seen_s = seen_until_s(sim, r)
    while (
        replica.num_waiting > 0
        and running_sequences(replica) + replica.num_coming < slots
        and replica.prefill_left_tokens < budget
    ):
        is_admitted = False
        for k in range(NUM_PRIORITIES):
            index, before = replica.waiting_head[k], np.int64(NONE)
            if replica.max_adapters > 0:
                index, before = _candidate(sim, r, k)
            if index != NONE and requests_of(sim)[index].ready_s <= seen_s:
                if _has_slots(sim, r, requests_of(sim)[index], slots):
                    is_admitted = _try_admit(sim, r, index, before, k)
                break
        if not is_admitted:
            return


@compiled
def next_ready_s(sim, r):
    """Return when the next waiting request gets ready that admission has not seen yet."""
    replica, seen_s = replicas_of(sim)[r], seen_until_s(sim, r)
    soonest_s = np.inf
    for k in range(NUM_PRIORITIES):
        index = replica.waiting_head[k]
        if replica.max_adapters > 0:
            index, _ = _candidate(sim, r, k)
        if index != NONE:
            ready_s = requests_of(sim)[index].ready_s
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
def _is_worse(a, b):
    """Whether request `a` is preempted before `b`: less urgent, or as urgent and later."""
    if a.query.priority != b.query.priority:
        return a.query.priority > b.query.priority
    return a.admission > b.admission


@compiled
def _take_worst(sim, r):
    """Take the least urgent, latest running request off; return (which, whether it decoded)."""
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
        return worst, True
    lost = requests[worst]
    remove_prefill(replica, requests, worst, worst_before)
    replica.prefill_left_tokens -= lost.prefill_target_tokens - lost.prefill_done_tokens
    let_go(sim, r, lost, lost.query.input_tokens + lost.generated_tokens)
    return worst, False


@called_as("preempt_one")
def preempt_one(sim, r):
    """Preempt the latest request that stands still, or else the least urgent, latest running one.

    Needs one that stands still, or two that run.
    """
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    if replica.num_frozen > 0:
        worst, has_decoded = pop_latest_frozen(sim, r), True
        let_go(sim, r, requests[worst], np.int64(requests[worst].prefill_target_tokens))
    else:
        worst, has_decoded = _take_worst(sim, r)
    lost = requests[worst]
    lost.status = WAITING
    lost.num_preemptions += 1
    replica.num_preemptions += 1
    replica.has_preempted = 1
    note(sim, worst, Moment.PREEMPTED, replica.clock_s, r, lost.generated_tokens)
    if has_decoded and replica.is_swapping != 0:
        swap_out(sim, r, worst)
    push_waiting(replica, requests, worst, True)


@compiled
def make_room(sim, r):
    """Preempt until the next iteration's pages can be had; fail a lone request that cannot grow."""
    replica = replicas_of(sim)[r]
    # The batch can need at most a page a sequence; the exact count is only taken when it is tight.
    while replica.num_sequences > available_pages(sim, r):
        if growth_pages(sim, r, np.int64(1)) <= available_pages(sim, r):
            return
        if replica.num_frozen > 0 or replica.num_decoding + replica.num_prefilling > 1:
            calls.preempt_one(sim, r)
        else:
            index = leave_decode(sim, r, np.int64(0))
            end_request(sim, r, index, np.int64(FAILED))


@compiled
def end_request(sim, r, index, status):
    """Note that a request ended, finished or failed."""
    requests_of(sim)[index].status = status
    requests_of(sim)[index].finish_s = replicas_of(sim)[r].clock_s
    note_end(sim, index)
    gateway.on_finish(sim, index)
    on_end(sim, replicas_of(sim)[r].clock_s)


@compiled
def fail_oversized(sim, r):
    """Fail the waiting request that an idle replica cannot admit: it exceeds the KV cache."""
    replica = replicas_of(sim)[r]
    for k in range(NUM_PRIORITIES):
        head = replica.waiting_head[k]
        if head != NONE and requests_of(sim)[head].ready_s <= replica.clock_s:
            end_request(sim, r, pop_waiting(replica, requests_of(sim), k), np.int64(FAILED))
            return

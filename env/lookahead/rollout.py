"""A rollout: one replica run to the end of all it has, with one draw of the lengths.

Continuous batching with chunked prefill, as in the simulator: decoding sequences first, then
prompts in the queue's order within the token budget, several iterations at once while nothing
changes. Nothing new arrives.

Does not know: where the situation comes from (`situation.py`), or what follows from the outcome.
"""

import numpy as np

from ..compiled import compiled
from ..jump import iterations_until, jump_time_s
from .situation import HEAP, QUEUE, RING, START, chunk_budget, iteration_times_s

# Changes of the batch, per request, after which a rollout is given up: preemptions can go in rings.
_MOST_CHANGES = 40
_ENDLESS = np.int64(1) << np.int64(40)


# A place of the heap holds the iteration at which a job ends and, below these bits, its number.
_JOB_BITS = np.int64(20)
_JOB_MASK = (np.int64(1) << _JOB_BITS) - 1


@compiled
def _push_heap(heap, count, entry):
    i = count
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent] <= entry:
            break
        heap[i] = heap[parent]
        i = parent
    heap[i] = entry


@compiled
def _remove_heap(heap, count, place):
    """Take out one place of a heap of `count`; the rest stays a heap."""
    last = heap[count - 1]
    count -= 1
    if place == count:
        return
    i = place
    while i > 0 and heap[(i - 1) >> 1] > last:
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    while True:
        child = 2 * i + 1
        if child >= count:
            break
        if child + 1 < count and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= last:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last


@compiled
def _own_tokens(job):
    """KV that a job holds of its own, not counting what was cached before it came."""
    return job.uncached_tokens + job.sequences * job.generated_tokens


@compiled
def _join(run, jobs, heap, j):
    """Let a job decode."""
    job = jobs[j]
    end_iteration = run.iteration + job.length - job.generated_tokens
    _push_heap(heap, run.num_decoding, (end_iteration << _JOB_BITS) | j)
    run.num_decoding += 1
    run.decode_seqs += job.sequences
    run.context_tokens += job.sequences * (job.input_tokens + job.generated_tokens - 1)


@compiled
def _part(run, jobs, heap, place):
    """Take a job out of the batch and give its KV back; return it."""
    j, end_iteration = heap[place] & _JOB_MASK, heap[place] >> _JOB_BITS
    job = jobs[j]
    _remove_heap(heap, run.num_decoding, place)
    job.generated_tokens = job.length - (end_iteration - run.iteration)
    run.num_decoding -= 1
    run.decode_seqs -= job.sequences
    run.context_tokens -= job.sequences * (job.input_tokens + job.generated_tokens - 1)
    run.held_tokens -= _own_tokens(job)
    return j


@compiled
def _begin(run, rows, jobs, lists, sample, with_new):
    """Set all that moves to the situation's start."""
    run.clock_s = run.start_s
    run.iteration = run.num_decoding = run.decode_seqs = run.prefill_seqs = 0
    run.context_tokens = run.held_tokens = run.num_prefilling = run.prefill_first = 0
    run.prefill_left_tokens = run.is_closed = 0
    run.goodput = run.own_goodput = 0.0
    for j in range(run.num_jobs + with_new):
        job = jobs[j]
        job.length = rows[job.row].lengths[sample]
        job.generated_tokens = job.streamed_tokens
        job.first_token_s = job.streamed_at_s
        job.finish_s = np.inf
        job.done_tokens = job.begun_tokens
        job.left_tokens = max(1, job.input_tokens - job.begun_tokens)
        if j < run.num_running:
            job.admission = j
            run.held_tokens += _own_tokens(job)
            _join(run, jobs, lists[HEAP], j)
    run.num_admissions = run.num_running
    # Room in front, for those that are preempted.
    run.next_waiting = run.end_waiting = run.num_jobs + 1
    queue, start = lists[QUEUE], lists[START]
    num_waiting = run.num_jobs - run.num_running
    for i in range(num_waiting + 1):
        if with_new != 0 and i == run.new_place:
            queue[run.end_waiting] = run.num_jobs
            run.end_waiting += 1
        if i < num_waiting:
            queue[run.end_waiting] = start[i]
            run.end_waiting += 1


@compiled
def _is_next_ready(run, jobs, queue):
    """Bring the next ready job to the head of the queue; only the one in hand may not be ready."""
    i = run.next_waiting
    if jobs[queue[i]].ready_s <= run.clock_s:
        return True
    if i + 1 >= run.end_waiting or jobs[queue[i + 1]].ready_s > run.clock_s:
        return False
    queue[i], queue[i + 1] = queue[i + 1], queue[i]
    return True


@compiled
def _admit(run, jobs, lists):
    """Admit those that wait while the next iteration has tokens, slots and KV for them."""
    queue, ring = lists[QUEUE], lists[RING]
    while run.next_waiting < run.end_waiting and run.prefill_left_tokens < chunk_budget(run):
        if not _is_next_ready(run, jobs, queue):
            return
        j = queue[run.next_waiting]
        job = jobs[j]
        running = run.decode_seqs + run.prefill_seqs
        is_full = run.held_tokens + _own_tokens(job) > run.kv_tokens
        if running > 0 and (is_full or running + job.sequences > run.max_num_seqs):
            return
        run.next_waiting += 1
        if is_full:
            continue  # more than the whole KV cache: it never runs
        job.admission = run.num_admissions
        run.num_admissions += 1
        ring[(run.prefill_first + run.num_prefilling) % ring.size] = j
        run.num_prefilling += 1
        run.prefill_seqs += job.sequences
        run.prefill_left_tokens += job.left_tokens
        run.held_tokens += _own_tokens(job)


@compiled
def _preempt(run, jobs, lists):
    """Put the least urgent, latest decoding job back to the head of the queue; or fail it."""
    heap, queue = lists[HEAP], lists[QUEUE]
    place = 0
    for i in range(1, run.num_decoding):
        one, other = jobs[heap[i] & _JOB_MASK], jobs[heap[place] & _JOB_MASK]
        if one.priority > other.priority or (
            one.priority == other.priority and one.admission > other.admission
        ):
            place = i
    j = _part(run, jobs, heap, place)
    if run.num_decoding + run.num_prefilling == 0 or run.next_waiting == 0:
        return
    job = jobs[j]
    job.done_tokens = job.input_tokens - job.uncached_tokens
    job.left_tokens = job.uncached_tokens + job.sequences * job.generated_tokens
    run.next_waiting -= 1
    queue[run.next_waiting] = j
    run.is_closed = 1


@compiled
def _chunk(run, jobs, ring):
    """Return the next iteration's prefill: tokens, positions, whole iterations like it, start."""
    budget = chunk_budget(run)
    head = jobs[ring[run.prefill_first]]
    if head.left_tokens > budget:
        positions = budget * head.done_tokens + budget * (budget + 1) / 2.0
        return budget, positions, (head.left_tokens + budget - 1) // budget - 1, head.done_tokens
    tokens, positions = 0, 0.0
    for i in range(run.num_prefilling):
        job = jobs[ring[(run.prefill_first + i) % ring.size]]
        part = min(job.left_tokens, budget - tokens)
        positions += part * job.done_tokens + part * (part + 1) / 2.0
        tokens += part
        if tokens >= budget:
            break
    return tokens, positions, np.int64(1), head.done_tokens


@compiled
def _judge(run, job):
    """Note the end of a job, and its weight if it met its limits."""
    job.finish_s = run.clock_s
    if job.weight > 0.0 and job.first_token_s <= job.ttft_due_s:
        span_s = run.clock_s - job.first_token_s
        if span_s <= job.tpot_limit_s * (job.length - 1):
            run.goodput += job.weight
            if job.row == run.new_row:
                run.own_goodput += job.weight


@compiled
def _spend_prefill(run, jobs, lists, tokens):
    """Spend prefill tokens on the ring's head and those behind it; end those that complete."""
    ring = lists[RING]
    run.prefill_left_tokens -= tokens
    while tokens > 0:
        j = ring[run.prefill_first]
        job = jobs[j]
        part = min(tokens, job.left_tokens)
        job.left_tokens -= part
        job.done_tokens += part
        tokens -= part
        if job.left_tokens > 0:
            return
        run.prefill_first = (run.prefill_first + 1) % ring.size
        run.num_prefilling -= 1
        run.prefill_seqs -= job.sequences
        if np.isnan(job.first_token_s):
            job.first_token_s = run.clock_s
        run.held_tokens -= _own_tokens(job)
        job.generated_tokens += 1
        if job.generated_tokens >= job.length:
            _judge(run, job)
            continue
        run.held_tokens += _own_tokens(job)
        _join(run, jobs, lists[HEAP], j)


@compiled
def _take_iterations(run, jobs, lists, coefficients, linear_s):
    """Take all iterations up to the next change of the batch."""
    heap = lists[HEAP]
    chunk, positions, limit, start_tokens = 0, 0.0, _ENDLESS, 0
    if run.num_prefilling > 0:
        chunk, positions, limit, start_tokens = _chunk(run, jobs, lists[RING])
    seqs = run.decode_seqs
    if seqs > 0:
        limit = min(limit, (heap[0] >> _JOB_BITS) - run.iteration)
        limit = min(limit, max(np.int64(1), (run.kv_tokens - run.held_tokens) // seqs))
    if run.is_closed != 0:
        limit = np.int64(1)
        run.is_closed = 0
    batch = (chunk, positions, seqs, run.context_tokens)
    first_s, slope_s = iteration_times_s(coefficients, linear_s, batch, start_tokens)
    first_s, slope_s = first_s * run.slow_factor, slope_s * run.slow_factor
    if limit > 1 and run.next_waiting < run.end_waiting:
        wait_s = jobs[lists[QUEUE, run.next_waiting]].ready_s - run.clock_s
        if 0.0 < wait_s < jump_time_s(first_s, slope_s, limit):
            limit = iterations_until(first_s, slope_s, wait_s, limit)
    run.clock_s += jump_time_s(first_s, slope_s, limit)
    run.iteration += limit
    run.context_tokens += seqs * limit
    run.held_tokens += seqs * limit
    if chunk > 0:
        _spend_prefill(run, jobs, lists, chunk * limit)
    while run.num_decoding > 0 and heap[0] >> _JOB_BITS <= run.iteration:
        _judge(run, jobs[_part(run, jobs, heap, 0)])


@compiled
def _is_decided(run, jobs, heap, coefficients, linear_s):
    """Whether all that still decodes is sure to meet its limits, or has missed one; counts it.

    Nothing waits, so iterations are no longer than the present one and the growth of the contexts
    make them, tile padding aside: sequences only leave.
    """
    batch = (0, 0.0, run.decode_seqs, run.context_tokens)
    first_s, slope_s = iteration_times_s(coefficients, linear_s, batch, 0)
    first_s, slope_s = first_s * run.slow_factor, slope_s * run.slow_factor
    gained, own_gained, grown_tokens = 0.0, 0.0, 0
    for i in range(run.num_decoding):
        job = jobs[heap[i] & _JOB_MASK]
        left = (heap[i] >> _JOB_BITS) - run.iteration
        grown_tokens += left * job.sequences
        if job.weight > 0.0 and job.first_token_s <= job.ttft_due_s:
            spent_s, most_s = run.clock_s - job.first_token_s, job.tpot_limit_s * (job.length - 1)
            if spent_s + jump_time_s(first_s, slope_s, left) <= most_s:
                gained += job.weight
                if job.row == run.new_row:
                    own_gained += job.weight
            elif spent_s <= most_s:
                return False
    if run.held_tokens + grown_tokens > run.kv_tokens:
        return False
    run.goodput += gained
    run.own_goodput += own_gained
    return True


@compiled
def rollout(run, rows, jobs, lists, coefficients, linear_s, sample, with_new):
    """Return the weighted goodput of all that a replica has, with or without the one in hand.

    `with_new` is 1 or 0. If the run `is_whole`, what became of each job stands in `jobs` until the
    next rollout; else it ends as soon as the rest is certain.

    Shapes: as in `situation.prepare`, which has filled `run`, `jobs` and `lists`.
    """
    _begin(run, rows, jobs, lists, sample, with_new)
    num_to_check = _ENDLESS if run.is_whole == 0 and coefficients.window_tokens == 0.0 else -1
    for _ in range(_MOST_CHANGES * (run.num_jobs + 2)):
        if run.is_closed == 0:
            _admit(run, jobs, lists)
        if run.num_prefilling + run.num_decoding == 0:
            if run.next_waiting >= run.end_waiting:
                break
            run.clock_s = max(run.clock_s, jobs[lists[QUEUE, run.next_waiting]].ready_s)
            run.is_closed = 0
            continue
        is_tail = run.num_prefilling == 0 and run.next_waiting >= run.end_waiting
        if is_tail and run.num_decoding <= num_to_check:
            if _is_decided(run, jobs, lists[HEAP], coefficients, linear_s):
                break
            # Looked at anew when a quarter of them has ended.
            num_to_check = run.num_decoding * 3 // 4
        if run.decode_seqs > run.kv_tokens - run.held_tokens and run.num_decoding > 0:
            _preempt(run, jobs, lists)
            continue
        _take_iterations(run, jobs, lists, coefficients, linear_s)
    return run.goodput


__all__ = ["rollout"]

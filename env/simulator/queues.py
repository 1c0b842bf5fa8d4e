"""Queues of one replica: waiting lists by priority, prefilling list, heap of decoding sequences.

The lists run through the request table; the heap is keyed by the decode iteration at which a
sequence ends, so an iteration costs nothing per sequence.

Does not know: time, KV pages or latency.
"""

import numpy as np

from ..compiled import compiled
from .layout import NONE, NUM_PRIORITIES


@compiled
def waiting_list(request):
    """Return the waiting list that a request belongs to: its priority, the last for all beyond."""
    return min(request.query.priority, NUM_PRIORITIES - 1)


@compiled
def push_waiting(replica, requests, index, is_front):
    """Append a request to its waiting list, or put it in front after a preemption."""
    k = waiting_list(requests[index])
    requests[index].next = NONE
    if replica.waiting_head[k] == NONE:
        replica.waiting_head[k] = index
        replica.waiting_tail[k] = index
    elif is_front:
        requests[index].next = replica.waiting_head[k]
        replica.waiting_head[k] = index
    else:
        requests[replica.waiting_tail[k]].next = index
        replica.waiting_tail[k] = index
    replica.num_waiting += 1


@compiled
def pop_waiting(replica, requests, k):
    """Remove and return the head of a waiting list that is not empty."""
    index = replica.waiting_head[k]
    remove_waiting(replica, requests, np.int64(k), np.int64(NONE), index)
    return index


@compiled
def remove_waiting(replica, requests, k, before, index):
    """Remove a request from a waiting list; `before` is the one before it or `NONE`."""
    if before == NONE:
        replica.waiting_head[k] = requests[index].next
    else:
        requests[before].next = requests[index].next
    if requests[index].next == NONE:
        replica.waiting_tail[k] = before
    replica.num_waiting -= 1


@compiled
def push_prefill(replica, requests, index):
    """Append a request to the list of those in prefill."""
    requests[index].next = NONE
    if replica.prefill_head == NONE:
        replica.prefill_head = index
    else:
        requests[replica.prefill_tail].next = index
    replica.prefill_tail = index
    replica.num_prefilling += 1
    replica.num_prefill_sequences += 1 + requests[index].extra_sequences


@compiled
def pop_prefill(replica, requests):
    """Remove and return the head of the prefilling list."""
    index = replica.prefill_head
    remove_prefill(replica, requests, index, np.int64(NONE))
    return index


@compiled
def remove_prefill(replica, requests, index, before):
    """Remove a request from the prefilling list; `before` is the one before it or `NONE`."""
    if before == NONE:
        replica.prefill_head = requests[index].next
    else:
        requests[before].next = requests[index].next
    if requests[index].next == NONE:
        replica.prefill_tail = before
    replica.num_prefilling -= 1
    replica.num_prefill_sequences -= 1 + requests[index].extra_sequences


@compiled
def _swap(heap, a, b):
    end_iteration, request = heap[a].end_iteration, heap[a].request
    heap[a].end_iteration, heap[a].request = heap[b].end_iteration, heap[b].request
    heap[b].end_iteration, heap[b].request = end_iteration, request


@compiled
def _sift_up(heap, child):
    while child > 0:
        parent = (child - 1) >> 1
        if heap[parent].end_iteration <= heap[child].end_iteration:
            return
        _swap(heap, parent, child)
        child = parent


@compiled
def _sift_down(heap, size, parent):
    while True:
        child = 2 * parent + 1
        if child >= size:
            return
        if child + 1 < size and heap[child + 1].end_iteration < heap[child].end_iteration:
            child += 1
        if heap[parent].end_iteration <= heap[child].end_iteration:
            return
        _swap(heap, parent, child)
        parent = child


@compiled
def push_sequence(heap, size, end_iteration, request):
    """Add a decoding request to a heap of `size` requests."""
    heap[size].end_iteration = end_iteration
    heap[size].request = request
    _sift_up(heap, size)


@compiled
def remove_sequence(heap, size, position):
    """Remove the request at a position of a heap of `size` and return it."""
    request = heap[position].request
    last = size - 1
    if position != last:
        heap[position].end_iteration = heap[last].end_iteration
        heap[position].request = heap[last].request
        _sift_down(heap, last, position)
        _sift_up(heap, position)
    return request

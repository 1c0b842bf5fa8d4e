"""Batch requests that stand still with their KV, so that a replica's memory grows no further.

While a replica freezes, a decoding batch request whose context exceeds the limit leaves the batch
at the end of an iteration and keeps pages, slots and adapter. It goes on where it was when the
limit is lifted or raised. A crash takes it like others; a replica that drains lets it go on first.
It cannot move meanwhile. When the batch needs pages that cannot be had, the latest that stands
still is preempted, before anything that runs.

Does not know: when to freeze or for how long; a run's end lifts all limits (`..simulated_fleet`).
"""

import numpy as np

from ..compiled import compiled
from .calls import called_as
from .due import wake
from .layout import FROZEN, NONE
from .life import Moment, note
from .memory import fleet_of, replicas_of, requests_of, sequences_of
from .sequences import detach, start_decoding


@compiled
def set_freeze(sim, r, most_tokens):
    """Let batch requests with more context stand still from the next iteration on; or none."""
    replica, now_s = replicas_of(sim)[r], fleet_of(sim).now_s
    replica.freeze_tokens = most_tokens
    replica.freeze_from_s = now_s
    replica.is_freezing = 1
    replica.change_at_s = min(replica.change_at_s, now_s)
    wake(sim, r, now_s)


@compiled
def order_freeze(handle, r, most_tokens):
    """Let batch requests of a replica with more context stand still; infinity lets all go on."""
    sim = handle[0]
    if most_tokens < np.inf or replicas_of(sim)[r].is_freezing != 0:
        set_freeze(sim, r, most_tokens)


@compiled
def forget_freeze(replica):
    """Forget what a crashed engine was told, after it has lost all requests."""
    replica.is_freezing = 0
    replica.freeze_tokens = np.inf


@compiled
def _push_frozen(sim, r, index):
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    requests[index].next = NONE
    if replica.frozen_head == NONE:
        replica.frozen_head = index
    else:
        requests[replica.frozen_tail].next = index
    replica.frozen_tail = index


@compiled
def _leave_list(sim, r, index, before):
    """Take a request off the list; `before` is the one before it or `NONE`."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    if before == NONE:
        replica.frozen_head = requests[index].next
    else:
        requests[before].next = requests[index].next
    if requests[index].next == NONE:
        replica.frozen_tail = before
    replica.num_frozen -= 1
    replica.num_coming -= 1 + requests[index].extra_sequences


@compiled
def pop_frozen(sim, r):
    """Remove and return the first request that stands still, of a replica that has crashed."""
    replica = replicas_of(sim)[r]
    index = replica.frozen_head
    replica.frozen_head = requests_of(sim)[index].next
    replica.num_frozen -= 1
    return index


@compiled
def pop_latest_frozen(sim, r):
    """Remove and return the request admitted last of those that stand still; there are some."""
    requests = requests_of(sim)
    latest, latest_before = np.int64(replicas_of(sim)[r].frozen_head), np.int64(NONE)
    before, index = latest, np.int64(requests[latest].next)
    while index != NONE:
        if requests[index].admission > requests[latest].admission:
            latest, latest_before = index, before
        before, index = index, np.int64(requests[index].next)
    _leave_list(sim, r, latest, latest_before)
    return latest


@compiled
def _kv_tokens(replica, request):
    """Return the tokens in KV of each sequence of a decoding request."""
    return request.prefill_target_tokens + replica.decode_iteration - request.joined_iteration


@compiled
def _find_long(sim, r):
    """Return the place in the heap of a batch request beyond the limit, or `NONE`."""
    replica, requests, heap = replicas_of(sim)[r], requests_of(sim), sequences_of(sim, r)
    for position in range(replica.num_decoding):
        request = requests[heap[position].request]
        if request.query.priority > 0 and _kv_tokens(replica, request) > replica.freeze_tokens:
            return position
    return NONE


@compiled
def _freeze_long(sim, r):
    """Take the batch requests beyond the limit out of the batch; their slots stay theirs."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    position = _find_long(sim, r)
    while position != NONE:
        index = detach(sim, r, np.int64(position))
        request = requests[index]
        request.status = FROZEN
        _push_frozen(sim, r, index)
        replica.num_frozen += 1
        replica.num_coming += 1 + request.extra_sequences
        note(sim, index, Moment.FROZEN, replica.clock_s, r, request.prefill_target_tokens)
        position = _find_long(sim, r)


@compiled
def _thaw_short(sim, r):
    """Put the requests within the limit back into the batch."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    before, index = np.int64(NONE), np.int64(replica.frozen_head)
    while index != NONE:
        following = np.int64(requests[index].next)
        tokens = np.int64(requests[index].prefill_target_tokens)
        if tokens > replica.freeze_tokens:
            before = index
        else:
            _leave_list(sim, r, index, before)
            note(sim, index, Moment.THAWED, replica.clock_s, r, tokens)
            start_decoding(sim, r, index, tokens)
        index = following


@called_as("settle_freeze")
def settle_freeze(sim, r):
    """Bring the batch into line with the limit at the start of an iteration."""
    replica = replicas_of(sim)[r]
    if replica.clock_s < replica.freeze_from_s:
        return
    _thaw_short(sim, r)
    if replica.freeze_tokens < np.inf:
        _freeze_long(sim, r)
    else:
        replica.is_freezing = 0


@compiled
def iterations_to_freeze(sim, r, limit):
    """Return how many iterations, at most `limit`, pass before a request exceeds the limit."""
    replica, requests, heap = replicas_of(sim)[r], requests_of(sim), sequences_of(sim, r)
    if replica.freeze_tokens < np.inf:
        most_tokens = np.int64(replica.freeze_tokens)
        for position in range(replica.num_decoding):
            request = requests[heap[position].request]
            if request.query.priority > 0:
                left = most_tokens + 1 - _kv_tokens(replica, request)
                limit = min(limit, max(np.int64(1), left))
    return limit

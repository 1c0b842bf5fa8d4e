"""Requests that leave one replica and go on at another, as far as one replica sees it.

A request departs at the end of an iteration: after its prefill on a prefill replica, or when its
migration is ordered. Its pages stay held there until its KV has moved. At the target its pages
are taken before the KV comes; once it has landed the request joins the next iteration.

Does not know: links and rates (`transfers.py`), or who is chosen as target (`cluster_loop.py`).
Source: prefill/decode separation as in Splitwise and vLLM's NIXL connector; migration as Llumnix
does it, in one copy while the request stands still.
"""

import numpy as np

from ..compiled import compiled
from . import gateway, transfers
from .adapters import can_use_adapter, use_adapter
from .admission import running_sequences
from .calls import called_as
from .due import wake
from .kv_pages import available_pages, cache_prompt, take_pages
from .layout import DECODING, DROPPED_MIGRATION, KV_TRANSFER, MOVING, NONE, ORDERED_MIGRATION
from .life import Moment, note
from .memory import fleet_of, replicas_of, requests_of, sequences_of, transfers_of
from .sequences import detach, held_tokens, start_decoding
from .slow_factor import settle_slow_factor


@compiled
def push_departed(sim, index):
    """Append a moving request to those that have no target."""
    fleet, requests = fleet_of(sim), requests_of(sim)
    requests[index].next = NONE
    if fleet.departed_head == NONE:
        fleet.departed_head = index
    else:
        requests[fleet.departed_tail].next = index
    fleet.departed_tail = index


@compiled
def push_inbound(sim, r, index):
    """Append a moving request to those that wait for room at a replica."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    requests[index].next = NONE
    if replica.inbound_head == NONE:
        replica.inbound_head = index
    else:
        requests[replica.inbound_tail].next = index
    replica.inbound_tail = index
    fleet_of(sim).num_inbound += 1


@compiled
def pop_inbound(sim, r):
    """Remove and return the first request that waits for room at a replica."""
    replica = replicas_of(sim)[r]
    index = replica.inbound_head
    replica.inbound_head = requests_of(sim)[index].next
    fleet_of(sim).num_inbound -= 1
    return index


@compiled
def push_landed(sim, r, index, now_s):
    """Let a request whose KV has come join the replica's next iteration."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    requests[index].kv_ready_s = now_s
    requests[index].num_moves += 1
    note(sim, index, Moment.LANDED, now_s, r, 0.0)
    requests[index].next = NONE
    if replica.landed_head == NONE:
        replica.landed_head = index
    else:
        requests[replica.landed_tail].next = index
    replica.landed_tail = index
    replica.change_at_s = min(replica.change_at_s, now_s)
    wake(sim, r, now_s)


@compiled
def has_room(sim, r, index, pages):
    """Whether a replica has slots and pages for a moving request, and keeps some to grow."""
    replica, request = replicas_of(sim)[r], requests_of(sim)[index]
    if not can_use_adapter(sim, r, request.adapter):
        return False
    num_placed = running_sequences(replica) + replica.num_coming
    if num_placed > 0 and num_placed + request.extra_sequences >= replica.max_num_seqs:
        return False
    reserve = replica.reserve_pages if num_placed > 0 else 0
    return pages + reserve + replica.num_sequences <= available_pages(sim, r)


@compiled
def reserve_room(sim, r, index, pages):
    """Take slots, pages and the adapter for a request that will come."""
    request = requests_of(sim)[index]
    take_pages(sim, r, pages)
    use_adapter(sim, r, request.adapter)
    replicas_of(sim)[r].num_coming += 1 + request.extra_sequences


@compiled
def kv_bytes(sim, r, index, kv_tokens):
    """Bytes of a request's KV on a replica; its sequences share the prompt."""
    request = requests_of(sim)[index]
    own_tokens = kv_tokens - request.query.input_tokens
    tokens = kv_tokens + request.extra_sequences * max(0, own_tokens)
    return tokens * replicas_of(sim)[r].kv_token_bytes


@compiled
def _leave(sim, r, index):
    request, fleet = requests_of(sim)[index], fleet_of(sim)
    request.status = MOVING
    request.source = r
    replicas_of(sim)[r].num_leaving += 1
    fleet.num_moving += 1
    clock_s, kv_tokens = replicas_of(sim)[r].clock_s, request.prefill_target_tokens
    note(sim, index, Moment.DEPARTED, clock_s, r, kv_tokens)


@compiled
def depart(sim, r, index):
    """Let a request whose prefill is done leave; its pages stay held."""
    request = requests_of(sim)[index]
    request.prefill_target_tokens = held_tokens(request)
    _leave(sim, r, index)
    fleet_of(sim).num_watched += 1
    fleet_of(sim).has_departed = 1
    push_departed(sim, index)


@compiled
def _leave_as_ordered(sim, r):
    """Begin the migrations that were ordered, but for requests that have finished meanwhile."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    for t in range(fleet_of(sim).num_transfers):
        transfer = transfers_of(sim)[t]
        if transfer.kind != ORDERED_MIGRATION or transfer.source != r:
            continue
        index = transfer.request
        if requests[index].status == DECODING and requests[index].replica == r:
            position = np.int64(0)
            while sequences_of(sim, r)[position].request != index:
                position += 1
            detach(sim, r, position)
            _leave(sim, r, index)
            gateway.move(sim, index, transfer.target)
            transfer.kind = KV_TRANSFER
            size_bytes = kv_bytes(sim, r, index, requests[index].prefill_target_tokens)
            transfers.start(sim, transfer, size_bytes, replica.clock_s)
        else:
            transfer.kind = DROPPED_MIGRATION
            transfer.begins_at_s = replica.clock_s
            transfers.note_action(sim, replica.clock_s)
    replica.num_ordered = 0


@compiled
def _join_landed(sim, r):
    """Put the requests whose KV has come into the batch."""
    replica, requests, fleet = replicas_of(sim)[r], requests_of(sim), fleet_of(sim)
    while replica.landed_head != NONE:
        index = replica.landed_head
        if requests[index].kv_ready_s > replica.clock_s:
            replica.change_at_s = min(replica.change_at_s, requests[index].kv_ready_s)
            return
        replica.landed_head = requests[index].next
        replica.num_coming -= 1 + requests[index].extra_sequences
        fleet.num_moving -= 1
        fleet.num_watched -= 1
        cache_prompt(sim, r, requests[index])
        start_decoding(sim, r, index, np.int64(requests[index].prefill_target_tokens))


@called_as("settle")
def settle(sim, r):
    """Let what came from outside by the start of an iteration change the replica."""
    replica = replicas_of(sim)[r]
    replica.change_at_s = np.inf
    if replica.num_ordered > 0:
        _leave_as_ordered(sim, r)
    _join_landed(sim, r)
    settle_slow_factor(sim, r)

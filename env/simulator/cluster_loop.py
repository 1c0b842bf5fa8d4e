"""What the loop does beyond arrivals: moves of KV, starts, drains, and what crashes do to them.

While something needs it (`num_watched`), the loop stops at every change of a replica, so that a
move begins at the moment at which its request departs, and a full target is tried again when it
gets room. All is taken in order of time.

Does not know: arrivals, scrapes, or how faults are drawn.
"""

import numpy as np

from ..compiled import compiled
from . import gateway, lifecycle, transfers
from .adapters import leave_adapter
from .calls import advance, called_as
from .closed_loop import on_end
from .due import next_due, wake
from .handoff import (
    has_room,
    kv_bytes,
    pop_inbound,
    push_departed,
    push_inbound,
    push_landed,
    reserve_room,
)
from .kv_pages import request_pages
from .layout import (
    DOWN,
    DRAINING,
    DROPPED_MIGRATION,
    FAILED,
    KV_TRANSFER,
    NONE,
    ORDERED_MIGRATION,
    STARTING,
    STOPPED,
    WAKING,
    WEIGHT_TRANSFER,
)
from .life import note_end
from .memory import fleet_of, replicas_of, requests_of, transfers_of
from .sequences import let_go


@compiled
def advance_due(sim, now_s):
    """Let the gateway see all that has happened by now."""
    r = next_due(sim, np.int64(0), now_s)
    while r != NONE:
        advance(sim, r, now_s, False)
        r = next_due(sim, r + 1, now_s)


@compiled
def _pause_admission(sim, r, now_s):
    """Plan a replica anew; pages that came free during an iteration are for the next one."""
    replica = replicas_of(sim)[r]
    if replica.num_prefilling + replica.num_decoding > 0 and replica.clock_s < now_s:
        replica.has_preempted = 1
    wake(sim, r, now_s)


@compiled
def _give_back(sim, r, index, pages, now_s):
    """Give back the room that a replica kept for a request that does not come."""
    advance(sim, r, now_s, True)
    request = requests_of(sim)[index]
    replicas_of(sim)[r].free_pages += pages
    leave_adapter(sim, r, request.adapter)
    replicas_of(sim)[r].num_coming -= 1 + request.extra_sequences
    _pause_admission(sim, r, now_s)


@compiled
def _release_source(sim, index, now_s):
    """Free the pages of a request where it came from."""
    request = requests_of(sim)[index]
    r = request.source
    advance(sim, r, now_s, True)
    let_go(sim, r, request, np.int64(request.prefill_target_tokens))
    replicas_of(sim)[r].num_leaving -= 1
    request.source = NONE
    _pause_admission(sim, r, now_s)


@compiled
def _fail_moving(sim, index, now_s):
    """End a moving request whose KV is lost or fits nowhere."""
    request, fleet = requests_of(sim)[index], fleet_of(sim)
    request.status = FAILED
    request.finish_s = now_s
    fleet.num_moving -= 1
    fleet.num_watched -= 1
    note_end(sim, index)
    gateway.on_finish(sim, index)
    on_end(sim, now_s)


@compiled
def _begin_departed(sim, now_s):
    """Choose targets for the requests that have none; those that find none stay."""
    fleet, requests = fleet_of(sim), requests_of(sim)
    index = fleet.departed_head
    fleet.departed_head = NONE
    fleet.has_departed = 0
    while index != NONE:
        following = requests[index].next
        is_found, r = gateway.choose_decoder(sim, index, now_s)
        if is_found:
            gateway.move(sim, index, r)
            push_inbound(sim, r, index)
        else:
            push_departed(sim, index)
        index = following


@compiled
def _take_inbound(sim, r, now_s):
    """Let the requests that wait for room at a replica come, in turn, while there is some."""
    replica, requests, fleet = replicas_of(sim)[r], requests_of(sim), fleet_of(sim)
    advance(sim, r, now_s, True)
    while replica.inbound_head != NONE and transfers.can_add(sim):
        request = requests[replica.inbound_head]
        pages = request_pages(request, request.prefill_target_tokens, fleet)
        if not has_room(sim, r, replica.inbound_head, pages):
            num_placed = replica.num_waiting + replica.num_prefilling + replica.num_decoding
            if num_placed + replica.num_coming + replica.num_leaving > 0:
                return
            index = pop_inbound(sim, r)
            _release_source(sim, index, now_s)
            _fail_moving(sim, index, now_s)
            continue
        index = pop_inbound(sim, r)
        reserve_room(sim, r, index, pages)
        wake(sim, r, now_s)
        transfer = transfers.add_between(sim, KV_TRANSFER, index, request.source, r)
        transfer.pages = pages
        size_bytes = kv_bytes(sim, request.source, index, request.prefill_target_tokens)
        if request.num_moves == 0:
            size_bytes *= 1.0 - fleet.kv_overlap_frac
        transfers.start(sim, transfer, size_bytes, now_s)


@called_as("follow_up")
def follow_up(sim, now_s):
    """Begin the moves and end the drains that what has just happened allows."""
    fleet = fleet_of(sim)
    if fleet.has_departed != 0:
        _begin_departed(sim, now_s)
    if fleet.num_inbound > 0:
        for r in range(replicas_of(sim).size):
            if replicas_of(sim)[r].inbound_head != NONE:
                _take_inbound(sim, r, now_s)
    if fleet.num_draining > 0:
        for r in range(replicas_of(sim).size):
            replica = replicas_of(sim)[r]
            if replica.state == DRAINING and lifecycle.has_drained(replica):
                lifecycle.go_down(sim, r, now_s)


@compiled
def retry_departed(sim):
    """Have requests without a target tried again: replicas may have become available."""
    if fleet_of(sim).departed_head != NONE:
        fleet_of(sim).has_departed = 1


@compiled
def _land(sim, index, target, pages, now_s):
    """Free the source of a request whose KV has moved, and hand it to its target."""
    _release_source(sim, index, now_s)
    advance(sim, target, now_s, True)
    request = requests_of(sim)[index]
    kept = request_pages(request, request.prefill_target_tokens, fleet_of(sim))
    replicas_of(sim)[target].free_pages += pages - kept
    push_landed(sim, target, index, now_s)


@compiled
def _take_transfer(sim, t, now_s):
    """Let a transfer end, or a dropped migration give its room back; take it off the table."""
    transfer = transfers_of(sim)[t]
    kind, index, target, pages = transfer.kind, transfer.request, transfer.target, transfer.pages
    transfers.remove(sim, t)
    if kind == WEIGHT_TRANSFER:
        lifecycle.on_loaded(sim, target, now_s)
    elif kind == DROPPED_MIGRATION:
        fleet_of(sim).num_watched -= 1
        _give_back(sim, target, index, pages, now_s)
    else:
        _land(sim, index, target, pages, now_s)


@compiled
def _refresh_next_action(sim):
    fleet_of(sim).next_action_s = min(transfers.soonest_s(sim), lifecycle.soonest_timer_s(sim))


@called_as("take_actions")
def take_actions(sim, now_s):
    """Begin and end the transfers, and take the steps of starts, that are due."""
    advance_due(sim, now_s)
    fleet, table = fleet_of(sim), transfers_of(sim)
    has_changed, t = False, np.int64(0)
    while t < fleet.num_transfers:
        is_dropped = table[t].kind == DROPPED_MIGRATION
        if table[t].ends_at_s <= now_s or (is_dropped and table[t].begins_at_s <= now_s):
            _take_transfer(sim, t, now_s)
            has_changed = True
            continue
        if table[t].has_begun == 0 and table[t].begins_at_s <= now_s:
            transfers.begin(table[t], now_s)
            has_changed = True
        t += 1
    if has_changed:
        transfers.refresh_rates(sim, now_s)
    for r in range(replicas_of(sim).size):
        if replicas_of(sim)[r].timer_s <= now_s:
            lifecycle.on_timer(sim, r, now_s)
    _refresh_next_action(sim)


@compiled
def _send_back(sim, index):
    """Let a moving request whose target crashed look for another; its source has its KV still."""
    gateway.move(sim, index, requests_of(sim)[index].source)
    push_departed(sim, index)
    fleet_of(sim).has_departed = 1


@compiled
def _drop_transfers(sim, r, now_s):
    """Take the transfers from and to a crashed replica off the table."""
    fleet, t = fleet_of(sim), np.int64(0)
    while t < fleet.num_transfers:
        transfer = transfers_of(sim)[t]
        if transfer.kind == WEIGHT_TRANSFER or (transfer.source != r and transfer.target != r):
            t += 1
            continue
        index, source, target, pages, kind = (
            transfer.request, transfer.source, transfer.target, transfer.pages, transfer.kind
        )  # fmt: skip
        transfers.remove(sim, t)
        if target != r:
            _give_back(sim, target, index, pages, now_s)
        if kind != KV_TRANSFER:
            # The request is still in the batch of its source.
            replicas_of(sim)[source].num_ordered -= 1 if kind == ORDERED_MIGRATION else 0
            fleet.num_watched -= 1
        elif source == r:
            _fail_moving(sim, index, now_s)
        else:
            _send_back(sim, index)
    transfers.refresh_rates(sim, now_s)


@compiled
def _drop_waiting(sim, r, now_s):
    """Fail what waits for a target or for room with its KV on a crashed replica."""
    requests, fleet = requests_of(sim), fleet_of(sim)
    for to in range(replicas_of(sim).size):
        index = replicas_of(sim)[to].inbound_head
        replicas_of(sim)[to].inbound_head = NONE
        while index != NONE:
            following = requests[index].next
            fleet.num_inbound -= 1
            if requests[index].source == r:
                _fail_moving(sim, index, now_s)
            elif to == r:
                _send_back(sim, index)
            else:
                push_inbound(sim, to, index)
            index = following
    index = fleet.departed_head
    fleet.departed_head = NONE
    while index != NONE:
        following = requests[index].next
        if requests[index].source == r:
            _fail_moving(sim, index, now_s)
        else:
            push_departed(sim, index)
        index = following


@compiled
def on_crash(sim, r, now_s):
    """Undo what was under way to and from a replica that crashes, before it loses its batch."""
    replica, requests = replicas_of(sim)[r], requests_of(sim)
    if fleet_of(sim).num_moving > 0 or fleet_of(sim).num_transfers > 0:
        _drop_transfers(sim, r, now_s)
        _drop_waiting(sim, r, now_s)
        while replica.landed_head != NONE:
            index = replica.landed_head
            replica.landed_head = requests[index].next
            _fail_moving(sim, index, now_s)
    replica.num_coming = 0
    replica.num_leaving = 0
    replica.num_ordered = 0
    replica.change_at_s = now_s
    if replica.state == DRAINING:
        lifecycle.end_drain(sim, r)
        lifecycle.power_down(replica, STOPPED)
    else:
        replica.state = DOWN


@compiled
def abort_start(sim, r, now_s):
    """Let a replica that was on its way up crash."""
    replica = replicas_of(sim)[r]
    for t in range(fleet_of(sim).num_transfers):
        if transfers_of(sim)[t].kind == WEIGHT_TRANSFER and transfers_of(sim)[t].target == r:
            transfers.remove(sim, t)
            break
    transfers.refresh_rates(sim, now_s)
    replica.timer_s = np.inf
    replica.state = DOWN


@compiled
def is_on_the_way_up(replica):
    """Whether a replica starts or wakes."""
    return replica.state == STARTING or replica.state == WAKING


__all__ = [
    "abort_start",
    "advance_due",
    "follow_up",
    "is_on_the_way_up",
    "on_crash",
    "retry_departed",
    "take_actions",
]

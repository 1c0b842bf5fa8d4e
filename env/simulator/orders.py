"""What a controller may order a fleet to do at its present moment, beyond knobs.

Does not know: whether an order makes sense (`..simulated_fleet` checks it).
"""

from ..compiled import compiled
from . import lifecycle, transfers
from .calls import follow_up
from .due import wake
from .handoff import has_room, reserve_room
from .kv_pages import request_pages
from .layout import ORDERED_MIGRATION, STOPPED
from .memory import fleet_of, replicas_of, requests_of


@compiled
def order_pause(handle, r, state):
    """Let a replica that serves drain, and go off or asleep then."""
    sim = handle[0]
    lifecycle.begin_drain(sim, r, state)
    follow_up(sim, fleet_of(sim).now_s)


@compiled
def order_start(handle, r):
    """Begin to start or wake a replica that is off or asleep."""
    sim = handle[0]
    if replicas_of(sim)[r].state == STOPPED:
        lifecycle.begin_start(sim, r, fleet_of(sim).now_s)
    else:
        lifecycle.begin_wake(sim, r, fleet_of(sim).now_s)


@compiled
def order_link(handle, link, factor):
    """Change a link's bandwidth to a share of what it is when whole."""
    sim = handle[0]
    transfers.set_link(sim, link, factor, fleet_of(sim).now_s)


@compiled
def pages_to_move(handle, index):
    """Return the pages that a decoding request needs elsewhere when its iteration is over."""
    sim = handle[0]
    request = requests_of(sim)[index]
    taken = replicas_of(sim)[request.replica].decode_iteration - request.joined_iteration
    return request_pages(request, request.prefill_target_tokens + taken + 1, fleet_of(sim))


@compiled
def can_move(handle, r, index, pages):
    """Whether a replica has room for a request that would move there."""
    sim = handle[0]
    return has_room(sim, r, index, pages) and transfers.can_add(sim)


@compiled
def order_migration(handle, index, target, pages):
    """Let a decoding request move when its iteration is over; the target has room."""
    sim = handle[0]
    now_s, source = fleet_of(sim).now_s, requests_of(sim)[index].replica
    reserve_room(sim, target, index, pages)
    wake(sim, target, now_s)
    transfer = transfers.add_between(sim, ORDERED_MIGRATION, index, source, target)
    transfer.pages = pages
    replica = replicas_of(sim)[source]
    replica.num_ordered += 1
    replica.change_at_s = min(replica.change_at_s, now_s)
    fleet_of(sim).num_watched += 1
    wake(sim, source, now_s)

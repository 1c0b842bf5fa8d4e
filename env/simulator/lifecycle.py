"""The life of a replica: off, starting, ready, draining, asleep, and back.

A start waits for its node, loads the weights over the links (in contention with all else that
crosses them), and initialises the engine; the first seconds of service are slower. Sleep keeps
the weights in host memory, so waking is a copy over PCIe. KV is lost in both.

Does not know: when to start or stop what; gateways see only who is available.
Source: research on peers, section 6 (start-up); vLLM's sleep mode, level 1.
"""

import numpy as np

from ..compiled import compiled
from ..topology import PAGE_CACHE
from . import gateway, transfers
from .due import set_next_event, wake
from .freeze import set_freeze
from .layout import DOWN, DRAINING, NONE, READY, STARTING, STOPPED, WAKING
from .memory import (
    cache_of,
    cache_table_of,
    fleet_of,
    holders_of,
    replicas_of,
)
from .prefix_cache import clear
from .replica import idle_until


@compiled
def _set_timer(sim, r, at_s):
    replicas_of(sim)[r].timer_s = at_s
    transfers.note_action(sim, at_s)


@compiled
def come_up(sim, r, now_s):
    """Let a replica serve."""
    replica = replicas_of(sim)[r]
    idle_until(sim, r, now_s)
    if replica.state == STARTING and fleet_of(sim).slow_start_span_s > 0.0:
        replica.warm_from_s = now_s
        replica.num_warm_steps = 0
        replica.warm_factor = fleet_of(sim).slow_start_factor
        replica.change_at_s = now_s
    replica.state = READY
    replica.is_up = 1
    gateway.welcome_replica(sim, r, now_s)
    wake(sim, r, now_s)


@compiled
def restart(sim, r, now_s):
    """Bring a crashed replica back: at once, or by a start on its node if that is set."""
    replica = replicas_of(sim)[r]
    if replica.state != DOWN:
        return
    idle_until(sim, r, now_s)
    replica.idle_w = replica.powered_w
    if fleet_of(sim).is_restart_cold != 0:
        replica.state = STARTING
        _load(sim, r, now_s)
    else:
        come_up(sim, r, now_s)


@compiled
def begin_start(sim, r, now_s):
    """Power a replica's GPUs and begin its start."""
    replica = replicas_of(sim)[r]
    idle_until(sim, r, now_s)
    replica.idle_w = replica.powered_w
    replica.state = STARTING
    replica.is_loading = 0
    _set_timer(sim, r, now_s + fleet_of(sim).node_start_s)


@compiled
def begin_wake(sim, r, now_s):
    """Begin to copy a sleeping replica's weights from host memory."""
    replicas_of(sim)[r].state = WAKING
    _load(sim, r, now_s)


@compiled
def _load(sim, r, now_s):
    replica = replicas_of(sim)[r]
    replica.is_loading = 1
    source = PAGE_CACHE if replica.state == WAKING else fleet_of(sim).weight_source
    transfer = transfers.add_load(sim, r, source)
    transfers.start(sim, transfer, replica.weight_bytes, now_s)


@compiled
def on_loaded(sim, r, now_s):
    """Go on when a replica's weights are in place."""
    replica = replicas_of(sim)[r]
    is_waking = replica.state == WAKING
    init_s = fleet_of(sim).wake_init_s if is_waking else replica.engine_init_s
    _set_timer(sim, r, now_s + init_s)


@compiled
def on_timer(sim, r, now_s):
    """Go on when a step of a start is over."""
    replica = replicas_of(sim)[r]
    replica.timer_s = np.inf
    if replica.is_loading == 0:
        _load(sim, r, now_s)
    else:
        come_up(sim, r, now_s)


@compiled
def soonest_timer_s(sim):
    """Return when the next step of a start is over."""
    soonest_s = np.inf
    for r in range(replicas_of(sim).size):
        soonest_s = min(soonest_s, replicas_of(sim)[r].timer_s)
    return soonest_s


@compiled
def begin_drain(sim, r, drain_state):
    """Let a replica serve what it has, and nothing new, before it goes off or asleep."""
    replica, fleet = replicas_of(sim)[r], fleet_of(sim)
    if replica.is_freezing != 0:
        set_freeze(sim, r, np.inf)
    gateway.dismiss_replica(sim, r)
    replica.state = DRAINING
    replica.drain_state = drain_state
    fleet.num_draining += 1
    fleet.num_watched += 1


@compiled
def has_drained(replica):
    """Whether a replica has no request, none on its way in, and no KV on its way out."""
    num_left = replica.num_waiting + replica.num_prefilling + replica.num_decoding
    num_left += replica.num_coming + replica.num_leaving
    return num_left == 0 and replica.inbound_head == NONE


@compiled
def end_drain(sim, r):
    """Count a replica as no longer draining."""
    fleet_of(sim).num_draining -= 1
    fleet_of(sim).num_watched -= 1


@compiled
def go_down(sim, r, now_s):
    """Take a replica that has drained out of service."""
    replica = replicas_of(sim)[r]
    end_drain(sim, r)
    idle_until(sim, r, now_s)
    gateway.forget_replica(sim, r)
    clear(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
    replica.free_pages = replica.total_pages
    replica.plan_iterations = 0
    replica.change_at_s = np.inf
    replica.warm_factor = 1.0
    replica.slow_factor = replica.outer_factor * replica.share_factor
    replica.is_up = 0
    replica.is_unnoticed = 0
    set_next_event(sim, r, np.inf)
    power_down(replica, replica.drain_state)


@compiled
def power_down(replica, state):
    """Set what a replica out of service draws: nothing when it is off."""
    replica.state = state
    if state == STOPPED:
        replica.idle_w = 0.0

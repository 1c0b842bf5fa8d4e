"""The event loop of a fleet: arrivals, scrapes, crashes and restarts in the order of time.

Replicas are advanced only when something visible happens on them, so cost grows with events and
not with the length of time.

Does not know: what a window or an episode is (`..simulated_fleet`).
"""

import numpy as np

from ..compiled import compiled
from ..dispatch import full_chunk_token_s, refresh_decode_base, refresh_slow_factor
from . import calls, gateway, lifecycle, sharing, transfers
from .ahead import fetch_ahead
from .calls import advance, called_as, dispatch
from .closed_loop import holds_back, on_end
from .cluster_loop import (
    abort_start,
    advance_due,
    is_on_the_way_up,
    on_crash,
    retry_departed,
)
from .due import set_next_event, wake
from .freeze import forget_freeze, pop_frozen
from .host_tier import clear_host
from .late_pages import fill
from .layout import CRASH, FAILED, LINK, NONE, NUM_PRIORITIES, RESTART
from .life import Moment, note, note_end
from .memory import (
    cache_of,
    cache_table_of,
    event_tree_of,
    events_of,
    fleet_of,
    gateways_of,
    holders_of,
    knobs_of,
    nominal_of,
    page_phases_of,
    replicas_of,
    requests_of,
    sequences_of,
    views_of,
)
from .power import stand_by
from .prefix_cache import chain, clear
from .queues import pop_prefill, pop_waiting, remove_sequence
from .sequences import forget_sequences
from .trouble import take_trouble


@compiled
def _lose(sim, index, now_s):
    """Retry a request that a crash took, if its client has not seen a token; else fail it."""
    request = requests_of(sim)[index]
    request.pinned_blocks = 0
    request.host_pages = 0
    note(sim, index, Moment.LOST, now_s, request.replica, request.generated_tokens)
    if request.generated_tokens == 0:
        dispatch(sim, index, now_s)
    else:
        request.status = FAILED
        request.finish_s = now_s
        note_end(sim, index)
        on_end(sim, now_s)


@compiled
def _crash(sim, r, now_s, is_off):
    replica = replicas_of(sim)[r]
    on_crash(sim, r, now_s)
    gateway.forget_replica(sim, r)
    clear(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
    # A stall puts the clock ahead; a crash ends it.
    stand_by(sim, r, now_s - replica.clock_s)
    forget_sequences(sim, r)
    replica.clock_s = now_s
    replica.is_up = 0
    replica.is_unnoticed = 0
    if is_off:
        replica.idle_w = 0.0
    replica.num_crashes += 1
    replica.free_pages = replica.total_pages
    replica.context_tokens = 0
    replica.prefill_left_tokens = 0
    replica.has_preempted = 0
    replica.plan_iterations = 0
    page_phases_of(sim, r)[:] = 0
    set_next_event(sim, r, np.inf)
    while replica.num_decoding > 0:
        index = remove_sequence(
            sequences_of(sim, r), replica.num_decoding, replica.num_decoding - 1
        )
        replica.num_decoding -= 1
        _lose(sim, index, now_s)
    while replica.prefill_head != NONE:
        _lose(sim, pop_prefill(replica, requests_of(sim)), now_s)
    while replica.frozen_head != NONE:
        _lose(sim, pop_frozen(sim, r), now_s)
    forget_freeze(replica)
    for k in range(NUM_PRIORITIES):
        while replica.waiting_head[k] != NONE:
            _lose(sim, pop_waiting(replica, requests_of(sim), k), now_s)


@compiled
def _take_crash(sim, event):
    replica = replicas_of(sim)[event.target]
    if is_on_the_way_up(replica):
        abort_start(sim, event.target, event.at_s)
    elif replica.is_up != 0 or replica.is_unnoticed != 0:
        advance(sim, event.target, event.at_s, True)
        _crash(sim, event.target, event.at_s, event.value != 0.0)


@called_as("take_event")
def take_event(sim):
    event = events_of(sim)[fleet_of(sim).next_event]
    fleet_of(sim).next_event += 1
    advance_due(sim, event.at_s)
    if event.kind == RESTART:
        lifecycle.restart(sim, event.target, event.at_s)
    elif event.kind == LINK:
        transfers.set_link(sim, event.target, event.value, event.at_s)
    elif event.kind == CRASH:
        _take_crash(sim, event)
    else:
        take_trouble(sim, event)


@compiled
def _scrape_all(sim, now_s):
    """Let the gateway whose turn it is read all metrics pages."""
    fleet, g = fleet_of(sim), fleet_of(sim).next_scraper
    for r in range(replicas_of(sim).size):
        advance(sim, r, now_s, True)
        gateway.scrape(sim, g, r, now_s)
    gateways_of(sim)[g].num_scrapes += 1
    if fleet.has_time_slices != 0:
        sharing.tick(sim, now_s)
    retry_departed(sim)
    gateways_of(sim)[g].next_scrape_s += fleet.scrape_interval_s
    fleet.next_scraper = (g + 1) % sim.num_gateways
    fleet.next_scrape_s = gateways_of(sim)[fleet.next_scraper].next_scrape_s


@compiled
def _arrive(sim, now_s):
    advance_due(sim, now_s)
    index = fleet_of(sim).next_arrival
    fleet_of(sim).next_arrival += 1
    fetch_ahead(sim, index)
    dispatch(sim, index, now_s)


@compiled
def run_until(handle, until_s):
    """Run the fleet through every event before a moment and bring all replicas up to it."""
    sim = handle[0]
    fleet, requests = fleet_of(sim), requests_of(sim)
    seen_s = fleet.now_s
    while True:
        arrival_s, event_s, due_s = np.inf, np.inf, np.inf
        if fleet.next_arrival < requests.size:
            arrival_s = requests[fleet.next_arrival].arrival_s
        if fleet.next_event < events_of(sim).size:
            event_s = events_of(sim)[fleet.next_event].at_s
        if fleet.num_watched != 0:
            calls.follow_up(sim, seen_s)
            due_s = event_tree_of(sim)[1]
        elif holds_back(sim):
            due_s = event_tree_of(sim)[1]
        now_s = min(arrival_s, event_s, fleet.next_scrape_s, fleet.next_action_s, due_s)
        if now_s >= until_s:
            break
        seen_s = now_s
        if due_s <= now_s:
            advance_due(sim, now_s)
        elif fleet.next_action_s <= now_s:
            calls.take_actions(sim, now_s)
        elif event_s <= now_s:
            calls.take_event(sim)
        elif fleet.next_scrape_s <= now_s:
            _scrape_all(sim, now_s)
        else:
            _arrive(sim, now_s)
    for r in range(replicas_of(sim).size):
        advance(sim, r, until_s, True)
    fleet.now_s = until_s


@compiled
def begin(handle):
    """Fill what the gateway derives from nominal coefficients, and empty the prefix caches."""
    sim = handle[0]
    for r in range(sim.num_replicas):
        chain(replicas_of(sim)[r], cache_of(sim, r))
        clear_host(sim, r)
        chunk_tokens = float(replicas_of(sim)[r].max_batch_tokens)
        token_s = full_chunk_token_s(nominal_of(sim)[r], chunk_tokens)
        for g in range(sim.num_gateways):
            views_of(sim, g)[r].prefill_token_s = token_s
            refresh_decode_base(views_of(sim, g), nominal_of(sim), r, 1.0)
            fill(sim, g, r)


@compiled
def refresh_view(handle):
    """Recompute what depends on the knobs after they changed; plans are made anew."""
    sim = handle[0]
    for r in range(sim.num_replicas):
        wake(sim, r, fleet_of(sim).now_s)
        for g in range(sim.num_gateways):
            refresh_slow_factor(views_of(sim, g), knobs_of(sim), r)


@compiled
def num_open(handle):
    """Return how many requests are waiting, running, standing still or moving anywhere."""
    sim = handle[0]
    count = fleet_of(sim).num_moving
    for r in range(replicas_of(sim).size):
        replica = replicas_of(sim)[r]
        count += replica.num_waiting + replica.num_prefilling + replica.num_decoding
        count += replica.num_frozen
    return count


__all__ = ["begin", "num_open", "refresh_view", "run_until"]

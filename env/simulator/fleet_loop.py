"""The event loop of a fleet: arrivals, scrapes, crashes and restarts in the order of time.

Replicas are advanced only when something visible happens on them, so cost grows with events and
not with the length of time.

Does not know: what a window or an episode is (`..simulated_fleet`).
"""

import numpy as np

from ..compiled import compiled
from ..dispatch import full_chunk_token_s, refresh_decode_base, refresh_slow_factor
from . import gateway
from .closed_loop import next_change_s, on_end
from .layout import CRASH, FAILED, NONE, NUM_PRIORITIES, RESTART
from .memory import (
    cache_of,
    cache_table_of,
    events_of,
    fleet_of,
    holders_of,
    knobs_of,
    next_events_of,
    nominal_of,
    page_phases_of,
    replicas_of,
    requests_of,
    sequences_of,
    views_of,
)
from .prefix_cache import chain, clear
from .queues import pop_prefill, pop_waiting, remove_sequence
from .replica import advance, idle_until


@compiled
def _lose(sim, index, now_s):
    """Retry a request that a crash took, if its client has not seen a token; else fail it."""
    request = requests_of(sim)[index]
    request.pinned_blocks = 0
    if request.generated_tokens == 0:
        gateway.dispatch(sim, index, now_s)
    else:
        request.status = FAILED
        request.finish_s = now_s
        on_end(sim, now_s)


@compiled
def _crash(sim, r, now_s):
    replica = replicas_of(sim)[r]
    gateway.forget_replica(sim, r)
    clear(replica, cache_table_of(sim, r), cache_of(sim, r), holders_of(sim), r)
    idle_until(replica, now_s)
    replica.is_up = 0
    replica.clock_s = now_s
    replica.num_crashes += 1
    replica.free_pages = replica.total_pages
    replica.context_tokens = 0
    replica.prefill_left_tokens = 0
    replica.has_preempted = 0
    replica.measured_s = 0.0
    replica.nominal_s = 0.0
    page_phases_of(sim, r)[:] = 0
    next_events_of(sim)[r] = np.inf
    while replica.num_decoding > 0:
        index = remove_sequence(
            sequences_of(sim, r), replica.num_decoding, replica.num_decoding - 1
        )
        replica.num_decoding -= 1
        _lose(sim, index, now_s)
    while replica.prefill_head != NONE:
        _lose(sim, pop_prefill(replica, requests_of(sim)), now_s)
    for k in range(NUM_PRIORITIES):
        while replica.waiting_head[k] != NONE:
            _lose(sim, pop_waiting(replica, requests_of(sim), k), now_s)


@compiled
def _restart(sim, r, now_s):
    replica, v = replicas_of(sim)[r], views_of(sim)[r]
    idle_until(replica, now_s)
    replica.is_up = 1
    v.is_available = 1
    v.scraped_at_s = now_s
    v.progress_at_s = now_s
    replica.scraped_prefill_s = replica.prefill_s


@compiled
def _advance_due(sim, now_s):
    """Let the gateway see all that has happened by now."""
    for r in range(next_events_of(sim).size):
        if next_events_of(sim)[r] <= now_s:
            advance(sim, r, now_s, False)


@compiled
def _take_event(sim):
    event = events_of(sim)[fleet_of(sim).next_event]
    fleet_of(sim).next_event += 1
    _advance_due(sim, event.at_s)
    if event.kind == RESTART:
        _restart(sim, event.target, event.at_s)
    elif event.kind == CRASH and replicas_of(sim)[event.target].is_up != 0:
        advance(sim, event.target, event.at_s, True)
        _crash(sim, event.target, event.at_s)


@compiled
def _scrape_all(sim, now_s):
    for r in range(replicas_of(sim).size):
        advance(sim, r, now_s, True)
        gateway.scrape(sim, r, now_s)
    fleet_of(sim).next_scrape_s += fleet_of(sim).scrape_interval_s


@compiled
def _arrive(sim, now_s):
    _advance_due(sim, now_s)
    index = fleet_of(sim).next_arrival
    fleet_of(sim).next_arrival += 1
    gateway.dispatch(sim, index, now_s)


@compiled
def run_until(handle, until_s):
    """Run the fleet through every event before a moment and bring all replicas up to it."""
    sim = handle[0]
    fleet, requests = fleet_of(sim), requests_of(sim)
    while True:
        arrival_s, event_s = np.inf, np.inf
        if fleet.next_arrival < requests.size:
            arrival_s = requests[fleet.next_arrival].arrival_s
        if fleet.next_event < events_of(sim).size:
            event_s = events_of(sim)[fleet.next_event].at_s
        change_s = next_change_s(sim)
        now_s = min(arrival_s, event_s, fleet.next_scrape_s, change_s)
        if now_s >= until_s:
            break
        if change_s <= now_s:
            _advance_due(sim, now_s)
        elif event_s <= now_s:
            _take_event(sim)
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
        chunk_tokens = float(replicas_of(sim)[r].max_batch_tokens)
        token_s = full_chunk_token_s(nominal_of(sim)[r], chunk_tokens)
        views_of(sim)[r].prefill_token_s = token_s
        refresh_decode_base(views_of(sim), nominal_of(sim), r, 1.0)


@compiled
def refresh_view(handle):
    """Recompute what depends on the knobs after they changed; plans are made anew."""
    sim = handle[0]
    for r in range(views_of(sim).size):
        next_events_of(sim)[r] = min(next_events_of(sim)[r], fleet_of(sim).now_s)
        refresh_slow_factor(views_of(sim), knobs_of(sim), r)


@compiled
def num_open(handle):
    """Return how many requests are waiting or running anywhere."""
    sim = handle[0]
    count = 0
    for r in range(replicas_of(sim).size):
        replica = replicas_of(sim)[r]
        count += replica.num_waiting + replica.num_prefilling + replica.num_decoding
    return count


__all__ = ["begin", "num_open", "refresh_view", "run_until"]

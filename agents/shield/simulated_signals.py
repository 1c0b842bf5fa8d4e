"""The controller's signals, read off a simulation: no more than a gateway and probes would see.

The gateway's own counts and the tokens that pass through it are live; what an engine's page shows
changes only when a scrape gets through, and busy time only when a probe reports.

Does not know: what is made of the signals.
"""

import numpy as np

from ...env.compiled import compiled
from ...env.masks import Mask
from ...env.simulator.memory import fleet_of, replicas_of, requests_of, views_of

# KV usage below which a replica counts as a neighbour that can take over somebody's KV.
_NEIGHBOUR_KV_FRAC = 0.7
_SPILL = int(Mask.SPILL)


@compiled
def _read_own(sim, r, now_s, s):
    """Fill what the gateways know of a replica by themselves."""
    replica = replicas_of(sim)[r]
    s.outstanding_requests = 0.0
    s.pending_tokens = 0.0
    s.predicted_wait_s = 0.0
    # Every iteration of a batch that decodes sends tokens through the gateway.
    progress_at_s = replica.seen_s if replica.num_decoding > 0 else 0.0
    s.first_token_at_s = 0.0
    for g in range(sim.num_gateways):
        v = views_of(sim, g)[r]
        s.is_available = v.is_available
        s.outstanding_requests += v.outstanding_requests
        s.pending_tokens += v.pending_tokens
        wait_s = v.slow_factor * v.pending_tokens * v.prefill_token_s
        s.predicted_wait_s = max(s.predicted_wait_s, wait_s)
        progress_at_s = max(progress_at_s, v.progress_at_s)
        s.first_token_at_s = max(s.first_token_at_s, v.progress_at_s)
    # With nothing to do there is nothing to wait for.
    s.progress_at_s = progress_at_s if s.outstanding_requests > 0.0 else now_s


@compiled
def _read_page(sim, r, s):
    """Fill what the newest metrics page says, if a new one has come."""
    replica, v = replicas_of(sim)[r], views_of(sim, 0)[r]
    if v.scraped_at_s == s.scraped_at_s:
        return
    s.scraped_at_s = v.scraped_at_s
    s.running_requests = v.running_requests
    s.waiting_requests = v.waiting_requests
    s.kv_usage_frac = v.kv_usage_frac
    if replica.is_page_frozen == 0:
        s.allocation_failures = float(replica.num_preemptions)


@compiled
def _busy_s(replica, now_s):
    """Time in iterations, with what has gone by of the one in progress."""
    under_way_s = now_s - replica.clock_s if replica.plan_iterations > 0 else 0.0
    return replica.busy_s + max(0.0, under_way_s)


@compiled
def _is_free(sim, r, s):
    """Whether a replica could take over KV from another."""
    return (
        s.is_available != 0
        and s.kv_usage_frac < _NEIGHBOUR_KV_FRAC
        and views_of(sim, 0)[r].mask == 0
    )


@compiled
def _mark_neighbours(sim, signals, num_free):
    """Note for each replica whether another could take over some of its KV.

    `num_free` [R] is scratch: free replicas by KV format.
    """
    replicas = replicas_of(sim)
    num_free[:] = 0
    for r in range(signals.size):
        if _is_free(sim, r, signals[r]):
            num_free[replicas[r].kv_kind] += 1
    for r in range(signals.size):
        others = num_free[replicas[r].kv_kind] - int(_is_free(sim, r, signals[r]))
        signals[r].has_neighbour = int(others > 0)


@compiled
def read_signals(sim, fleet_signals, signals, num_free, is_probing):
    """Fill the signals of this moment; busy time only if the probes report.

    Shapes: FLEET_SIGNAL_DTYPE [1], REPLICA_SIGNAL_DTYPE [R], `num_free` int64 [R], scratch.
    """
    fleet, total = fleet_of(sim), fleet_signals[0]
    arrived = fleet.next_arrival
    requests = requests_of(sim)
    for i in range(int(total.num_arrived), arrived):
        query = requests[i].query
        total.arrived_tokens += query.input_tokens
        total.ttft_slo_s = min(total.ttft_slo_s, query.ttft_slo_s)
    total.now_s = fleet.now_s
    total.num_arrived = float(arrived)
    total.num_outstanding, total.least_wait_s, total.num_spill = 0.0, np.inf, 0
    for r in range(signals.size):
        s, mask = signals[r], views_of(sim, 0)[r].mask
        _read_own(sim, r, fleet.now_s, s)
        _read_page(sim, r, s)
        if is_probing:
            s.busy_s = _busy_s(replicas_of(sim)[r], fleet.now_s)
            s.probed_at_s = fleet.now_s
        total.num_outstanding += s.outstanding_requests
        if s.is_available != 0:
            total.num_spill += int(mask == _SPILL)
            if mask == 0:
                total.least_wait_s = min(total.least_wait_s, s.predicted_wait_s)
    _mark_neighbours(sim, signals, num_free)


def begin_signals(fleet_signals: np.ndarray, signals: np.ndarray) -> None:
    """Empty the signals, for a simulation at its start."""
    fleet_signals[:] = np.zeros(1, fleet_signals.dtype)
    fleet_signals["ttft_slo_s"] = np.inf
    signals[:] = np.zeros(signals.size, signals.dtype)

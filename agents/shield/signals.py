"""What the instantaneous response controller goes by: a few numbers of each replica and the fleet.

Whoever drives the controller fills them before each tick: the simulator's reader
(`simulated_signals.py`), or a live gateway and its probes. Counters only ever grow; where one goes
back, its engine has started anew. What has not been read yet is NaN, or a counter of 0 if it is
known to begin there.

Does not know: what is made of them (`detector.py`).
"""

import numpy as np

REPLICA_SIGNAL_DTYPE = np.dtype(
    [
        ("is_available", np.int64),  # the gateway sends to it
        ("outstanding_requests", np.float64),  # own count of the gateway
        ("pending_tokens", np.float64),  # own: uncached prompt tokens without a first token
        ("predicted_wait_s", np.float64),  # own: time until that backlog is done
        ("progress_at_s", np.float64),  # own: the last token that came from it, or start of work
        ("first_token_at_s", np.float64),  # own: the last first token, or start of the backlog
        ("scraped_at_s", np.float64),  # when its newest metrics page was read
        ("running_requests", np.float64),  # page
        ("waiting_requests", np.float64),  # page
        ("kv_usage_frac", np.float64),  # page
        ("allocation_failures", np.float64),  # page, counter: sequences preempted for want of pages
        ("busy_s", np.float64),  # probe, counter: time in iterations
        ("probed_at_s", np.float64),  # when that was read
        ("has_neighbour", np.int64),  # another replica could take over some of its KV
    ]
)

FLEET_SIGNAL_DTYPE = np.dtype(
    [
        ("now_s", np.float64),
        ("num_arrived", np.float64),  # counter
        ("arrived_tokens", np.float64),  # counter: prompt tokens
        ("num_outstanding", np.float64),
        ("least_wait_s", np.float64),  # shortest predicted wait anywhere; infinity: nobody serves
        ("ttft_slo_s", np.float64),  # tightest limit that is asked for
        ("num_spill", np.int64),  # replicas of the spill tier that are available
    ]
)


def make_signals(num_replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """Return empty signals: FLEET_SIGNAL_DTYPE [1], REPLICA_SIGNAL_DTYPE [R]."""
    return np.zeros(1, FLEET_SIGNAL_DTYPE), np.zeros(num_replicas, REPLICA_SIGNAL_DTYPE)

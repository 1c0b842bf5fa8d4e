"""The signals of a live fleet for its shield, and who stands still, compiled: read at every tick.

Does not know: where the numbers come from (`live_signals.py`), or what is made of them.
"""

import numpy as np

from ...env.compiled import compiled
from ...env.masks import Mask

# KV usage below which a replica counts as a neighbour that can take over somebody's KV.
_NEIGHBOUR_KV_FRAC = 0.7
_SPILL = int(Mask.SPILL)


@compiled
def fill_signals(views, token_at_s, page_at_s, totals, fleet, signals):
    """Fill the signals of a moment; return whether a replica stands still.

    It does if it has requests, and sent neither byte nor page for longer than the patience.

    Shapes: `views` VIEW_DTYPE [R]; `token_at_s` and `page_at_s` [R], when a byte and a page last
    came, NaN for no page yet; `totals` (moment, requests so far, their prompt tokens, tightest
    limit on TTFT, patience); `fleet` FLEET_SIGNAL_DTYPE [1] and `signals` REPLICA_SIGNAL_DTYPE
    [R], written.
    """
    now_s, num_arrived, arrived_tokens, ttft_slo_s, patience_s = totals
    stands_any_still = False
    num_outstanding, least_wait_s, num_free, num_spill = 0.0, np.inf, 0, 0
    for r in range(views.size):
        v, s = views[r], signals[r]
        is_open = v.is_available != 0 and v.mask == 0
        wait_s = v.slow_factor * v.pending_tokens * v.prefill_token_s
        s.is_available = v.is_available
        s.outstanding_requests = v.outstanding_requests
        s.pending_tokens = v.pending_tokens
        s.predicted_wait_s = wait_s
        heard_at_s = np.fmax(token_at_s[r], page_at_s[r])
        if v.outstanding_requests > 0 and v.is_available != 0:
            stands_any_still |= now_s - heard_at_s > patience_s
        heard_at_s = np.fmax(heard_at_s, v.progress_at_s)
        s.progress_at_s = heard_at_s if v.outstanding_requests > 0 else now_s
        s.first_token_at_s = v.progress_at_s
        s.scraped_at_s = page_at_s[r]
        s.running_requests = v.running_requests
        s.waiting_requests = v.waiting_requests
        s.kv_usage_frac = v.kv_usage_frac
        s.allocation_failures = s.busy_s = s.probed_at_s = np.nan
        is_free = is_open and v.kv_usage_frac < _NEIGHBOUR_KV_FRAC
        s.has_neighbour = 1 if is_free else 0
        num_free += s.has_neighbour
        num_outstanding += v.outstanding_requests
        if is_open:
            least_wait_s = min(least_wait_s, wait_s)
        if v.is_available != 0 and v.mask == _SPILL:
            num_spill += 1
    for r in range(views.size):
        s = signals[r]
        s.has_neighbour = 1 if num_free > s.has_neighbour else 0
    now = fleet[0]
    now.now_s = now_s
    now.num_arrived = num_arrived
    now.arrived_tokens = arrived_tokens
    now.num_outstanding = num_outstanding
    now.least_wait_s = least_wait_s
    now.ttft_slo_s = ttft_slo_s
    now.num_spill = num_spill
    return stands_any_still

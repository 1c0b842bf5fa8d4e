"""The shield's signals, read off a live gateway: what it counts, what passes it, what pages say.

A page that is read anew is a sign of life, as is every byte that comes: a replica that computes a
long prompt is not silent, one that stands still is.

Does not know: what is made of the signals (`agents/shield`).
"""

import numpy as np

from ...env.masks import Mask
from ..dispatcher.live_dispatcher import LiveDispatcher

# KV usage below which a replica counts as a neighbour that can take over somebody's KV.
_NEIGHBOUR_KV_FRAC = 0.7


def read_signals(
    dispatcher: LiveDispatcher,
    page_at_s: np.ndarray,
    now_s: float,
    fleet: np.ndarray,
    signals: np.ndarray,
) -> None:
    """Fill the signals of this moment.

    Shapes: `page_at_s` [R], when each replica's newest page was read, NaN for never; `fleet`
    FLEET_SIGNAL_DTYPE [1] and `signals` REPLICA_SIGNAL_DTYPE [R], written.
    """
    views, totals = dispatcher.views, dispatcher.totals
    outstanding = views["outstanding_requests"]
    for name in ("is_available", "outstanding_requests", "pending_tokens"):
        signals[name] = views[name]
    wait_s = views["slow_factor"] * views["pending_tokens"] * views["prefill_token_s"]
    signals["predicted_wait_s"] = wait_s
    heard_at_s = np.fmax(np.fmax(dispatcher.token_at_s, views["progress_at_s"]), page_at_s)
    signals["progress_at_s"] = np.where(outstanding > 0, heard_at_s, now_s)
    signals["first_token_at_s"] = views["progress_at_s"]
    signals["scraped_at_s"] = page_at_s
    for name in ("running_requests", "waiting_requests", "kv_usage_frac"):
        signals[name] = views[name]
    signals["allocation_failures"] = signals["busy_s"] = signals["probed_at_s"] = np.nan
    is_open = (views["is_available"] != 0) & (views["mask"] == 0)
    is_free = is_open & (views["kv_usage_frac"] < _NEIGHBOUR_KV_FRAC)
    signals["has_neighbour"] = is_free.sum() - is_free > 0
    fleet["now_s"] = now_s
    fleet["num_arrived"] = totals.num_arrived
    fleet["arrived_tokens"] = sum(totals.input_tokens)
    fleet["num_outstanding"] = outstanding.sum()
    fleet["least_wait_s"] = wait_s[is_open].min() if is_open.any() else np.inf
    fleet["ttft_slo_s"] = dispatcher.tightest_ttft_s
    spill = (views["is_available"] != 0) & (views["mask"] == int(Mask.SPILL))
    fleet["num_spill"] = spill.sum()

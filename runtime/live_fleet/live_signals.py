"""The shield's signals, read off a live gateway: what it counts, what passes it, what pages say.

A page that is read anew is a sign of life, as is every byte that comes: a replica that computes a
long prompt is not silent, one that stands still is.

Does not know: what is made of the signals (`agents/shield`).
"""

import numpy as np

from ..dispatcher.live_dispatcher import LiveDispatcher
from .signal_kernel import fill_signals


def read_signals(
    dispatcher: LiveDispatcher,
    page_at_s: np.ndarray,
    moment: tuple[float, float],
    fleet: np.ndarray,
    signals: np.ndarray,
) -> bool:
    """Fill the signals of a moment, (now, patience); return whether a replica stands still.

    It does if it has requests, and sent neither byte nor page for longer than the patience.

    Shapes: `page_at_s` [R], when each replica's newest page was read, NaN for never; `fleet`
    FLEET_SIGNAL_DTYPE [1] and `signals` REPLICA_SIGNAL_DTYPE [R], written.
    """
    totals, (now_s, patience_s) = dispatcher.totals, moment
    is_any_still: bool = fill_signals(
        dispatcher.views, dispatcher.token_at_s, page_at_s,
        (
            now_s, float(totals.num_arrived), float(sum(totals.input_tokens)),
            float(dispatcher.tightest_ttft_s), patience_s,
        ),
        fleet, signals,
    )  # fmt: skip
    return is_any_still

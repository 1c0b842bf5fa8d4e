"""What all gateways together know of each replica: the view that a fleet's state is read from.

Does not know: what a state is.
"""

import numpy as np

from .layout import SimulationArrays

# Counts that each gateway keeps of its own requests, and averages over them.
_SUMMED = ("outstanding_requests", "outstanding_tokens", "pending_tokens")
_AVERAGED = ("ttft_log_ratio", "iteration_log_ratio", "prefill_frac", "prefill_stretch")


def fleet_view(arrays: SimulationArrays) -> np.ndarray:
    """Return one view of each replica, VIEW_DTYPE [R].

    Gateways' own counts are added up and their moving averages averaged; what was read off a
    metrics page is taken from the gateway that read it last.
    """
    if arrays.gateways.size == 1:
        return arrays.views
    views = arrays.views.reshape(arrays.gateways.size, -1)  # [G, R]
    freshest = views["scraped_at_s"].argmax(axis=0)
    merged: np.ndarray = views[freshest, np.arange(views.shape[1])]
    for name in _SUMMED:
        merged[name] = views[name].sum(axis=0)
    for name in _AVERAGED:
        merged[name] = views[name].mean(axis=0)
    merged["progress_at_s"] = views["progress_at_s"].max(axis=0)
    # The geometric mean: the factor is the exponential of weighted log ratios.
    merged["slow_factor"] = np.exp(np.log(views["slow_factor"]).mean(axis=0))
    return merged

"""Several iterations taken at once, when each takes a little more time than the one before.

Does not know: why an iteration takes as long as it does (`latency.py`).
"""

import numpy as np

from .compiled import compiled


@compiled
def jump_time_s(first_s, slope_s, iterations):
    """Return the time of some iterations when each takes `slope_s` more than the one before."""
    return first_s * iterations + 0.5 * slope_s * iterations * (iterations - 1)


@compiled
def iterations_until(first_s, slope_s, span_s, limit):
    """Return how many iterations start within a span, at least 1 and at most `limit`."""
    half = 0.5 * slope_s
    b = first_s - half
    k = int(2.0 * span_s / (b + np.sqrt(b * b + 4.0 * half * span_s)))
    k = max(1, min(k, limit))
    while k < limit and jump_time_s(first_s, slope_s, k) < span_s:
        k += 1
    while k > 1 and jump_time_s(first_s, slope_s, k - 1) >= span_s:
        k -= 1
    return k

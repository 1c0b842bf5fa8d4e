"""The compiled pass that sums a tick's samples of one scope up, checking every value.

Does not know: frames, clocks, or what a signal means.
"""

import math

import numpy as np

from ...env.compiled import compiled

NOT_FINITE = 0
OUT_OF_RANGE = 1
"""Columns of the faults of a server."""
PRESENT = 0
MOVED = 1
FELL = 2
"""Columns of what the counters of a server did."""


@compiled
def summarise(samples, num_samples, low, high, is_counter, previous, last, minimum, maximum, mean,
              faults, counters):  # fmt: skip
    """Sum up the samples of a tick; servers without one keep what they had.

    Values that are infinite or out of range become absent and are counted in `faults`. `samples`
    is [servers, slots, entities, signals], `last` and its like [servers, entities, signals],
    `faults` [servers, 2], `counters` [servers, 3]; the latter two are added to.
    """
    _, _, num_entities, num_signals = samples.shape
    for s in range(samples.shape[0]):
        number = num_samples[s]
        if number == 0:
            continue
        for e in range(num_entities):
            for k in range(num_signals):
                total, seen = 0.0, 0
                least, most, newest = math.inf, -math.inf, math.nan
                for j in range(number):
                    value = samples[s, j, e, k]
                    newest = math.nan
                    if math.isnan(value):
                        continue
                    if math.isinf(value):
                        faults[s, NOT_FINITE] += 1
                        continue
                    if value < low[k] or value > high[k]:
                        faults[s, OUT_OF_RANGE] += 1
                        continue
                    newest = value
                    total += value
                    seen += 1
                    least = min(least, value)
                    most = max(most, value)
                last[s, e, k] = newest
                if seen:
                    minimum[s, e, k], maximum[s, e, k] = least, most
                    mean[s, e, k] = total / seen
                else:
                    minimum[s, e, k] = maximum[s, e, k] = mean[s, e, k] = np.nan
                if is_counter[k] and not math.isnan(newest):
                    before = previous[s, e, k]
                    if not math.isnan(before):
                        counters[s, PRESENT] += 1
                        counters[s, MOVED] += newest != before
                        counters[s, FELL] += newest < before

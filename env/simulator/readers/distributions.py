"""Values in groups: sorted once, then percentiles, means and spreads. NaN stands for no value.

Does not know: what the values are.
"""

import numpy as np

from ...compiled import compiled


@compiled
def grouped(groups, values, num_groups):
    """Return the values by group, each group's sorted, and where each group starts.

    Shapes: `groups` int and `values` [N] to [N] and int [num_groups + 1]. NaN comes last.
    """
    starts = np.zeros(num_groups + 1, np.int64)
    for i in range(groups.size):
        starts[groups[i] + 1] += 1
    for group in range(num_groups):
        starts[group + 1] += starts[group]
    ordered, filled = np.empty(values.size), starts.copy()
    for i in range(groups.size):
        ordered[filled[groups[i]]] = values[i]
        filled[groups[i]] += 1
    for group in range(num_groups):
        if starts[group + 1] - starts[group] > 1:
            ordered[starts[group] : starts[group + 1]].sort()
    return ordered, starts


@compiled
def _num_known(ordered):
    count = ordered.size
    while count > 0 and np.isnan(ordered[count - 1]):
        count -= 1
    return count


@compiled
def percentile(ordered, frac):
    """Return a percentile of sorted values, linear between two, as NumPy's; NaN of none."""
    count = _num_known(ordered)
    if count == 0:
        return np.nan
    place = frac * (count - 1)
    low = int(place)
    high = min(low + 1, count - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@compiled
def mean_of(ordered):
    """Return the mean of sorted values; NaN of none."""
    count = _num_known(ordered)
    total = 0.0
    for i in range(count):
        total += ordered[i]
    return total / count if count > 0 else np.nan


@compiled
def variation(ordered):
    """Return standard deviation over mean; NaN of fewer than two values, or of a mean of 0."""
    count, mean = _num_known(ordered), mean_of(ordered)
    if count < 2 or mean == 0.0:
        return np.nan
    squares = 0.0
    for i in range(count):
        squares += (ordered[i] - mean) ** 2
    return np.sqrt(squares / count) / mean

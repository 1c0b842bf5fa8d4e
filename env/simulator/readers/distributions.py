"""Values in groups: sorted once, then percentiles, means and spreads; NaN of nothing.

Does not know: what the values are.
"""

import numpy as np

from ...compiled import compiled

# Groups up to this size are sorted by insertion: a call of the library's sort costs more.
_FEW = 24


@compiled
def grouped(groups, values, num_groups):
    """Return the known values by group, each group's sorted, and where each group starts.

    Shapes: `groups` int and `values` [N] to [at most N] and int [num_groups + 1].
    """
    starts = np.zeros(num_groups + 1, np.int64)
    for i in range(groups.size):
        if np.isfinite(values[i]):
            starts[groups[i] + 1] += 1
    for group in range(num_groups):
        starts[group + 1] += starts[group]
    ordered, ends = np.empty(starts[num_groups]), starts.copy()
    for i in range(groups.size):
        if np.isfinite(values[i]):
            ordered[ends[groups[i]]] = values[i]
            ends[groups[i]] += 1
    for group in range(num_groups):
        _sort(ordered, starts[group], starts[group + 1])
    return ordered, starts


@compiled
def _sort(values, first, end):
    if end - first > _FEW:
        values[first:end].sort()
        return
    for i in range(first + 1, end):
        value, place = values[i], i
        while place > first and values[place - 1] > value:
            values[place] = values[place - 1]
            place -= 1
        values[place] = value


@compiled
def percentile(ordered, frac):
    """Return a percentile of sorted values, linear between two, as NumPy's; NaN of none."""
    if ordered.size == 0:
        return np.nan
    place = frac * (ordered.size - 1)
    low = int(place)
    high = min(low + 1, ordered.size - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@compiled
def mean_of(values):
    """Return the mean of values; NaN of none."""
    total = 0.0
    for i in range(values.size):
        total += values[i]
    return total / values.size


@compiled
def variation(values):
    """Return standard deviation over mean; NaN of fewer than two values, or of a mean of 0."""
    mean = mean_of(values)
    if values.size < 2 or mean == 0.0:
        return np.nan
    squares = 0.0
    for i in range(values.size):
        squares += (values[i] - mean) ** 2
    return np.sqrt(squares / values.size) / mean

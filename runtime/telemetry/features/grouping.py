"""Sums and means of nodes over the nodes that belong to them, absent values left out.

Does not know: what the values are.
"""

import numpy as np
from numpy.typing import NDArray

from ....env.state.feature import FloatArray

IntArray = NDArray[np.int64]


class Grouping:
    """Pairs of a member and the group that it belongs to; a member may belong to several.

    Shapes: members and groups are flat; P pairs.
    """

    def __init__(self, members: IntArray, groups: IntArray, num_groups: int) -> None:
        self._members = members  # [P]
        self._groups = groups  # [P]
        self._num_groups = num_groups

    def sums(self, values: FloatArray) -> FloatArray:
        """Return the sum of each group, [members] to [groups]; NaN if nothing of it is known."""
        totals, numbers = self._totals(values)
        sums: FloatArray = np.where(numbers > 0, totals, np.nan)
        return sums

    def means(self, values: FloatArray) -> FloatArray:
        """Return the mean of each group, [members] to [groups]; NaN if nothing of it is known."""
        totals, numbers = self._totals(values)
        means: FloatArray = totals / np.where(numbers > 0, numbers, np.nan)
        return means

    def _totals(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        own = values[self._members]
        is_known = np.isfinite(own)
        totals, numbers = (
            np.bincount(self._groups, weights, self._num_groups).astype(np.float64)
            for weights in (np.where(is_known, own, 0.0), is_known)
        )
        return totals, numbers

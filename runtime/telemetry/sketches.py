"""Quantile sketches of features: made in a rack over a span of time, merged at the hub.

KLL sketches of Apache DataSketches. Every value that a sketch is given counts once, so that its
quantiles are over the rows of a rack and the ticks of the span alike.

Does not know: which values are worth a sketch, or frames.
Source: Karnin, Lang, Liberty, "Optimal quantile approximation in streams", FOCS 2016.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from datasketches import kll_floats_sketch, vector_of_kll_floats_sketches
from numpy.typing import ArrayLike, NDArray

K: Final = 64
"""Size parameter: a rank is off by less than 4 % (with 99 % confidence) at 840 bytes a sketch."""
MAX_SKETCH_BYTES: Final = 1 << 14

FloatArray = NDArray[np.float64]


class FeatureSketches:
    """One sketch for each of a rack's features of a node kind."""

    def __init__(self, num_features: int) -> None:
        self._sketches = vector_of_kll_floats_sketches(K, num_features)
        self._num_features = num_features

    def update(self, values: NDArray[np.float32]) -> None:
        """Take the features of all rows; NaN counts for nothing.

        Shapes: `values` [rows, features].
        """
        self._sketches.update(values)

    def serialise(self) -> list[tuple[int, bytes]]:
        """Return feature and bytes of each sketch that has a value, and begin anew."""
        parts: list[bytes] = self._sketches.serialize()
        is_empty = self._sketches.is_empty()
        self._sketches = vector_of_kll_floats_sketches(K, self._num_features)
        return [(i, part) for i, part in enumerate(parts) if not is_empty[i]]


class Sketch:
    """Quantiles of a feature, of any number of sketches together."""

    def __init__(self, parts: Iterable["kll_floats_sketch"]) -> None:
        self._sketch = kll_floats_sketch(K)
        for part in parts:
            self._sketch.merge(part)

    @property
    def num_values(self) -> int:
        """Values that it was given."""
        return int(self._sketch.n)

    @property
    def rank_error(self) -> float:
        """Most by which the rank of a quantile is off, as a share, at 99 % confidence."""
        return float(self._sketch.normalized_rank_error(False))

    def quantiles(self, ranks: ArrayLike) -> FloatArray:
        """Return the quantiles of ranks in [0, 1]; NaN without a value."""
        wanted = np.asarray(ranks, np.float64)
        if self._sketch.is_empty():
            return np.full(wanted.shape, np.nan)
        found = self._sketch.get_quantiles(wanted.ravel().tolist())
        return np.array(found, np.float64).reshape(wanted.shape)


def read_sketch(body: bytes) -> "kll_floats_sketch | None":
    """Return the sketch that bytes hold, or None if they hold none that we would make."""
    if len(body) > MAX_SKETCH_BYTES:
        return None
    try:
        sketch = kll_floats_sketch.deserialize(body)
    except (ValueError, RuntimeError, IndexError, MemoryError):
        return None
    return sketch if sketch.k == K else None

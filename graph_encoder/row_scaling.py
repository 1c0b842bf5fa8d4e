"""Raw values as inputs of the network: scaled as in the registry, then flags of what is known.

A value that is absent or not finite is 0 with flag 0, whatever stands in its place.

Does not know: nodes, edges or their features; only scales.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..env.state.feature import FloatArray, Scale
from . import row_kernels as kernels

FloatRows = NDArray[np.float32]
BoolRows = NDArray[np.bool_]

LOG_FLOOR = 1e-9
"""Least number that a logarithm is taken of, as in the registry."""

# of what each normaliser takes the logarithm, and how many of its units an e-fold is
_ADDED = {"log1p": 1.0, "log10": 0.0}
_PER_E_FOLD = {"identity": 1.0, "log1p": 1.0, "log10": 1.0 / math.log(10.0)}


class RowScaling:
    """Scales rows of some features, the logarithms all at once and in single precision.

    Raises:
        ValueError: a scale has a normaliser that this class does not know.
    """

    def __init__(self, scales: Sequence[Scale]) -> None:
        for scale in scales:
            if scale.normaliser not in _PER_E_FOLD:
                msg = f"normaliser must be one of {', '.join(_PER_E_FOLD)}, got {scale.normaliser}"
                raise ValueError(msg)
        per_e_fold = np.array([_PER_E_FOLD[s.normaliser] for s in scales])
        self._low = np.array([s.low for s in scales], dtype=float)
        self._high = np.array([s.high for s in scales], dtype=float)
        # (x per e-fold - offset) / scale = (x - offset / per e-fold) per e-fold / scale
        self._shift = np.array([s.offset for s in scales]) / per_e_fold
        self._factor = per_e_fold / np.array([s.scale for s in scales])
        is_log = np.array([s.normaliser in _ADDED for s in scales], dtype=bool)
        self._added = np.array([_ADDED.get(s.normaliser, 0.0) for s in scales])
        self._log_columns = np.flatnonzero(is_log)
        self.num_features = len(scales)

    def fill(self, rows: FloatRows, values: FloatArray, is_valid: BoolRows) -> None:
        """Write scaled values, then flags.

        Shapes (N rows, F features): `values`, `is_valid` [N, F] -> first columns of `rows`
        [N, 2 F or more].
        """
        logs = np.empty((len(values), len(self._log_columns)), dtype=np.float32)
        span, line = (self._low, self._high), (self._shift, self._factor)
        kernels.scale_values(values, is_valid, *span, *line, rows)
        kernels.collect_logs(values, self._log_columns, *span, self._added, LOG_FLOOR, rows, logs)
        np.log(logs, out=logs)
        kernels.place_logs(logs, self._log_columns, self._shift, self._factor, rows)

"""The scale of every cell of a rack's flat vector, and the way there and back.

Cells are scaled as the registry says, so that noise, dead bands and changes of all features are
measured in one unit. A code is a scaled value in steps of `STEP`, counted from the low end of the
feature's range; `ABSENT` stands for a value that is not there.

Does not know: which cells changed (`deltas.py`), or whether a change matters.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import NORMALISERS, TREND, Feature, FloatArray, Live, Node, Scale
from ...env.state.registry import FEATURES_BY_NODE
from . import cell_kernels
from .rack_layout import RACK_NODES, RackLayout

STEP: Final = 1 / 250
"""Of scaled units: 0.4 % of a share, 0.12 C, 1.6 % of a count, 0.9 % of a bandwidth."""
ABSENT: Final = -32768
"""Code of a cell without a value."""
MAX_CODE: Final = 32767

_KINDS = {name: kind for kind, name in enumerate(NORMALISERS)}  # as `cell_kernels` counts them

CodeArray = NDArray[np.int16]
Float32Array = NDArray[np.float32]


class CellScales:
    """Scales of the cells of a rack.

    Shapes: everything is [cells] unless it is said otherwise.
    """

    def __init__(self, layout: RackLayout) -> None:
        self.features = tuple(f for node in RACK_NODES for f in FEATURES_BY_NODE[node])
        """The features that a rack has, node kind after node kind."""
        self.table = scale_table([feature.scale for feature in self.features])
        self._cells = layout.cells
        self._tables = {}
        parts, first = [], 0
        for node in RACK_NODES:
            number = len(FEATURES_BY_NODE[node])
            rows = len(layout.row_server[node])
            self._tables[node] = self.table[first : first + number]
            parts.append(np.tile(np.arange(first, first + number), rows))
            first += number
        self.feature_of: NDArray[np.int32] = np.concatenate(parts).astype(np.int32)
        """[cells]: index of the cell's feature in `features`."""
        self._step = steps_of(self.features)
        self.is_watched = np.array([not is_constant(f) and f.scale != TREND for f in self.features])
        """[features]: whether a sudden change is worth telling of: not of a constant, nor of a
        trend, which is itself a change."""

    @property
    def steps(self) -> FloatArray:
        """[features]: scaled units between two codes."""
        return self._step

    def take(
        self,
        node: Node,
        values: tuple[FloatArray, NDArray[np.bool_]],
        is_shown: NDArray[np.bool_],
        *,
        raw: Float32Array,
        scaled: Float32Array,
    ) -> None:
        """Write values of a node kind into the rack's cells; NaN where absent or not shown.

        Shapes: `values` and their validity [rows, features]; `is_shown` [rows]; `raw` and `scaled`
        [cells], the latter clipped to the features' ranges.
        """
        cells = self._cells[node]
        table = self._tables[node]
        cell_kernels.take(*values, is_shown, table, raw[cells], scaled[cells])

    def raw(self, cells: NDArray[np.int64], scaled: FloatArray) -> FloatArray:
        """Return scaled values of some cells in raw units."""
        out = np.empty(len(cells))
        cell_kernels.unscale(scaled, self.feature_of[cells], self.table, out)
        return out


def is_constant(feature: Feature) -> bool:
    """Say whether only files and catalogues know a feature."""
    return bool(feature.live) and set(feature.live) <= {Live.CONFIG}


def scale_table(scales: list[Scale]) -> FloatArray:
    """Return scales as [features, 5]: kind of normaliser, low, high, offset, scale."""
    rows = [(_KINDS[s.normaliser], s.low, s.high, s.offset, s.scale) for s in scales]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def scaled_range(scale: Scale) -> tuple[float, float]:
    """Return the ends of a feature's range in scaled units."""
    ends = NORMALISERS[scale.normaliser](np.array([scale.low, scale.high]))
    low, high = (ends - scale.offset) / scale.scale
    return float(low), float(high)


def steps_of(features: tuple[Feature, ...]) -> FloatArray:
    """Return scaled units between two codes: `STEP`, and as fine as codes allow for constants."""
    steps = []
    for feature in features:
        low, high = scaled_range(feature.scale)
        finest = (high - low) / MAX_CODE
        steps.append(finest if is_constant(feature) else max(finest, STEP))
    return np.array(steps)

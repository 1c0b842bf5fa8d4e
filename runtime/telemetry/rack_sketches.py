"""The quantile sketches of a rack: which tick feeds them, and which tick sends which.

Sketches are fed by some ticks only, since feeding costs more than all else in a tick. The kinds of
nodes end their spans at different ticks, so that frames stay about as large as each other.

Does not know: how a sketch works (`sketches.py`), or frames.
"""

import numpy as np
from numpy.typing import NDArray

from ...env.state.registry import FEATURES_BY_NODE
from .rack_layout import RACK_NODES, RackLayout
from .sketches import FeatureSketches


class RackSketches:
    """Sketches of all features of a rack."""

    def __init__(
        self, layout: RackLayout, *, every_ticks: int, span_ticks: int, index: int = 0
    ) -> None:
        self._layout = layout
        self._every_ticks = every_ticks
        self._span_ticks = span_ticks
        self._index = index
        self._sketches = {node: FeatureSketches(len(FEATURES_BY_NODE[node])) for node in RACK_NODES}

    def tick(self, values: NDArray[np.float32], tick: int) -> list[tuple[int, bytes]]:
        """Take the rack's cells, raw; return the sketches that are due, by feature of the rack."""
        due = []
        if tick % self._every_ticks == self._index % self._every_ticks:
            for node in RACK_NODES:
                rows = values[self._layout.cells[node]].reshape(-1, len(FEATURES_BY_NODE[node]))
                self._sketches[node].update(rows)
        first = 0
        for place, node in enumerate(RACK_NODES):
            ends_at = (place + 1) * self._span_ticks // len(RACK_NODES)
            if tick % self._span_ticks == ends_at % self._span_ticks:
                parts = self._sketches[node].serialise()
                due += [(first + i, body) for i, body in parts]
            first += len(FEATURES_BY_NODE[node])
        return due

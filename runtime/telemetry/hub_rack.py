"""What the hub has of one rack: the codes of its cells, its place in time, its sketches.

Does not know: other racks, or who asks for the state.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import Node
from ...env.state.registry import FEATURES_BY_NODE, column
from . import delta_kernel
from .cell_scales import CellScales
from .changes import Change
from .deltas import DeltaDecoder, lows_of
from .fleet_layout import NONE, FleetLayout
from .fleet_values import FleetValues
from .rack_frames import RackFrame, sampled_at_s
from .rack_layout import RACK_NODES
from .reasons import Reason
from .sketches import read_sketch

if TYPE_CHECKING:
    from datasketches import kll_floats_sketch

_TOLERANCE_S: Final = 5e-6
"""By which the moment of one sample may differ between two frames, which hold microseconds."""
_ASK_EVERY_S: Final = 1.0


class HubRack:
    """Follows the frames of one rack and writes its values into the fleet's.

    Shapes: S servers of the rack, C cells.
    """

    def __init__(self, fleet: FleetLayout, index: int, values: FleetValues) -> None:
        self.layout = fleet.racks[index]
        self._values = values
        self._servers = fleet.rows[index][Node.SERVER]
        self._scales = CellScales(self.layout)
        self._low = lows_of(self._scales)
        self._decoder = DeltaDecoder(self._scales)
        self._place, self._row = self._places(fleet, index)
        self._everything = np.full_like(self._decoder.mask, 255)
        self._is_behind = np.zeros(len(self.layout.servers), np.bool_)
        self._epoch = -1
        self._sequence = -1
        self._num_lost = 0
        self._needs_key = True
        self._asked_at_s = -np.inf
        self._sketches: dict[int, kll_floats_sketch] = {}
        starts = np.cumsum([0, *(len(FEATURES_BY_NODE[node]) for node in RACK_NODES)])
        self._first_feature = dict(zip(RACK_NODES, starts.tolist(), strict=False))

    def order_fault(self, frame: RackFrame) -> Reason | None:
        """Return why a frame's place in its sequence forbids to take it; remember its place."""
        if frame.epoch < self._epoch:
            return Reason.OLD_EPOCH
        if frame.epoch > self._epoch:
            self._epoch, self._sequence = frame.epoch, frame.sequence
            self._needs_key = True
            return None
        ahead = frame.sequence - self._sequence
        if ahead <= 0:
            return Reason.DUPLICATE if ahead == 0 else Reason.OUT_OF_ORDER
        if ahead > 1:
            self._num_lost += ahead - 1
            self._needs_key = True
        self._sequence = frame.sequence
        return None

    def take_num_lost(self) -> int:
        """Return how many frames were found lost since the last call."""
        number, self._num_lost = self._num_lost, 0
        return number

    def wants_key(self, now_s: float) -> bool:
        """Say whether a key should be asked for now."""
        if not self._needs_key or now_s - self._asked_at_s < _ASK_EVERY_S:
            return False
        self._asked_at_s = now_s
        return True

    def apply(self, frame: RackFrame) -> Reason | None:
        """Take a frame's values, if they can be read; return what is wrong with it."""
        if frame.is_key:
            self._needs_key, self._asked_at_s = False, -np.inf
        if self._needs_key:
            return None  # its loss is counted; what it says is relative to what was lost
        if self._decoder.apply(frame.delta, is_key=frame.is_key) is not None:
            self._needs_key = True
            self._values.mask(self._servers)
            return Reason.MALFORMED
        new_at_s = sampled_at_s(frame.ages, frame.at_s)
        known_at_s = self._values.sampled_at_s[self._servers]
        is_behind = new_at_s < known_at_s - _TOLERANCE_S
        was_behind = self._is_behind
        self._is_behind = is_behind
        # a key, or a server that has caught up, shows all; else only what changed is written
        shows_all = frame.is_key or bool((was_behind & ~is_behind).any())
        self._show(self._everything if shows_all else self._decoder.mask, ~is_behind)
        self._values.sampled_at_s[self._servers] = np.fmax(known_at_s, new_at_s)
        return None

    def changes_of(self, frame: RackFrame) -> Iterator[Change]:
        """Return the changes that a frame tells of, oldest first."""
        for entry in frame.changes:
            cell = entry.cell
            if cell >= len(self._row) or self._row[cell] == NONE:
                continue
            feature = self._scales.features[self._scales.feature_of[cell]]
            cells = np.array([cell, cell])
            before, after = self._scales.raw(cells, np.array([entry.before, entry.after]))
            yield Change(
                at_s=frame.at_s,
                rack=self.layout.rack,
                node=feature.node,
                row=int(self._row[cell]),
                feature=feature.name,
                before=float(before),
                after=float(after),
            )

    def keep_sketches(self, frame: RackFrame) -> int:
        """Keep a frame's sketches in place of the ones before; return how many are none."""
        num_bad = 0
        for entry in frame.sketches:
            sketch = read_sketch(entry.body)
            if sketch is None or entry.feature >= len(self._scales.features):
                num_bad += 1
            else:
                self._sketches[entry.feature] = sketch
        return num_bad

    def sketch(self, node: Node, feature: str) -> "kll_floats_sketch | None":
        """Return the latest sketch of a feature, or None."""
        place = column(node, feature)
        if node not in self._first_feature:
            return None
        return self._sketches.get(self._first_feature[node] + place)

    def _show(self, mask: NDArray[np.uint8], is_shown: NDArray[np.bool_]) -> None:
        delta_kernel.show(
            mask, self._decoder.codes, self.layout.cell_server, is_shown, self._place,
            self._scales.feature_of, self._low, self._scales.steps, self._scales.table,
            self._values.flat, self._values.flat_is_valid, self._values.is_put,
        )  # fmt: skip

    def _places(
        self, fleet: FleetLayout, index: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return for each cell its place in the fleet's values, and its row."""
        places, rows = [], []
        for node in RACK_NODES:
            width = len(FEATURES_BY_NODE[node])
            row = np.repeat(fleet.rows[index][node], width)
            of_row = np.tile(np.arange(width), len(fleet.rows[index][node]))
            place = self._values.first[node] + row * width + of_row
            places.append(np.where(row == NONE, NONE, place))
            rows.append(row)
        return np.concatenate(places), np.concatenate(rows)

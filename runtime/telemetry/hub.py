"""The hub: frames of all racks in, the state of the fleet out, as often as anybody asks.

A frame that is not a key counts only right after the one before it; after a loss a rack's values
grow old until its next key comes. The newest moment of a server never goes back: what a frame says
of a server that was known later is held back until it catches up.

Does not know: how frames travel (`service.py`), or what is done with the state.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node
from ...env.state.registry import registry_hash
from .changes import Change
from .fleet_layout import FleetLayout
from .fleet_values import FleetValues
from .frames import FrameError
from .hub_rack import HubRack
from .rack_frames import RackFrame, decode_rack_frame
from .reasons import Counts, Reason
from .sketches import Sketch

MAX_CHANGES: Final = 4096
"""Changes that are kept; of more, the oldest are forgotten."""
MAX_AGE_S: Final = 5.0
"""Values of a node that was last heard of longer ago are masked."""
FUTURE_S: Final = 1.0
"""A frame's moment may be so far ahead of the hub's clock."""


class Hub:
    """The state of a fleet. Used from one thread."""

    def __init__(self, layout: FleetLayout, *, max_age_s: float = MAX_AGE_S) -> None:
        if not max_age_s > 0:
            msg = f"max_age_s must be above 0, got {max_age_s}"
            raise ValueError(msg)
        self.layout = layout
        self.counts = Counts(rack.rack for rack in layout.racks)
        """Frames that were not used, by reason and rack."""
        self.changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        """Sudden changes in the fleet, newest first."""
        self.num_changes_left_out = 0
        """Changes that aggregators found beyond what a frame can list."""
        self._registry_hash = registry_hash()
        self._values = FleetValues(layout, max_age_s=max_age_s)
        self._racks = {
            rack.rack: HubRack(layout, i, self._values) for i, rack in enumerate(layout.racks)
        }

    def ingest(self, body: bytes, received_at_s: float) -> None:
        """Take a frame of an aggregator; what cannot be used is counted."""
        try:
            frame = decode_rack_frame(body)
        except FrameError as error:
            self.counts.add(error.reason)
            return
        rack = self._racks.get(frame.rack)
        if rack is None:
            self.counts.add(Reason.UNKNOWN_PROBE)
            return
        fault = self._fault(rack, frame, received_at_s)
        num_lost = rack.take_num_lost()
        if num_lost:
            self.counts.add(Reason.LOST, frame.rack, num_lost)
        if fault is not None:
            self.counts.add(fault, frame.rack)
            return
        for change in rack.changes_of(frame):
            self.changes.appendleft(change)
        self.num_changes_left_out += frame.num_changes_left_out
        if num_bad := rack.keep_sketches(frame):
            self.counts.add(Reason.MALFORMED, frame.rack, num_bad)
        fault = rack.apply(frame)
        if fault is not None:
            self.counts.add(fault, frame.rack)

    def state(self, now_s: float) -> ClusterState:
        """Return the state of the fleet; its arrays belong to the caller."""
        return self._values.state(now_s)

    def put(self, node: Node, values: Mapping[str, ArrayLike], at_s: float) -> None:
        """Set features that no rack measures: those of the gateway, of tenants, zones, the fleet.

        Shapes: each of `values` [rows of the kind], NaN where absent. From then on these features
        are no longer taken from racks. A moment before the latest one is ignored and counted.

        Raises:
            ValueError: the registry has no such feature, or a shape is wrong.
        """
        if not self._values.put(node, values, at_s):
            self.counts.add(Reason.OUT_OF_ORDER)

    def sketch(self, node: Node, feature: str, rack: str | None = None) -> Sketch:
        """Return quantiles of a feature over the latest span of a rack, or of all racks.

        Raises:
            ValueError: the registry has no such feature, or the fleet no such rack.
        """
        if rack is not None and rack not in self._racks:
            msg = f"unknown rack {rack!r}; known: {', '.join(self._racks)}"
            raise ValueError(msg)
        racks = [self._racks[rack]] if rack is not None else list(self._racks.values())
        parts = [one.sketch(node, feature) for one in racks]
        return Sketch(part for part in parts if part is not None)

    def wanted_keys(self, now_s: float) -> list[str]:
        """Return the racks whose key is missing; each is named once a second at most."""
        return [name for name, rack in self._racks.items() if rack.wants_key(now_s)]

    @property
    def sampled_at_s(self) -> NDArray[np.float64]:
        """[servers]: moment of each server's newest sample, in hub time; NaN if never."""
        return self._values.sampled_at_s.copy()

    def _fault(self, rack: HubRack, frame: RackFrame, received_at_s: float) -> Reason | None:
        if frame.registry_hash != self._registry_hash:
            return Reason.WRONG_SIGNALS
        if frame.layout_hash != rack.layout.hash or len(frame.ages) != 4 * len(rack.layout.servers):
            return Reason.WRONG_SHAPE
        if frame.at_s > received_at_s + FUTURE_S:
            return Reason.FROM_FUTURE
        return rack.order_fault(frame)

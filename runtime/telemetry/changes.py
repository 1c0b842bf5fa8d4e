"""One sudden change of one feature, as the hub tells of it.

Does not know: how it was found (`change_points.py`).
"""

from dataclasses import dataclass

from ...env.state.feature import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A step in a feature of a node."""

    at_s: float
    """Tick at which it was found, in hub time."""
    rack: str
    node: Node
    row: int
    """Of the node kind, in the fleet's state."""
    feature: str
    before: float
    """Mean before the change, in the feature's unit."""
    after: float
    """Value that it was found at."""

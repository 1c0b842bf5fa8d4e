"""What a live fleet can be asked from outside its gateway's process.

Does not know: how the question travels (`runtime/admin/client.py` does it over HTTP).
"""

from typing import Protocol

from ...env.cluster import ClusterSpec
from ...env.fleet import WindowOutcome
from ...env.knobs import Knobs
from ...env.state.cluster_state import ClusterState


class FleetLink(Protocol):
    """A way to a live fleet's gateway. Every call may fail with a `TrimtabError`."""

    def cluster(self) -> ClusterSpec:
        """Return what the fleet is made of."""
        ...

    def state(self) -> ClusterState:
        """Return what can be seen at this moment."""
        ...

    def apply(self, knobs: Knobs) -> Knobs:
        """Let knobs rule from here on; return those in force."""
        ...

    def advance(self, span_s: float) -> WindowOutcome:
        """Wait some time and return what happened in it."""
        ...

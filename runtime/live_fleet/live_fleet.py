"""A live fleet as a `Fleet`: what plays on the simulator plays on it, in real time.

Time passes by itself here: `advance` waits for it, and what happens between two calls is in no
window. Requests come whether or not anybody plays, so a run begins with what others left open, and
no seed repeats it.

Does not know: Gymnasium, policies, or how the gateway is reached (`FleetLink`).
"""

from dataclasses import dataclass

import numpy as np

from ...env.cluster import ClusterSpec
from ...env.fleet import WindowOutcome
from ...env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import FloatArray, Node
from ...env.state.registry import column
from .fleet_link import FleetLink

_OUTSTANDING = column(Node.REPLICA, "outstanding_requests")
# Time between two looks at what is still open, s.
_POLL_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveFleetConfig:
    """How long a live fleet waits for what is open.

    Both are 0 where traffic never ends: then a run gets the credit of requests that began before
    it, and leaves about as much to the next.

    Raises:
        ValueError: a time is below 0.
    """

    settle_s: float = 0.0
    """Most time that `reset` waits for requests of an earlier run to end."""
    drain_s: float = 0.0
    """Most time that `drain` waits."""

    def __post_init__(self) -> None:
        for name in ("settle_s", "drain_s"):
            if not getattr(self, name) >= 0.0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)


class LiveFleet:
    """A `Fleet` at the other end of a link."""

    def __init__(self, link: FleetLink, config: LiveFleetConfig | None = None) -> None:
        self._link, self._config = link, config or LiveFleetConfig()
        self._cluster = link.cluster()
        self._windows: list[WindowOutcome] = []
        self._drained: list[WindowOutcome] = []

    @property
    def cluster(self) -> ClusterSpec:
        """What the fleet is made of."""
        return self._cluster

    def reset(self, *, seed: int, knobs: Knobs | None = None) -> ClusterState:
        """Set the knobs, wait for what is open, and begin to count anew; the seed is not used."""
        self._link.apply(knobs or ANALYTIC_SCORER_KNOBS)
        self._wait(self._config.settle_s)
        self._windows, self._drained = [], []
        return self.state()

    def apply(self, knobs: Knobs) -> Knobs:
        """Set the knobs from here on; return those in force."""
        return self._link.apply(knobs)

    def advance(self, span_s: float) -> WindowOutcome:
        """Wait some time and return what happened in it."""
        outcome = self._link.advance(span_s)
        self._windows.append(outcome)
        return outcome

    def drain(self) -> None:
        """Wait until nothing is open, or for `drain_s`; what comes meanwhile is counted too."""
        self._drained += self._wait(self._config.drain_s)

    def _wait(self, limit_s: float) -> list[WindowOutcome]:
        """Wait until nothing is open, but no longer than that; return what happened."""
        outcomes: list[WindowOutcome] = []
        left_s = limit_s
        while left_s > 1e-3 and self.num_open > 0:
            span_s = min(_POLL_S, left_s)
            outcomes.append(self._link.advance(span_s))
            left_s -= span_s
        return outcomes

    @property
    def num_open(self) -> int:
        """Requests that are at a replica."""
        outstanding = self.state().values[Node.REPLICA][:, _OUTSTANDING]
        return int(np.nansum(outstanding))

    def state(self) -> ClusterState:
        """Return what can be seen at this moment."""
        return self._link.state()

    def credit_by_window(self, window_s: float, num_windows: int) -> FloatArray:
        """Return the weight of met requests by the window in which they *ended*.

        A gateway keeps no request once it has ended, so unlike the simulator it cannot tell in
        which window it came. What ended while draining stands in the last window.
        """
        credit = np.zeros(num_windows)
        start_s = self._windows[0].start_s if self._windows else 0.0
        for outcome in self._windows:
            middle_s = 0.5 * (outcome.start_s + outcome.end_s) - start_s
            credit[min(int(middle_s / window_s), num_windows - 1)] += outcome.credit
        credit[-1] += sum(outcome.credit for outcome in self._drained)
        return credit

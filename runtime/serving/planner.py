"""Long-term planners: which replicas stand ready, decided once a minute.

Does not know: which moves are allowed (`agents/shield/move_projection.py`), or how they are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from ...env.capacity import CapacityMove, MoveKind
from ...env.cluster import ClusterSpec
from ...env.fleet import WindowOutcome
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node


class Planner(Protocol):
    """Asks for moves of capacity; what is not allowed is refused and counted."""

    def plan(
        self, state: ClusterState, windows: Sequence[WindowOutcome], states: Sequence[str]
    ) -> Sequence[CapacityMove]:
        """Return moves, the most wanted first.

        `windows` are those since the last call; `states` say how each replica is, as
        `env.fleet_orders.STATE_NAMES` has it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Hold:
    """Leaves everything as it is."""

    def plan(
        self, state: ClusterState, windows: Sequence[WindowOutcome], states: Sequence[str]
    ) -> Sequence[CapacityMove]:
        """Return no moves."""
        return ()


@dataclass(slots=True, kw_only=True)
class TargetLoad:
    """Keeps the busiest share of the ready replicas near a target, a replica at a time.

    A replica's load is its outstanding requests over `slots`. Down only after the load was low for
    some calls in a row, and never right after a move; up at once.

    Raises:
        ValueError: the loads are not in order, or a number makes no sense.

    Source: utilisation targets with a dwell time, as in Kubernetes' horizontal autoscaler.
    """

    slots: float
    """Requests that a replica does well at a time."""
    low_frac: float = 0.3
    """Load under which a replica less will do."""
    high_frac: float = 0.8
    """Load over which a replica more is wanted."""
    dwell_calls: int = 5
    """Calls in a row with a low load before a replica goes; at one a minute, 5 minutes."""
    cooldown_calls: int = 2
    """Calls after a move in which nothing is moved down."""
    least_ready: int = 1
    """Ready replicas that stay whatever the load."""
    _num_low: int = 0
    _cooldown: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low_frac < self.high_frac:
            msg = f"low_frac must be in [0, high_frac), got {self.low_frac} and {self.high_frac}"
            raise ValueError(msg)
        if not self.slots > 0:
            msg = f"slots must be above 0, got {self.slots}"
            raise ValueError(msg)
        for name in ("dwell_calls", "least_ready"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)

    def plan(
        self, state: ClusterState, windows: Sequence[WindowOutcome], states: Sequence[str]
    ) -> Sequence[CapacityMove]:
        """Return one move, or none."""
        outstanding = state.feature(Node.REPLICA, "outstanding_requests")
        ready = [i for i, name in enumerate(states) if name == "ready"]
        asleep = [i for i, name in enumerate(states) if name == "asleep"]
        self._cooldown = max(0, self._cooldown - 1)
        if not ready:
            return self._wake(asleep)
        load = float(np.nansum(outstanding[ready])) / (len(ready) * self.slots)
        if load > self.high_frac:
            self._num_low = 0
            return self._wake(asleep)
        # One replica less must still be under the upper target, or it would come back at once.
        is_spare = len(ready) > self.least_ready and (
            load * len(ready) / max(1, len(ready) - 1) < self.high_frac
        )
        self._num_low = self._num_low + 1 if load < self.low_frac and is_spare else 0
        if self._num_low < self.dwell_calls or self._cooldown > 0:
            return ()
        self._num_low, self._cooldown = 0, self.cooldown_calls
        idlest = min(ready, key=lambda i: (float(np.nan_to_num(outstanding[i])), -i))
        return (CapacityMove(kind=MoveKind.SLEEP, replica=idlest),)

    def _wake(self, asleep: Sequence[int]) -> Sequence[CapacityMove]:
        if not asleep:
            return ()
        self._cooldown = self.cooldown_calls
        return (CapacityMove(kind=MoveKind.WAKE, replica=asleep[0]),)


def _target_load(cluster: ClusterSpec) -> Planner:
    slots = [replica.max_num_seqs for replica in cluster.replicas]
    return TargetLoad(slots=sum(slots) / len(slots))


PLANNERS: Final[Mapping[str, Callable[[ClusterSpec], Planner]]] = {
    "hold": lambda cluster: Hold(),
    "target-load": _target_load,
}
"""Planners by name."""

"""Moves of capacity, brought within what may be done to a fleet at a time.

Moves are judged in their order, each on what those before it leave: a place keeps its least number
of ready replicas, a fleet sees so many moves a minute, a replica is not sent up and down again
within its dwell time, and power caps stay in their range. What is refused says why and by how much.

Does not know: how a fleet makes a move (`env/simulated_fleet.py`), or who asked for it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ...env.capacity import CapacityMove, MoveKind
from ...env.cluster import ClusterSpec

Place = tuple[str, str]
"""A model and a zone."""

_UP = frozenset({MoveKind.START, MoveKind.WAKE})
_DOWN = frozenset({MoveKind.STOP, MoveKind.SLEEP})
# What a replica must be for a move, and what it is right after it.
_FROM = {
    MoveKind.START: "stopped",
    MoveKind.WAKE: "asleep",
    MoveKind.STOP: "ready",
    MoveKind.SLEEP: "ready",
}
_INTO = {
    MoveKind.START: "starting",
    MoveKind.WAKE: "waking",
    MoveKind.STOP: "draining",
    MoveKind.SLEEP: "draining",
}
_MINUTE_S = 60.0


class Refusal(StrEnum):
    """Why a move is not made, and what its amount is."""

    UNKNOWN_REPLICA = "unknown_replica"  # 0
    WRONG_STATE = "wrong_state"  # 0
    LEAST_READY = "least_ready"  # ready replicas that its place would lack
    TOO_MANY_MOVES = "too_many_moves"  # seconds until one more may be made
    DWELL = "dwell"  # seconds until this one may be made
    NOT_FINITE = "not_finite"  # 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveLimits:
    """What may be done to a fleet at a time.

    Raises:
        ValueError: a number is below 0, or `least_cap_frac` not in (0, 1].
    """

    least_ready: Mapping[Place, int] = field(default_factory=dict)
    """Ready replicas that a model keeps in a zone; 1 where nothing is said."""
    moves_per_min: int = 6
    """Starts, stops, sleeps and wakes in any 60 s, of the whole fleet."""
    dwell_s: float = 120.0
    """Least time between sending a replica up and down, either way round."""
    cap_dwell_s: float = 10.0
    """Least time between two power caps of a replica."""
    # Boards refuse caps far below half of their limit: an H100's range is 200 to 700 W, an A100's
    # 100 to 400 W (nvidia-smi -q -d POWER); below half, time grows faster than energy falls.
    least_cap_frac: float = 0.5
    """Lowest power cap over the board's limit."""

    def __post_init__(self) -> None:
        for name in ("moves_per_min", "dwell_s", "cap_dwell_s"):
            if not getattr(self, name) >= 0:
                msg = f"{name} must be at least 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0 < self.least_cap_frac <= 1:
            msg = f"least_cap_frac must be in (0, 1], got {self.least_cap_frac}"
            raise ValueError(msg)
        for place, count in self.least_ready.items():
            if count < 0:
                msg = f"least_ready of {place} must be at least 0, got {count}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaCapacity:
    """What is known of a replica when moves are judged."""

    place: Place
    state: str
    """As `env.fleet_orders.STATE_NAMES` has it."""
    gpu_limit_w: float
    """Power limit of each of its GPUs' boards."""


def capacities(cluster: ClusterSpec, states: Sequence[str]) -> tuple[ReplicaCapacity, ...]:
    """Return what is known of each replica of a cluster, given their states."""
    return tuple(
        ReplicaCapacity(
            place=(replica.model, cluster.server_of(replica).zone),
            state=state,
            gpu_limit_w=cluster.gpu_of(replica).tdp_w,
        )
        for replica, state in zip(cluster.replicas, states, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeMove:
    """A move that was allowed, and when."""

    kind: MoveKind
    replica: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedMove:
    """A move that is not made."""

    move: CapacityMove
    reason: Refusal
    amount: float
    """Its meaning stands at the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveProjection:
    """What of some moves may be made."""

    allowed: tuple[CapacityMove, ...]
    """In order; power caps brought into their range."""
    refused: tuple[RefusedMove, ...]
    clamped_w: Mapping[int, float]
    """What was added to the power caps of replicas that asked for less or more than the range."""
    history: tuple[MadeMove, ...]
    """For the next call: the moves of before that still matter, and the allowed ones."""


def _wait_s(history: Sequence[MadeMove], now_s: float, span_s: float) -> float:
    """Return the time until the newest of some moves is a span ago; 0 if it is already."""
    return max((made.at_s + span_s - now_s for made in history), default=0.0)


class _Judgement:
    """Moves judged so far, and what they leave of a fleet."""

    def __init__(
        self,
        replicas: Sequence[ReplicaCapacity],
        history: Sequence[MadeMove],
        now_s: float,
        limits: MoveLimits,
    ) -> None:
        self.replicas, self.limits, self.now_s = replicas, limits, now_s
        longest_s = max(_MINUTE_S, limits.dwell_s, limits.cap_dwell_s)
        self.history = [made for made in history if now_s - made.at_s < longest_s]
        self.states = [replica.state for replica in replicas]
        self.num_ready = Counter(r.place for r in replicas if r.state == "ready")
        self.clamped_w: dict[int, float] = {}

    def judge(self, move: CapacityMove) -> CapacityMove | RefusedMove:
        """Return the move as it is made, or refused."""
        if not 0 <= move.replica < len(self.replicas):
            return RefusedMove(move=move, reason=Refusal.UNKNOWN_REPLICA, amount=0.0)
        fault = self._cap_fault(move) if move.watts is not None else self._fault(move)
        if fault is not None:
            return RefusedMove(move=move, reason=fault[0], amount=fault[1])
        self.history.append(MadeMove(kind=move.kind, replica=move.replica, at_s=self.now_s))
        if move.watts is not None:
            return self._capped(move, move.watts)
        if move.kind in _DOWN:
            self.num_ready[self.replicas[move.replica].place] -= 1
        self.states[move.replica] = _INTO[move.kind]
        return move

    def _of_replica(self, move: CapacityMove, kinds: frozenset[MoveKind]) -> list[MadeMove]:
        return [m for m in self.history if m.replica == move.replica and m.kind in kinds]

    def _cap_fault(self, move: CapacityMove) -> tuple[Refusal, float] | None:
        if move.watts is None or not np.isfinite(move.watts):
            return Refusal.NOT_FINITE, 0.0
        before = self._of_replica(move, frozenset({MoveKind.POWER_CAP}))
        wait_s = _wait_s(before, self.now_s, self.limits.cap_dwell_s)
        return (Refusal.DWELL, wait_s) if wait_s > 0.0 else None

    def _capped(self, move: CapacityMove, watts: float) -> CapacityMove:
        limit_w = self.replicas[move.replica].gpu_limit_w
        made_w = min(max(watts, self.limits.least_cap_frac * limit_w), limit_w)
        if made_w != watts:
            self.clamped_w[move.replica] = made_w - watts
        return CapacityMove(kind=move.kind, replica=move.replica, watts=made_w)

    def _fault(self, move: CapacityMove) -> tuple[Refusal, float] | None:
        if self.states[move.replica] != _FROM[move.kind]:
            return Refusal.WRONG_STATE, 0.0
        if move.kind in _DOWN:
            place = self.replicas[move.replica].place
            lacking = self.limits.least_ready.get(place, 1) - (self.num_ready[place] - 1)
            if lacking > 0:
                return Refusal.LEAST_READY, float(lacking)
        opposite = self._of_replica(move, _UP if move.kind in _DOWN else _DOWN)
        wait_s = _wait_s(opposite, self.now_s, self.limits.dwell_s)
        if wait_s > 0.0:
            return Refusal.DWELL, wait_s
        wait_s = self._rate_wait_s()
        return (Refusal.TOO_MANY_MOVES, wait_s) if wait_s > 0.0 else None

    def _rate_wait_s(self) -> float:
        """Return the time until one more move would not be too many in a minute."""
        if self.limits.moves_per_min == 0:
            return np.inf
        made_s = sorted(made.at_s for made in self.history if made.kind in _UP | _DOWN)
        if len(made_s) < self.limits.moves_per_min:
            return 0.0
        return max(0.0, made_s[-self.limits.moves_per_min] + _MINUTE_S - self.now_s)


def project_moves(
    moves: Sequence[CapacityMove],
    replicas: Sequence[ReplicaCapacity],
    history: Sequence[MadeMove],
    *,
    now_s: float,
    limits: MoveLimits,
) -> MoveProjection:
    """Return which moves may be made, in order; `history` is that of the projection before."""
    judgement = _Judgement(replicas, history, now_s, limits)
    judged = [judgement.judge(move) for move in moves]
    return MoveProjection(
        allowed=tuple(move for move in judged if isinstance(move, CapacityMove)),
        refused=tuple(move for move in judged if isinstance(move, RefusedMove)),
        clamped_w=judgement.clamped_w,
        history=tuple(judgement.history),
    )

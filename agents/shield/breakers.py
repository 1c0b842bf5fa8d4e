"""Circuit breakers: each state of the fleet in, limits of the replicas and alarms out.

    closed --breach for so long--> open --cool-down--> half open --quiet for so long--> closed
                                    ^                     |
                                    +-------breach--------+  (cool-down doubled)

A breaker that opens again within its last cool-down after it closed also has it doubled. A clock
that goes back is taken to stand still. At most `MAX_ALARMS` come out of a step, the others with the
next ones.

Does not know: where rules come from or alarms go (`runtime/breakers`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ...env.restrictions import ReplicaLimits
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node
from ...env.state.registry import column
from .alarm import Alarm
from .breaker_alarms import AlarmQueue
from .breaker_board import BreakerBoard, barred_by
from .breaker_kernel import HALF_OPEN, OPEN
from .breaker_rules import BreakerRule
from .places import Places
from .slow_start import Ramps, SlowStart

MAX_ALARMS = 32
"""Alarms that a step hands out at most, so that a mass failure does not hold it up."""

_IS_AVAILABLE = column(Node.REPLICA, "is_available")


class Phase(StrEnum):
    """What a breaker that is not closed is."""

    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """A breaker that is not closed, for display."""

    rule: BreakerRule
    place: str
    phase: Phase
    for_s: float
    """How long it has been so."""
    cool_down_s: float
    """Its cool-down, with back-off."""
    value: float
    """Last observed; NaN if nothing was since."""
    is_barring: bool
    """Its replicas are barred or tried; False if the rule bars none or there was no room."""


@dataclass(frozen=True, slots=True)
class BreakerStep:
    """What a step comes to."""

    limits: ReplicaLimits
    """Its arrays are shared with later steps; do not change them."""
    alarms: tuple[Alarm, ...]


class Breakers:
    """All breakers of a fleet. Used from one thread."""

    def __init__(
        self, rules: Sequence[BreakerRule], places: Places, slow_start: SlowStart | None = None
    ) -> None:
        self.places = places
        self.rules = tuple(rules)
        self._boards = _boards(self.rules, places)
        self._barred = barred_by(self._boards, places)
        self._ramps = Ramps(slow_start or SlowStart(), places.batch_slots)
        self._clock_s = -np.inf
        self._set_back_s = 0.0
        self._alarms = AlarmQueue()
        self._limits = self._limits_of_boards()

    def step(self, state: ClusterState) -> BreakerStep:
        """See a state of the fleet; return what its replicas may have, and what there is to say.

        Raises:
            ValueError: the state is of another fleet.
        """
        self._tick(state.now_s)
        if not np.isfinite(self._clock_s):
            return BreakerStep(self._limits, ())
        seen = [(board, board.see(state, self._clock_s)) for board in self._boards]
        if any(transitions.size for _, transitions in seen):
            self._apply()
        for board, transitions in seen:
            if transitions.size:
                chosen, is_held = board.alarming(transitions)
                self._alarms.put(board, chosen, is_held, state.now_s)
        replicas = state.values[Node.REPLICA][:, _IS_AVAILABLE]
        is_known = state.is_valid[Node.REPLICA][:, _IS_AVAILABLE] & np.isfinite(replicas)
        self._ramps.see_available(replicas, is_known, self._clock_s)
        return BreakerStep(self._limits_now(), self._alarms.take(MAX_ALARMS))

    def replace_rules(self, rules: Sequence[BreakerRule], at_s: float) -> None:
        """Go on with other rules: breakers of rules that stay the same stay as they are.

        Alarms of rules that are gone are resolved with the next step.
        """
        old = {board.node: board for board in self._boards}
        self.rules = tuple(rules)
        self._boards = _boards(self.rules, self.places)
        was_barred = self._barred.num_barring > 0
        for board in self._boards:
            if board.node in old:
                board.adopt(old[board.node])
        self._barred = barred_by(self._boards, self.places)
        self._ramps.start(was_barred & (self._barred.num_barring == 0), self._clock_s)
        for board in old.values():
            gone = board.retire(self.rules)
            self._alarms.put(board, gone, np.zeros(gone.size, np.bool_), at_s)
        self._limits = self._limits_of_boards()

    def states(self) -> tuple[BreakerState, ...]:
        """Return every breaker that is not closed."""
        return tuple(
            BreakerState(
                rule=board.rules[k],
                place=f"{board.node} {board.names[i]}",
                phase=phase,
                for_s=self._clock_s - float(board.breakers["since_s"][i, k]),
                cool_down_s=float(board.breakers["cool_down_s"][i, k]),
                value=float(board.breakers["value"][i, k]),
                is_barring=bool(board.is_barring[i, k]),
            )
            for board in self._boards
            for code, phase in ((OPEN, Phase.OPEN), (HALF_OPEN, Phase.HALF_OPEN))
            for i, k in np.argwhere(board.phases == code)
        )

    def num_open(self) -> Mapping[str, int]:
        """Return how many breakers of each rule are open or half open, by its name."""
        return {
            rule.name: int(number)
            for board in self._boards
            for rule, number in zip(board.rules, board.num_open(), strict=True)
        }

    def _tick(self, now_s: float) -> None:
        """Let the clock go on; it never goes back."""
        if not np.isfinite(now_s):
            return
        clock_s = now_s + self._set_back_s
        if clock_s < self._clock_s:
            self._set_back_s += self._clock_s - clock_s
        self._clock_s = max(clock_s, self._clock_s)

    def _apply(self) -> None:
        """Bar and release replicas, and work out the limits, after breakers have changed."""
        was_barred = self._barred.num_barring > 0
        for board in self._boards:
            board.release(self._barred)
        for board in self._boards:
            board.bar(self._barred)
        self._ramps.start(was_barred & (self._barred.num_barring == 0), self._clock_s)
        self._limits = self._limits_of_boards()

    def _limits_of_boards(self) -> ReplicaLimits:
        num_replicas = self.places.num_replicas
        masks = np.zeros(num_replicas, np.uint16)
        max_outstanding, penalties = np.full(num_replicas, np.inf), np.zeros(num_replicas)
        for board in self._boards:
            board.limit((masks, max_outstanding, penalties))
        return ReplicaLimits(masks=masks, max_outstanding=max_outstanding, penalties=penalties)

    def _limits_now(self) -> ReplicaLimits:
        if not self._ramps.is_any:
            return self._limits
        limits = self._limits
        most, penalties = self._ramps.limit(limits.max_outstanding, limits.penalties, self._clock_s)
        return ReplicaLimits(masks=limits.masks, max_outstanding=most, penalties=penalties)


def _boards(rules: Sequence[BreakerRule], places: Places) -> tuple[BreakerBoard, ...]:
    by_node = {node: [rule for rule in rules if rule.node is node] for node in Node}
    return tuple(BreakerBoard(node, own, places) for node, own in by_node.items() if own)

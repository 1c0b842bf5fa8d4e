"""Emergency actions carried out: what the controller calls for becomes orders to a fleet.

What a fleet cannot do is skipped by name and counted, never silently. Whatever was begun is undone,
at the latest by `close`.

Does not know: signals and triggers, or how a fleet does it.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...env.emergency import EMERGENCY_SPECS, Emergency, EmergencyAction
from .emergency_rules import EmergencyRule, trigger_text

_KINDS = tuple(Emergency)
_IS_PER_REPLICA = tuple(EMERGENCY_SPECS[kind].is_per_replica for kind in _KINDS)
# Records kept for reports; older ones are forgotten.
_NUM_RECORDS = 100_000


class EmergencyFleet(Protocol):
    """What carries actions out."""

    def can(self, kind: Emergency, replica: int | None) -> bool:
        """Whether the fleet, or the replica's engine, can do this at all."""
        ...

    def act(self, action: EmergencyAction) -> int:
        """Do it; return how many requests or replicas it touched."""
        ...

    def undo(self, kind: Emergency, replica: int | None = None) -> None:
        """Take it back."""
        ...


@dataclass(frozen=True, slots=True)
class EmergencyRecord:
    """One thing that was done, undone or skipped."""

    at_s: float
    kind: Emergency
    replica: int | None
    deed: str
    """`begin`, `end` or `skip`."""
    reason: str
    """What called for it, in words."""
    num_touched: int = 0

    def sentence(self) -> str:
        """Return the record in words."""
        place = "the fleet" if self.replica is None else f"replica {self.replica}"
        text = f"{self.at_s:.2f} s: {self.deed} {self.kind} on {place}"
        return f"{text}: {self.reason}" if self.reason else text


@dataclass(slots=True)
class Emergencies:
    """Carries actions out on one fleet, and remembers which are in force."""

    rules: Sequence[EmergencyRule]
    active: set[tuple[Emergency, int | None]] = field(default_factory=set)
    skipped: Counter[Emergency] = field(default_factory=Counter)
    records: deque[EmergencyRecord] = field(default_factory=lambda: deque(maxlen=_NUM_RECORDS))
    num_begun: int = 0
    _amounts: dict[Emergency, float] = field(init=False)

    def __post_init__(self) -> None:
        self._amounts = {rule.kind: rule.amount for rule in self.rules}

    def obey(self, transitions: np.ndarray, fleet: EmergencyFleet) -> None:
        """Carry out what a tick called for. Shapes: TRANSITION_DTYPE [n]."""
        # As plain tuples: a mass failure begins a thousand actions in one tick.
        for at_s, number, place, is_on, triggers in transitions.tolist():
            kind = _KINDS[number]
            replica = place if _IS_PER_REPLICA[number] else None
            if is_on:
                self._begin(kind, replica, at_s, trigger_text(triggers), fleet)
            else:
                self._end(kind, replica, at_s, fleet)

    def close(self, now_s: float, fleet: EmergencyFleet) -> None:
        """Undo all that is in force."""
        for kind, replica in sorted(self.active, key=str):
            self._end(kind, replica, now_s, fleet)

    def _begin(
        self, kind: Emergency, replica: int | None, at_s: float, reason: str, fleet: EmergencyFleet
    ) -> None:
        if not fleet.can(kind, replica):
            self.skipped[kind] += 1
            self.records.append(EmergencyRecord(at_s, kind, replica, "skip", reason))
            return
        amount = self._amounts[kind]
        touched = fleet.act(EmergencyAction(kind=kind, amount=amount, replica=replica))
        self.active.add((kind, replica))
        self.num_begun += 1
        self.records.append(EmergencyRecord(at_s, kind, replica, "begin", reason, touched))

    def _end(
        self, kind: Emergency, replica: int | None, at_s: float, fleet: EmergencyFleet
    ) -> None:
        if (kind, replica) not in self.active:
            return
        fleet.undo(kind, replica)
        self.active.discard((kind, replica))
        self.records.append(EmergencyRecord(at_s, kind, replica, "end", ""))

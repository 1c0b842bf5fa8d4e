"""When each emergency action begins and ends: triggers, and one rule an action.

A trigger is a condition on the signals of the last 500 ms; a rule says which triggers begin an
action, what must hold besides, for how long it may last, and how long it then rests.

Does not know: how triggers are computed (`detector.py`) or actions carried out (`env/emergency`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum, IntFlag
from functools import cache

import numpy as np
from pydantic import Field

from ...env.config_file import Entry
from ...env.emergency import EMERGENCY_SPECS, Emergency


class Trigger(IntFlag):
    """Conditions that call for action, one bit each."""

    SURGE = 1  # arrivals far above their average, beyond chance
    QUEUE_GROWTH = 2  # even the shortest queue is late, and grows
    ALLOCATION_FAILURES = 4  # sequences lose their KV for want of pages
    MEMORY_HIGH = 8  # KV memory nearly full
    IDLE_SURGE = 16  # a busy replica fell idle with work outstanding
    STUCK = 64  # its queue stands still: no first token for long, with prompts waiting
    SILENCE = 32  # nothing came from a replica for long, with work outstanding


TRIGGER_TEXTS: Mapping[Trigger, str] = {
    Trigger.SURGE: "arrivals surge",
    Trigger.QUEUE_GROWTH: "every queue is late and grows",
    Trigger.ALLOCATION_FAILURES: "KV allocations fail",
    Trigger.MEMORY_HIGH: "KV memory is nearly full",
    Trigger.IDLE_SURGE: "it fell idle with work outstanding",
    Trigger.STUCK: "its queue stands still",
    Trigger.SILENCE: "it gives no sign of life with work outstanding",
}


@cache
def trigger_text(triggers: int, joint: str = " and ") -> str:
    """Return the conditions in words."""
    return joint.join(text for one, text in TRIGGER_TEXTS.items() if triggers & one)


MOMENTARY = frozenset({Emergency.MOVE_KV})
"""Actions that are done at once: there is nothing to undo, and only the cool-down counts."""


class Precondition(IntEnum):
    """What must hold besides a trigger."""

    NOTHING = 0
    SPILL_IS_UP = 1  # a replica of the spill tier is available
    WAIT_IS_LONG = 2  # the shortest queue takes a good part of the tightest TTFT limit
    HAS_NEIGHBOUR = 3  # another replica could take over some KV


PRECONDITION_TEXTS: Mapping[Precondition, str] = {
    Precondition.NOTHING: "",
    Precondition.SPILL_IS_UP: "if a replica of the spill tier is up",
    Precondition.WAIT_IS_LONG: "if even the shortest queue is long",
    Precondition.HAS_NEIGHBOUR: "if a neighbour has room",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyRule:
    """When one kind of action begins and ends.

    Raises:
        ValueError: the amount is out of the action's bounds, a span out of its range, or the
            action would never fire.
    """

    kind: Emergency
    triggers: Trigger
    amount: float
    """Its meaning and bounds stand in `EMERGENCY_SPECS`."""
    max_s: float
    """Longest that it lasts; 0 for what is done at once, and only for that."""
    cool_down_s: float
    """Least time from its end to its next beginning."""
    quiet_s: float
    """It ends early once its triggers have been quiet for so long."""
    precondition: Precondition = Precondition.NOTHING
    is_on: bool = True

    def __post_init__(self) -> None:
        spec = EMERGENCY_SPECS[self.kind]
        if not spec.low <= self.amount <= spec.high:
            msg = (
                f"amount of {self.kind} must be in [{spec.low:g}, {spec.high:g}] "
                f"({spec.amount}), got {self.amount:g}"
            )
            raise ValueError(msg)
        for name, low in (("max_s", 0.0), ("cool_down_s", 0.1), ("quiet_s", 0.0)):
            value = getattr(self, name)
            if not low <= value <= 3600.0:
                msg = f"{name} of {self.kind} must be in [{low:g}, 3600] s, got {value:g}"
                raise ValueError(msg)
        if (self.kind in MOMENTARY) != (self.max_s == 0.0):
            expected = "0 s, as it is done at once" if self.kind in MOMENTARY else "above 0 s"
            msg = f"max_s of {self.kind} must be {expected}, got {self.max_s:g}"
            raise ValueError(msg)
        if not self.triggers:
            msg = f"{self.kind} has no triggers; set is_on to false where it must never happen"
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return what the rule does, in words."""
        spec = EMERGENCY_SPECS[self.kind]
        place = "a replica's" if spec.is_per_replica else "the fleet's"
        if not self.is_on:
            return f"The shield never {spec.text}."
        condition = PRECONDITION_TEXTS[self.precondition]
        lasts = f"for at most {self.max_s:g} s" if self.max_s else "once"
        return (
            f"When {trigger_text(self.triggers, ' or ')} ({place} signals of the last 500 ms)"
            f"{', ' + condition if condition else ''}, the shield {spec.text} {lasts} "
            f"({self.amount:g} {spec.amount}), and not again for {self.cool_down_s:g} s."
        )


_LOAD = Trigger.SURGE | Trigger.QUEUE_GROWTH
_MEMORY = Trigger.ALLOCATION_FAILURES | Trigger.MEMORY_HIGH

DEFAULT_RULES: tuple[EmergencyRule, ...] = (
    EmergencyRule(
        kind=Emergency.SPILL_SHORT,
        triggers=_LOAD,
        amount=512,
        max_s=30,
        cool_down_s=5,
        quiet_s=1,
        precondition=Precondition.SPILL_IS_UP,
    ),
    EmergencyRule(
        kind=Emergency.FREEZE_KV_GROWTH,
        triggers=Trigger.ALLOCATION_FAILURES,
        amount=1024,
        max_s=2,
        cool_down_s=4,
        quiet_s=0.5,
    ),
    EmergencyRule(
        kind=Emergency.MOVE_KV,
        triggers=_MEMORY,
        amount=4,
        max_s=0,
        cool_down_s=1,
        quiet_s=0,
        precondition=Precondition.HAS_NEIGHBOUR,
    ),
    EmergencyRule(
        kind=Emergency.SHRINK_BEST_EFFORT,
        triggers=_LOAD,
        amount=256,
        max_s=30,
        cool_down_s=5,
        quiet_s=2,
        precondition=Precondition.WAIT_IS_LONG,
    ),
    # Refuses only what would be late anyway, so it may begin at the first sign.
    EmergencyRule(
        kind=Emergency.SHED,
        triggers=_LOAD,
        amount=1.5,
        max_s=30,
        cool_down_s=2,
        quiet_s=1,
    ),
    EmergencyRule(
        kind=Emergency.CAP_BATCH_TOKENS,
        triggers=Trigger.ALLOCATION_FAILURES,
        amount=0.25,
        max_s=3,
        cool_down_s=5,
        quiet_s=0.5,
    ),
)
"""One rule an action, in the order of `Emergency`."""

# One rule for the compiled core.
RULE_DTYPE = np.dtype(
    [
        ("triggers", np.int64),
        ("precondition", np.int64),
        ("max_s", np.float64),
        ("cool_down_s", np.float64),
        ("quiet_s", np.float64),
        ("is_on", np.int64),
        ("is_per_replica", np.int64),
    ]
)


def rule_records(rules: tuple[EmergencyRule, ...]) -> np.ndarray:
    """Return rules for the compiled core, RULE_DTYPE [kinds].

    Raises:
        ValueError: there is not one rule for each kind, in order.
    """
    if [rule.kind for rule in rules] != list(Emergency):
        msg = f"give one rule for each of {[str(k) for k in Emergency]}, in this order"
        raise ValueError(msg)
    records = np.zeros(len(rules), RULE_DTYPE)
    for record, rule in zip(records, rules, strict=True):
        for name in ("triggers", "precondition", "max_s", "cool_down_s", "quiet_s", "is_on"):
            record[name] = getattr(rule, name)
        record["is_per_replica"] = EMERGENCY_SPECS[rule.kind].is_per_replica
    return records


class EmergencyEntry(Entry):
    """One action under `emergency` in a policy file; what is left out keeps its default."""

    is_on: bool | None = None
    """Whether the shield may do it at all (default true)."""
    amount: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How much; meaning and bounds depend on the action."""
    max_s: float | None = Field(default=None, ge=0, le=3600)
    """Longest that it lasts, s."""
    cool_down_s: float | None = Field(default=None, ge=0.1, le=3600)
    """Least time from its end to its next beginning, s."""
    quiet_s: float | None = Field(default=None, ge=0, le=3600)
    """It ends early once its triggers have been quiet for so long, s."""

    def rule(self, kind: Emergency) -> EmergencyRule:
        """Return the default rule of an action with what is given here.

        Raises:
            ValueError: the amount is out of the action's bounds, or it would last no time.
        """
        (default,) = (rule for rule in DEFAULT_RULES if rule.kind is kind)
        known = {field.name for field in fields(default)}
        given = {k: v for k, v in self.model_dump().items() if v is not None and k in known}
        return replace(default, **given)

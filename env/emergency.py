"""Emergency actions: what the shield may ask of a fleet at once, each with declared bounds.

A fleet says which of them it can do (`Fleet.can`), does them (`Fleet.act`) and takes them back
(`Fleet.undo`). What an engine cannot do is skipped by name and counted, never silently.

Does not know: when an action is called for (`agents/shield`), or how a fleet does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Emergency(StrEnum):
    """The kinds of emergency action."""

    SPILL_SHORT = "spill_short"
    FREEZE_KV_GROWTH = "freeze_kv_growth"
    MOVE_KV = "move_kv"
    SHRINK_BEST_EFFORT = "shrink_best_effort"
    SHED = "shed"
    CAP_BATCH_TOKENS = "cap_batch_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencySpec:
    """What a kind of action does, to whom, and what its amount may be."""

    is_per_replica: bool
    """It is done to one replica, else to the whole fleet."""
    amount: str
    """What the amount means, with its unit."""
    low: float
    high: float
    text: str
    """What it does, in words."""


EMERGENCY_SPECS: Mapping[Emergency, EmergencySpec] = {
    Emergency.SPILL_SHORT: EmergencySpec(
        is_per_replica=False,
        amount="most prompt and expected output tokens of a request that may go there",
        low=1,
        high=1e6,
        text="sends short requests to the spill tier too",
    ),
    Emergency.FREEZE_KV_GROWTH: EmergencySpec(
        is_per_replica=True,
        amount="context tokens above which a best-effort request stands still",
        low=0,
        high=1e7,
        text="lets long best-effort sessions stand still, with their KV, until it is undone",
    ),
    Emergency.MOVE_KV: EmergencySpec(
        is_per_replica=True,
        amount="most requests that move",
        low=1,
        high=1024,
        text="moves the longest sessions with their KV to a neighbour that has room",
    ),
    Emergency.SHRINK_BEST_EFFORT: EmergencySpec(
        is_per_replica=False,
        amount="most output tokens of a new best-effort request, of one sequence",
        low=1,
        high=1e6,
        text="cuts max_tokens, n and beam width of new best-effort requests",
    ),
    Emergency.SHED: EmergencySpec(
        is_per_replica=False,
        amount="TTFT limits of predicted TTFT above which a request is refused",
        low=0.1,
        high=50,
        text="refuses requests whose predicted TTFT is too late",
    ),
    Emergency.CAP_BATCH_TOKENS: EmergencySpec(
        is_per_replica=True,
        amount="share of the replica's token budget per iteration",
        low=0.05,
        high=1,
        text="caps the tokens of an iteration",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyAction:
    """One action: what, where, how much.

    Raises:
        ValueError: the amount is out of bounds, or a replica is missing or one too many.
    """

    kind: Emergency
    amount: float
    """Its meaning and bounds stand in `EMERGENCY_SPECS`."""
    replica: int | None = None
    """Index of the replica; None for the whole fleet."""

    def __post_init__(self) -> None:
        spec = EMERGENCY_SPECS[self.kind]
        if not spec.low <= self.amount <= spec.high:
            msg = (
                f"amount of {self.kind} must be in [{spec.low:g}, {spec.high:g}] "
                f"({spec.amount}), got {self.amount}"
            )
            raise ValueError(msg)
        if spec.is_per_replica != (self.replica is not None):
            target = "a replica" if spec.is_per_replica else "the whole fleet"
            msg = f"{self.kind} is done to {target}, got replica {self.replica}"
            raise ValueError(msg)

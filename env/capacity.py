"""Moves of capacity: what a controller may ask of single replicas beyond knobs.

Does not know: who asks, which moves are allowed (`agents/shield/move_projection.py`), or how a
fleet makes them.
"""

from dataclasses import dataclass
from enum import StrEnum


class MoveKind(StrEnum):
    """What is done to a replica."""

    START = "start"
    STOP = "stop"
    SLEEP = "sleep"
    WAKE = "wake"
    POWER_CAP = "power_cap"


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityMove:
    """One move.

    Raises:
        ValueError: a power cap without watts, or watts without a power cap.
    """

    kind: MoveKind
    replica: int
    """Index of the replica."""
    watts: float | None = None
    """Most that each of its GPUs may draw; only with a power cap."""

    def __post_init__(self) -> None:
        if (self.kind is MoveKind.POWER_CAP) != (self.watts is not None):
            msg = f"watts belong to a power cap and to nothing else, got {self.watts} in {self}"
            raise ValueError(msg)

"""What may stand between a policy and a simulated fleet: the place of the shield.

Does not know: the rules by which anything is let through (`agents/shield`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .knobs import Knobs

if TYPE_CHECKING:
    from .simulated_fleet import SimulatedFleet


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardReport:
    """What a guard did in one window."""

    is_overridden: bool = False
    """The knobs in force are not those that were asked for."""
    override_size: float = 0.0
    """Largest part that was clamped, in units of its knob's residual scale; 0 if nothing was."""
    num_actions: int = 0
    """Emergency actions that began."""
    num_skipped: int = 0
    """Emergency actions that were called for and could not be done."""
    barred_frac: float = 0.0
    """Share of the replicas to which nothing new may go at the window's end."""


UNGUARDED = GuardReport()
"""Of a window in which nothing stood between policy and fleet."""


class Guard(Protocol):
    """Stands between a policy and one simulated fleet. Not part of snapshots and branches."""

    def begin(self, fleet: "SimulatedFleet", knobs: Knobs) -> Knobs:
        """Forget everything for a fleet that was just reset; return the knobs to begin with."""
        ...

    def admit(self, fleet: "SimulatedFleet", knobs: Knobs) -> Knobs:
        """Return the knobs that are let through when these are asked for."""
        ...

    def run(self, fleet: "SimulatedFleet", until_s: float) -> None:
        """Run the fleet up to a moment, acting on the way; other fleets run on other threads."""
        ...

    def report(self) -> GuardReport:
        """Return what was done since the last report."""
        ...

"""What the shield tells people: an alarm that is raised once, and resolved once.

Does not know: what raises it, or where it is sent (`runtime/breakers`).
"""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How urgent an alarm is; `none` raises none."""

    NONE = "none"
    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm that begins, or one that is over."""

    name: str
    """The rule that raises it; with the place it says which alarm this is."""
    severity: Severity
    place: str
    """Kind and name of what it is about: `gpu h100-0/gpu-3`."""
    sentence: str
    """What is the matter, and what is done about it."""
    at_s: float
    """Moment on the clock of the state."""
    is_resolved: bool = False
    value: float | None = None
    """What was measured; None where nothing is."""
    threshold: float | None = None
    """What it was measured against."""

    def as_dict(self) -> dict[str, str | float | bool | None]:
        """Return its fields, as JSON can say them."""
        return {**asdict(self), "severity": str(self.severity)}

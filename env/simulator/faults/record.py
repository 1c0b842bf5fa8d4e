"""What went wrong in a run, for reports and for diagnosis afterwards; schedulers never see it.

Does not know: how trouble is drawn.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleRecord:
    """One thing that went wrong."""

    kind: str
    """`slowdown`, `crash`, `gpu_loss`, `server_loss`, `zone_loss`, `spot_reclaim`, ..."""
    at_s: float
    """When it began; for spot, when the capacity went."""
    end_s: float
    """When it ended, or will."""
    replicas: tuple[int, ...]
    """Indices of the replicas that it hit."""
    value: float = 1.0
    """Its size: a factor on iteration time, a share of pages, seconds of a stall."""

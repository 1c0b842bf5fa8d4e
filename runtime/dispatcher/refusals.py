"""How a request that is not placed is refused, as its sender is told.

Does not know: why (`live_kernel.py`).
"""

from ...env.shed_reason import SHED_TEXTS, ShedReason
from .request import Refusal

# After this, a client that was refused for load may ask again, s.
RETRY_AFTER_S = 1.0
_REFUSALS = {
    ShedReason.LATE: (429, "rejected-saturated"),
    ShedReason.EMERGENCY: (429, "rejected-saturated"),
    ShedReason.BUDGET: (429, "rejected-budget"),
    ShedReason.NOBODY: (503, "rejected-no-endpoints"),
}


def refusal_for(reason: ShedReason) -> Refusal:
    """Return what is told of a reason."""
    status, code = _REFUSALS[reason]
    return Refusal(
        status=status,
        code=code,
        message=f"the request was refused: {SHED_TEXTS[reason]}",
        retry_after_s=RETRY_AFTER_S,
    )

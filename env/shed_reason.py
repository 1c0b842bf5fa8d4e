"""Why a gateway refused a request: the reasons, one number each.

Does not know: when a reason applies (`simulator/gateway.py`), or whom it concerns.
"""

from enum import IntEnum


class ShedReason(IntEnum):
    """Reasons for a refusal; 0 is a request that was not refused."""

    LATE = 1  # its first token was predicted too late
    NOBODY = 2  # no replica is up that could hold it and may have it
    BUDGET = 3  # its group is over its budget
    EMERGENCY = 4  # as LATE, by the limit of an emergency action


SHED_TEXTS: dict[ShedReason, str] = {
    ShedReason.LATE: "its first token was predicted too far over its limit",
    ShedReason.NOBODY: "no replica was up that could hold it and may have it",
    ShedReason.BUDGET: "its group was over its budget",
    ShedReason.EMERGENCY: "its first token was predicted over the limit of an emergency",
}


def shed_text(reason: int) -> str | None:
    """Return the words of a reason, None for a request that was not refused."""
    return SHED_TEXTS[ShedReason(reason)] if reason else None

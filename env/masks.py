"""Why a replica may not take a request: the reasons that a mask is made of.

Does not know: who sets a reason (`agents/shield`, `agents/constraints`) or how the kernel obeys it.
"""

from enum import IntFlag


class Mask(IntFlag):
    """Reasons, one bit each; 0 lets the replica take the request."""

    MODEL = 1  # it does not serve the model
    ADAPTER = 2  # it does not have the LoRA adapter
    KV = 4  # the request does not fit its KV memory
    REGION = 8  # compliance keeps the tenant's data elsewhere
    TENANT = 16  # it is, or the tenant has, a pool of its own
    UNHEALTHY = 32  # it is down, or gives no sign of life
    QUARANTINED = 64  # a breaker is open
    MAINTENANCE = 128  # a breaker has put it under maintenance watch
    STALE = 256  # what is known of it is too old
    SPILL = 512  # it is kept for emergencies
    FULL = 1024  # it has as many requests as it may have for now
    PLAN = 2048  # the capacity plan takes it out of service


MASK_TEXTS: dict[Mask, str] = {
    Mask.MODEL: "does not serve the model",
    Mask.ADAPTER: "does not have the adapter",
    Mask.KV: "has too little KV memory for the request",
    Mask.REGION: "is outside the tenant's regions",
    Mask.TENANT: "is outside the tenant's pools",
    Mask.UNHEALTHY: "is down or gives no sign of life",
    Mask.QUARANTINED: "is quarantined by a breaker",
    Mask.MAINTENANCE: "is under maintenance watch",
    Mask.STALE: "was last heard of too long ago",
    Mask.SPILL: "is kept for emergencies",
    Mask.FULL: "has as many requests as it may have",
    Mask.PLAN: "is taken out of service by the plan",
}


def mask_text(mask: int) -> str:
    """Return the reasons of a mask as a sentence without a subject; `may take it` for none."""
    reasons = [text for reason, text in MASK_TEXTS.items() if mask & reason]
    return "; ".join(reasons) or "may take it"

"""Bodies that the admin port takes and gives, checked strictly: types, unknown fields, sizes.

Does not know: routes, or what follows from a body.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ...env.fleet import WindowOutcome

MAX_NUMBERS = 65_536
"""Numbers of one list."""
MSGPACK = "application/msgpack"
"""Content type of bodies in msgpack, which can say NaN; JSON cannot."""

Numbers = Annotated[list[float], Meta(max_length=MAX_NUMBERS)]
Word = Annotated[str, Meta(max_length=256)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every body has: no unknown fields."""


class ProposalBody(_Body, frozen=True, kw_only=True):
    """What a policy proposes for a window, or why it does not."""

    values: Numbers = []
    bias: Numbers = []
    state_at_s: float
    novelty: float = 0.0
    source: Word = ""
    error: Annotated[str, Meta(max_length=4096)] | None = None
    """What the policy raised; then there are no values."""
    attention: Annotated[dict[Word, float], Meta(max_length=1024)] = {}
    """What it looked at, by name, for the decision log."""


class OrderBody(_Body, frozen=True, kw_only=True):
    """Knobs that an operator sets; what is not named keeps its default."""

    knobs: dict[Word, float]
    bias: Numbers = []
    lease_s: Annotated[float, Meta(gt=0)] | None = None
    """How long they rule; None: until they are withdrawn."""


class BundleBody(_Body, frozen=True, kw_only=True):
    """A bundle that is to serve."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    deadline_s: Annotated[float, Meta(gt=0, le=600)] = 60.0
    """Time in which it must have given a valid proposal."""


class DrainBody(_Body, frozen=True, kw_only=True):
    """How long to wait for the answers that have begun."""

    deadline_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


BodyT = TypeVar("BodyT", bound=_Body)


def decode(kind: type[BodyT], data: bytes, content_type: str) -> BodyT:
    """Return a body of a kind; an empty one is one without fields.

    Raises:
        msgspec.DecodeError: it is no JSON, or no msgpack.
        msgspec.ValidationError: it has a wrong or unknown field, and which.
    """
    if content_type == MSGPACK:
        return msgspec.msgpack.decode(data, type=kind)
    return msgspec.json.decode(data or b"{}", type=kind)


class _WindowAnswer(_Body, frozen=True, kw_only=True):
    """A window's outcome as it travels."""

    start_s: float
    end_s: float
    num_arrived: int
    num_finished: int
    num_shed: int
    num_failed: int
    arrived_weight: float
    credit: float


def window_fields(window: WindowOutcome) -> dict[str, Any]:
    """Return a window's outcome as plain values; a live gateway knows no energy and no guard."""
    return {name: getattr(window, name) for name in _WindowAnswer.__struct_fields__}


def decode_window(data: bytes) -> WindowOutcome:
    """Return the outcome that an answer holds.

    Raises:
        msgspec.DecodeError: it holds none.
    """
    fields = msgspec.structs.asdict(msgspec.json.decode(data, type=_WindowAnswer))
    return WindowOutcome(**fields, energy_j=float("nan"))

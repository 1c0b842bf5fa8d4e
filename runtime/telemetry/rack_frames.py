"""What travels between a rack's aggregator and the hub.

Does not know: how changes are coded (`deltas.py`), or what the hub makes of them.
"""

from typing import Annotated, Final

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from .deltas import Delta
from .frames import Counter, Frame, FrameDecoder, Name, Seconds

MAX_CHANGES: Final = 256
"""Changes that a frame lists."""
UNHEARD: Final = 2**32 - 1
"""Age of a server that was not heard of, or longer ago than can be told (71 min)."""
_MICRO: Final = 1e6

Scaled = Annotated[float, Meta(ge=-1e6, le=1e6)]


class ChangeEntry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A cell that changed, with its mean before and its value after, in scaled units."""

    cell: Counter
    before: Scaled
    after: Scaled


class SketchEntry(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A serialised quantile sketch of a feature over the rack."""

    feature: Counter
    """Index among the features of a rack."""
    body: Annotated[bytes, Meta(max_length=1 << 16)]


class RackFrame(Frame, frozen=True, kw_only=True, tag="rackframe"):
    """What changed in a rack in one tick of its aggregator."""

    rack: Name
    registry_hash: Name
    """`registry_hash()` of the aggregator: what its features mean."""
    layout_hash: Name
    """`RackLayout.hash` of the aggregator: where its cells stand."""
    epoch: Counter
    """Start of the aggregator: a greater one means a restart."""
    sequence: Counter
    at_s: Seconds
    """Moment of the tick, in hub time."""
    is_key: bool
    """Whether the frame can be read without the one before it."""
    ages: bytes
    """uint32 [servers]: microseconds from each server's newest sample to `at_s`."""
    num_changed: Counter
    num_escapes: Counter
    check: Counter
    body: bytes
    """These four are a `Delta`."""
    changes: Annotated[list[ChangeEntry], Meta(max_length=MAX_CHANGES)]
    num_changes_left_out: Counter = 0
    sketches: Annotated[list[SketchEntry], Meta(max_length=1024)]

    @property
    def delta(self) -> Delta:
        """The change of the cells."""
        return Delta(
            body=self.body,
            num_changed=self.num_changed,
            num_escapes=self.num_escapes,
            check=self.check,
        )


class KeyRequest(Frame, frozen=True, kw_only=True, tag="keyrequest"):
    """The hub lost a frame of a rack and asks its aggregator for a key."""

    rack: Name


decode_rack_frame: FrameDecoder[RackFrame] = FrameDecoder(RackFrame)
"""Reads a frame of an aggregator; see `FrameDecoder.__call__`."""
decode_key_request: FrameDecoder[KeyRequest] = FrameDecoder(KeyRequest)
"""Reads a request of the hub; see `FrameDecoder.__call__`."""


def ages_of(sampled_at_s: NDArray[np.float64], at_s: float) -> bytes:
    """Return the ages of samples at a moment as a frame holds them; NaN was never heard of."""
    micros = np.nan_to_num((at_s - sampled_at_s) * _MICRO, nan=UNHEARD, posinf=UNHEARD)
    return np.clip(np.round(micros), 0, UNHEARD).astype("<u4").tobytes()


def sampled_at_s(ages: bytes, at_s: float) -> NDArray[np.float64]:
    """Return when samples of these ages were taken; NaN where nothing was heard."""
    micros = np.frombuffer(ages, "<u4").astype(np.float64)
    return np.where(micros == UNHEARD, np.nan, at_s - micros / _MICRO)

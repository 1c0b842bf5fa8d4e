"""What travels between probe and aggregator: messages as msgpack, checked before they are used.

Frames are maps with a `kind` and a `schema`, so that one of another version is recognised as such.
Whatever the bytes, decoding returns a message of the right types or raises `FrameError`.

Does not know: which signals a block holds (`signals.py`), whether its shape or its probe is right
(the aggregator), or how bytes travel (`transport.py`).
"""

from typing import Annotated, Final, Generic, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...traces.errors import TrimtabError
from .reasons import Counts, Reason

__all__ = [
    "MAX_FRAME_BYTES",
    "SCHEMA_VERSION",
    "Counter",
    "Counts",
    "Frame",
    "FrameDecoder",
    "FrameError",
    "Hello",
    "Message",
    "Name",
    "Ping",
    "Pong",
    "Reason",
    "Sample",
    "Seconds",
    "decode",
    "encode",
]

SCHEMA_VERSION: Final = 1
"""Raised by one whenever a frame's fields change their names, types or meaning."""
MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
"""A rack of 4,096 GPUs with 200 float32 each fits; what is larger is refused unread."""

_MAX_DETAIL: Final = 200
"""Characters of what is said about a broken frame."""

# A hostile frame may hold as many names as its size allows, so each field says how many it takes.
Name = Annotated[str, Meta(min_length=1, max_length=128)]
"""Name of a probe, server, rack, GPU or replica."""
Names = Annotated[list[Name], Meta(max_length=256)]
# float64 tells apart moments 0.1 ms from each other up to 1e12 s; NaN fails both comparisons.
Seconds = Annotated[float, Meta(ge=-1e12, le=1e12)]
"""A moment on some clock: finite, and so small that differences keep their meaning."""
Counter = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""An epoch, a sequence number or a nonce: what an int64 holds."""
Blocks = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=32)], bytes], Meta(max_length=8)
]


class FrameError(TrimtabError):
    """A frame is refused; `reason` says why in a word."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}")


class Frame(
    Struct, frozen=True, kw_only=True, tag_field="kind", tag=str.lower, forbid_unknown_fields=True
):
    """What every frame has; the tag `kind` is the class's name in lower case."""

    schema: int = SCHEMA_VERSION


class Hello(Frame, frozen=True, kw_only=True):
    """Who is there: a probe, and what it samples. Sent at its start and every few seconds."""

    probe: Name
    server: Name
    rack: Name
    epoch: Counter
    """Start of the probe in any unit that grows: a greater one means a restart."""
    signals_hash: Name
    """`signals.signals_hash()` of the probe: what its columns mean."""
    gpus: Names
    """Names of the rows of scope GPU, in their order."""
    replicas: Names


class Sample(Frame, frozen=True, kw_only=True):
    """What a probe read at one moment, by its own clock."""

    probe: Name
    epoch: Counter
    sequence: Counter
    """One more for each sample of an epoch, so that a gap tells of a loss."""
    sampled_at_s: Seconds
    sent_at_s: Seconds
    blocks: Blocks
    """By scope: float32, little-endian, [entities, signals of the scope], NaN where absent."""


class Ping(Frame, frozen=True, kw_only=True):
    """A question for a probe's clock."""

    probe: Name
    nonce: Counter
    sent_at_s: Seconds
    """By the asker's clock."""


class Pong(Frame, frozen=True, kw_only=True):
    """The answer to a ping."""

    probe: Name
    nonce: Counter
    """The ping's: the asker looks up its own send time by it and need not believe this frame."""
    ping_sent_at_s: Seconds
    received_at_s: Seconds
    """When the ping came, by the probe's clock."""
    sent_at_s: Seconds
    """When this answer left, by the probe's clock."""


Message = Hello | Sample | Ping | Pong

_FrameT = TypeVar("_FrameT", bound=Frame)


class _Header(Struct):
    """What is read first, since the fields of another schema may be others."""

    schema: int


_header_decoder = msgspec.msgpack.Decoder(_Header)
_encoder = msgspec.msgpack.Encoder()


class FrameDecoder(Generic[_FrameT]):
    """Reads frames of given kinds, for instance `FrameDecoder(Hello | Sample)`."""

    def __init__(self, kinds: object, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._decoder: msgspec.msgpack.Decoder[_FrameT] = msgspec.msgpack.Decoder(kinds)
        self._max_bytes = max_bytes

    def __call__(self, body: bytes) -> _FrameT:
        """Return the frame that the bytes hold.

        Raises:
            FrameError: TOO_LARGE, WRONG_SCHEMA or MALFORMED; nothing else, whatever the bytes.
        """
        if len(body) > self._max_bytes:
            detail = f"a body of {len(body)} bytes, at most {self._max_bytes} are read"
            raise FrameError(Reason.TOO_LARGE, detail)
        try:
            schema = _header_decoder.decode(body).schema
            if schema == SCHEMA_VERSION:
                return self._decoder.decode(body)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            # the text may quote a name from the frame, of any length
            raise FrameError(Reason.MALFORMED, str(error)[:_MAX_DETAIL]) from None
        detail = f"schema {schema}, this code reads {SCHEMA_VERSION}; run one version on both sides"
        raise FrameError(Reason.WRONG_SCHEMA, detail)


decode: FrameDecoder[Message] = FrameDecoder(Message)
"""Reads a message between probe and aggregator; see `FrameDecoder.__call__`."""


def encode(frame: Frame) -> bytes:
    """Return a frame as bytes."""
    return _encoder.encode(frame)

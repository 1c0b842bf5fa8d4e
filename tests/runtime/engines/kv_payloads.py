"""KV events as engines write them, and payloads made of them."""

from typing import Any

import msgspec


def stored(
    hashes: list[Any], parent: Any, tokens: list[int], size: int, **more: object
) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **more,
    }


def removed(hashes: list[Any], **more: object) -> dict[str, object]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", **more}


CLEARED = {"type": "AllBlocksCleared"}


def payload_of(*events: object, at_s: float = 0.0) -> bytes:
    return msgspec.msgpack.encode([at_s, list(events), 0])

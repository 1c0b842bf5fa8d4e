"""What KV events cost a gateway: microseconds a block, from the payload to the prefix index.

Prompts of random tokens are stored block by block and removed again, as an engine with a full cache
tells it: one event a prompt and one a removed block (vLLM), or one event a page (SGLang).

Run: python benchmarks/kv_events.py [--json] [--prompts 300] [--prompt-tokens 2048]
"""

import argparse
import json
import time
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex
from trimtab.runtime.engines.block_index import EngineBlockIndex
from trimtab.runtime.engines.kv_stream import KvStream

FLEET_TOKENS = 16
SHAPES = {"vLLM, blocks of 16": 16, "vLLM, blocks of 128": 128, "SGLang, pages of 1": 1}


def vllm_events(hashes: list[int], tokens: list[int], size: int) -> tuple[list[Any], list[Any]]:
    stored = {
        "type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None,
        "token_ids": tokens, "block_size": size, "lora_id": None, "medium": "GPU",
        "lora_name": None, "extra_keys": [None] * len(hashes), "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }  # fmt: skip
    gone = {"type": "BlockRemoved", "medium": "GPU", "group_idx": 0}
    return [stored], [{**gone, "block_hashes": [one]} for one in reversed(hashes)]


def sglang_events(hashes: list[int], tokens: list[int], size: int) -> tuple[list[Any], list[Any]]:
    stored = [
        ["BlockStored", [one], hashes[k - 1] if k else None, tokens[k * size : (k + 1) * size],
         size, None, "GPU"]
        for k, one in enumerate(hashes)
    ]  # fmt: skip
    return stored, [["BlockRemoved", [one], "GPU"] for one in reversed(hashes)]


def measure(name: str, size: int, num_prompts: int, prompt_tokens: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    make = sglang_events if name.startswith("SGLang") else vllm_events
    num_blocks = prompt_tokens // size
    payloads: tuple[list[bytes], list[bytes]] = ([], [])
    for number in range(num_prompts):
        hashes = [int(h) for h in rng.integers(0, 2**63, num_blocks)]
        tokens = [int(t) for t in rng.integers(0, 150_000, num_blocks * size)]
        for batches, events in zip(payloads, make(hashes, tokens, size), strict=True):
            batches.append(msgspec.msgpack.encode([float(number), events, 0]))
    prefixes = PrefixIndex([num_prompts * prompt_tokens // FLEET_TOKENS])
    stream = KvStream(0, EngineBlockIndex(prefixes, block_tokens=FLEET_TOKENS))
    row: dict[str, Any] = {"events": name}
    sequence = 0
    for _ in range(2):  # the first round touches memory for the first time
        for what, batches in zip(("stored", "removed"), payloads, strict=True):
            started_at_s = time.perf_counter()
            for payload in batches:
                stream.take(sequence, payload)
                sequence += 1
            took_s = time.perf_counter() - started_at_s
            row[f"{what}_us_per_block"] = round(1e6 * took_s / (num_prompts * num_blocks), 3)
            row[f"{what}_us_per_1000_tokens"] = round(
                1e9 * took_s / (num_prompts * num_blocks * size), 1
            )
            if what == "stored" and prefixes.num_blocks(0) < num_prompts:
                msg = "the index does not hold what was stored"
                raise SystemExit(msg)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    args = parser.parse_args()
    rows = [measure(name, size, args.prompts, args.prompt_tokens) for name, size in SHAPES.items()]
    if args.json:
        print(json.dumps({"prompt_tokens": args.prompt_tokens, "rows": rows}))
        return
    table = Table(*rows[0], title=f"KV events, prompts of {args.prompt_tokens} tokens")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

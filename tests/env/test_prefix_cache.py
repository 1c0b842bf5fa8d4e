"""The prefix cache against a dictionary and an ordered list of what may be evicted."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.simulator.layout import CACHE_ENTRY_DTYPE, NONE, REPLICA_DTYPE
from trimtab.env.simulator.prefix_cache import (
    chain,
    clear,
    evict_oldest,
    find_entry,
    insert_pinned,
    match_replicas,
    pin,
    unpin,
)

CAPACITY = 12
NUM_BLOCKS = 64
TABLE_SIZE = 32


class CacheModel:
    """The cache, driven beside what it should be: references by block, and the evictable ones
    in the order of their last release.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.replicas = np.zeros(1, REPLICA_DTYPE)
        self.entries = np.zeros(CAPACITY, CACHE_ENTRY_DTYPE)
        self.table = np.zeros(TABLE_SIZE, np.int32)
        self.holders = np.zeros((NUM_BLOCKS, 3), np.uint64)
        self.references: dict[int, int] = {}
        self.evictable: OrderedDict[int, None] = OrderedDict()
        chain(self.replicas[0], self.entries)

    def entry(self, block: int) -> int:
        return find_entry(self.table, self.entries, block)

    def insert(self, block: int) -> None:
        if block not in self.references and len(self.references) < CAPACITY:
            insert_pinned(
                self.replicas[0], self.table, self.entries, self.holders, self.index, block
            )
            self.references[block] = 1

    def pin(self, block: int) -> None:
        if block in self.references:
            pin(self.replicas[0], self.entries, self.entry(block))
            self.references[block] += 1
            self.evictable.pop(block, None)

    def unpin(self, block: int) -> None:
        if self.references.get(block, 0) > 0:
            unpin(self.replicas[0], self.entries, self.entry(block))
            self.references[block] -= 1
            if self.references[block] == 0:
                self.evictable[block] = None

    def evict(self, _: int) -> None:
        if self.evictable:
            evict_oldest(self.replicas[0], self.table, self.entries, self.holders, self.index)
            block, _ = self.evictable.popitem(last=False)
            del self.references[block]

    def clear(self, _: int) -> None:
        clear(self.replicas[0], self.table, self.entries, self.holders, self.index)
        self.references.clear()
        self.evictable.clear()

    def check(self) -> None:
        assert self.replicas["num_cached_blocks"][0] == len(self.references)
        assert self.replicas["num_evictable_blocks"][0] == len(self.evictable)
        assert (self.table > 0).sum() == len(self.references)
        for block in range(NUM_BLOCKS):
            entry = self.entry(block)
            assert (entry != NONE) == (block in self.references)
            if entry != NONE:
                assert self.entries["block"][entry] == block
                assert self.entries["references"][entry] == self.references[block]
        words = np.zeros((NUM_BLOCKS, 3), np.uint64)
        bit = np.uint64(1) << np.uint64(self.index % 64)
        words[list(self.references), self.index // 64] = bit
        np.testing.assert_array_equal(self.holders, words)
        oldest = list(self.evictable)[:1]
        head = int(self.replicas["lru_head"][0])
        assert ([int(self.entries["block"][head])] if head != NONE else []) == oldest


OPERATIONS = st.sampled_from(["insert"] * 4 + ["pin", "unpin", "unpin", "unpin", "evict"])


@settings(max_examples=60, derandomize=True, database=None)
@given(
    index=st.sampled_from([0, 5, 63, 64, 150]),
    steps=st.lists(st.tuples(OPERATIONS, st.integers(0, NUM_BLOCKS - 1)), max_size=120),
    is_cleared=st.booleans(),
)
def test_cache_follows_its_model(index, steps, is_cleared):
    model = CacheModel(index)
    for position, (operation, block) in enumerate(steps):
        if is_cleared and position == 60:
            model.clear(block)
        getattr(model, operation)(block % 16 if operation != "insert" else block % 20)
        model.check()
    # What is left goes out in the order of its release.
    while model.evictable:
        model.evict(0)
        model.check()


@settings(max_examples=60, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    num_replicas=st.sampled_from([1, 5, 63, 64, 65, 130]),
    num_blocks=st.integers(0, 12),
    fill=st.sampled_from([0.5, 0.9, 1.0]),
)
def test_match_is_the_number_of_leading_blocks_held(seed, num_replicas, num_blocks, fill):
    rng = np.random.default_rng(seed)
    holds = rng.random((40, num_replicas)) < fill
    holders = np.zeros((40, (num_replicas + 63) // 64), np.uint64)
    for block, replica in zip(*np.nonzero(holds), strict=True):
        holders[block, replica // 64] |= np.uint64(1) << np.uint64(replica % 64)
    blocks = rng.permutation(40).astype(np.int32)
    depth, matched = np.zeros(num_replicas, np.int64), np.zeros(num_replicas, np.int64)
    num_matched = match_replicas(blocks, 0, 3, holders, depth, matched, 0)  # is wiped again
    num_matched = match_replicas(blocks, 3, num_blocks, holders, depth, matched, num_matched)
    prompt = blocks[3 : 3 + num_blocks]
    naive = np.cumprod(holds[prompt], axis=0).sum(axis=0) if num_blocks else np.zeros(num_replicas)
    np.testing.assert_array_equal(depth, naive)
    assert sorted(matched[:num_matched]) == np.flatnonzero(naive).tolist()


@pytest.mark.parametrize("num_blocks", [1, 7])
def test_match_stops_at_the_first_gap(num_blocks):
    holders = np.zeros((10, 1), np.uint64)
    holders[:7, 0] = 0b11
    holders[num_blocks // 2, 0] = 0b01
    depth, matched = np.zeros(2, np.int64), np.zeros(2, np.int64)
    blocks = np.arange(10, dtype=np.int32)
    match_replicas(blocks, 0, num_blocks, holders, depth, matched, 0)
    assert depth.tolist() == [num_blocks, num_blocks // 2]

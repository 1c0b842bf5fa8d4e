"""KV events joined: fewer of them, and an index that they leave in the same state."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_payloads import CLEARED, payload_of, removed, stored

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex
from trimtab.runtime.engines.block_index import EngineBlockIndex
from trimtab.runtime.engines.kv_events import BlocksRemoved, BlocksStored, KvEvent, decode_batch
from trimtab.runtime.engines.kv_runs import joined
from trimtab.runtime.understanding.token_blocks import token_block_hashes


def events_of(*events: object) -> tuple[KvEvent, ...]:
    return decode_batch(payload_of(*events)).events


def test_removals_and_pages_that_follow_each_other_are_one_event() -> None:
    run = events_of(
        removed([1]), removed([2, 3]), removed([4], group_idx=1),
        stored([5], None, [7, 8], 2), stored([6], 5, [9, 10], 2), stored([8], 5, [1, 2], 2),
        CLEARED, CLEARED,
    )  # fmt: skip
    some, other, pages, branch, *clears = joined(run)
    assert some == BlocksRemoved(block_hashes=(1, 2, 3), medium="GPU")
    assert other == run[2]
    assert isinstance(pages, BlocksStored)
    assert (pages.block_hashes, pages.parent_hash) == ((5, 6), None)
    assert pages.token_ids.tolist() == [7, 8, 9, 10]
    assert branch is run[5]
    assert len(clears) == 2
    assert joined([]) == []


HASHES = st.integers(0, 6)
STORED = st.builds(
    lambda h, parent, size, lora: stored([h], parent, [h] * size, size, lora_name=lora),
    HASHES, st.none() | HASHES, st.integers(1, 3), st.sampled_from([None, "a"]),
)  # fmt: skip
REMOVED = st.builds(lambda h, medium: removed([h], medium=medium), HASHES, st.sampled_from("GC"))


@settings(max_examples=40)
@given(st.lists(STORED | REMOVED | st.just(CLEARED), max_size=30))
def test_what_is_held_afterwards_is_the_same(raw: list[dict[str, object]]) -> None:
    events = events_of(*(e | ({"medium": "GPU"} if e.get("medium") == "G" else {}) for e in raw))
    indexes = []
    for some in (events, joined(events)):
        prefixes = PrefixIndex([100])
        index = EngineBlockIndex(prefixes, block_tokens=1)
        for event in some:
            index.apply(0, event)
        found = [
            prefixes.match(token_block_hashes(np.array([a, b, c]), 1)).tolist()
            for a in range(7)
            for b in range(7)
            for c in range(7)
        ]
        indexes.append((found, index.num_blocks(0), prefixes.num_blocks(0)))
    assert indexes[0] == indexes[1]
    assert len(joined(events)) <= len(events)

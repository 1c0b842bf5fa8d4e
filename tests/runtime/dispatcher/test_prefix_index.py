"""The prefix index against a plain model of it, and its known answers."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex


def blocks(*hashes: int) -> np.ndarray:
    return np.array(hashes, np.uint64)


def test_one_walk_says_how_deep_each_replica_matches() -> None:
    index = PrefixIndex([10, 10, 10])
    index.store(0, blocks(1, 2, 3))
    index.store(2, blocks(1, 2, 9))
    assert index.match(blocks(1, 2, 3, 4)).tolist() == [3, 0, 2]
    assert index.match(blocks(7)).tolist() == [0, 0, 0]
    assert index.match(blocks()).tolist() == [0, 0, 0]


def test_a_hole_in_the_prefix_ends_the_match() -> None:
    index = PrefixIndex([10])
    index.store(0, blocks(1, 2, 3))
    assert index.remove(0, blocks(2, 8)) == 1
    assert index.match(blocks(1, 2, 3)).tolist() == [1]
    assert index.num_blocks(0) == 2


def test_the_end_of_the_least_recent_prompt_is_forgotten_first() -> None:
    index = PrefixIndex([4])
    index.store(0, blocks(1, 2, 3))
    index.store(0, blocks(11, 12))
    assert index.match(blocks(1, 2, 3)).tolist() == [2]
    assert index.match(blocks(11, 12)).tolist() == [2]
    assert index.num_evicted(0) == 1


def test_of_a_prompt_beyond_the_capacity_the_beginning_stays() -> None:
    index = PrefixIndex([3])
    index.store(0, blocks(1, 2, 3, 4, 5))
    assert index.match(blocks(1, 2, 3, 4, 5)).tolist() == [3]


def test_clearing_one_replica_leaves_the_others() -> None:
    index = PrefixIndex([10, 10])
    index.store(0, blocks(1, 2))
    index.store(1, blocks(1, 2))
    index.clear(0)
    assert index.match(blocks(1, 2)).tolist() == [0, 2]
    assert index.num_blocks(0) == 0


def test_replicas_beyond_the_first_word_of_bits() -> None:
    index = PrefixIndex([4] * 130)
    index.store(129, blocks(5, 6))
    index.store(63, blocks(5))
    depths = index.match(blocks(5, 6))
    assert (depths[129], depths[63], depths.sum()) == (2, 1, 3)


def test_becoming_exact_begins_anew() -> None:
    index = PrefixIndex([10])
    index.store(0, blocks(1))
    index.set_exact(0, is_exact=True)
    assert index.is_exact(0)
    assert index.match(blocks(1)).tolist() == [0]


def test_no_replica_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 replica, got none"):
        PrefixIndex([])


class PlainIndex:
    """The same with Python's own containers."""

    def __init__(self, capacities: list[int]) -> None:
        self.capacities = capacities
        self.held: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]

    def store(self, replica: int, hashes: list[int]) -> None:
        held = self.held[replica]
        for value in reversed(hashes[: self.capacities[replica]]):
            if value in held:
                held.move_to_end(value)
                continue
            if len(held) == self.capacities[replica]:
                held.popitem(last=False)
            held[value] = None

    def match(self, hashes: list[int]) -> list[int]:
        depths = []
        for held in self.held:
            depth = 0
            while depth < len(hashes) and hashes[depth] in held:
                depth += 1
            depths.append(depth)
        return depths


PROMPTS = st.lists(st.integers(1, 12), max_size=6, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from(["store", "remove", "clear"]), st.integers(0, 2), PROMPTS),
    max_size=40,
)


@settings(max_examples=60)
@given(steps=STEPS, asked=PROMPTS)
def test_it_is_what_a_plain_index_is(
    steps: list[tuple[str, int, list[int]]], asked: list[int]
) -> None:
    capacities = [2, 5, 9]
    index, plain = PrefixIndex(capacities), PlainIndex(capacities)
    for deed, replica, hashes in steps:
        if deed == "store":
            index.store(replica, blocks(*hashes))
            plain.store(replica, hashes)
        elif deed == "remove":
            held = plain.held[replica]
            assert index.remove(replica, blocks(*hashes)) == sum(h in held for h in hashes)
            for value in hashes:
                held.pop(value, None)
        else:
            index.clear(replica)
            plain.held[replica].clear()
        assert [index.num_blocks(r) for r in range(3)] == [len(held) for held in plain.held]
    assert index.match(blocks(*asked)).tolist() == plain.match(asked)

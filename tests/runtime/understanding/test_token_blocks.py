"""Chained hashes of token ids: equal prefixes, and blocks of any size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.runtime.understanding.token_blocks import adapter_seed, token_block_hashes
from trimtab.traces.hashing import mix64

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=64)


def hashes(token_ids: list[int], block_tokens: int, adapter: str | None = None) -> list[int]:
    tokens = np.array(token_ids, np.int64)
    return token_block_hashes(tokens, block_tokens, adapter_seed(adapter)).tolist()


def test_a_chain_by_hand() -> None:
    one = mix64(np.uint64(0) ^ np.uint64(7))
    two = mix64(one ^ np.uint64(9))
    assert hashes([7, 9, 11], 1) == [one, two, mix64(two ^ np.uint64(11))]
    assert hashes([7, 9, 11], 2) == [two]
    assert hashes([7], 2) == []


@settings(max_examples=40)
@given(TOKENS, st.integers(1, 8), st.integers(1, 8))
def test_a_larger_block_has_the_hash_of_the_last_small_one_in_it(
    tokens: list[int], block_tokens: int, times: int
) -> None:
    small, large = hashes(tokens, block_tokens), hashes(tokens, block_tokens * times)
    assert large == small[times - 1 :: times]


@settings(max_examples=40)
@given(TOKENS, st.integers(0, 63))
def test_what_comes_before_counts(tokens: list[int], where: int) -> None:
    changed = [t ^ 1 if k == where else t for k, t in enumerate(tokens)]
    same, other = hashes(tokens, 1), hashes(changed, 1)
    assert same[:where] == other[:where]
    assert not set(same[where:]) & set(other[where:])


@pytest.mark.parametrize("adapter", ["a", "sql-lora"])
def test_an_adapter_shares_nothing_with_its_base(adapter: str) -> None:
    base, own = hashes([1, 2, 3, 4], 2), hashes([1, 2, 3, 4], 2, adapter)
    assert not set(base) & set(own)
    assert own == hashes([1, 2, 3, 4], 2, adapter)

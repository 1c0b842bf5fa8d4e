"""Hash chains of prompt blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trimtab.traces.hashing import chain_hashes, mix64, mix_all, mix_rows


def make_chains(num_blocks, shared_seeds, num_shared_blocks, own_seeds):
    offsets = np.concatenate([[0], np.cumsum(num_blocks)])
    hashes = chain_hashes(
        offsets,
        np.array(shared_seeds, np.uint64),
        np.array(num_shared_blocks, np.int32),
        np.array(own_seeds, np.uint64),
    )
    return np.split(hashes, offsets[1:-1])


def test_mix64_is_splitmix64():
    # First outputs of splitmix64 from state 0: the n-th is the mix of n times its increment.
    increment = 0x9E3779B97F4A7C15
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for n, output in enumerate(outputs):
        assert int(mix64(np.uint64(n * increment % 2**64))) == output


def test_the_same_conversation_shares_its_whole_prefix():
    short, long = make_chains([3, 5], [0, 0], [0, 0], [7, 7])
    np.testing.assert_array_equal(short, long[:3])


def test_different_conversations_share_only_the_shared_prompt():
    one, two = make_chains([4, 4], [5, 5], [2, 2], [7, 8])
    np.testing.assert_array_equal(one[:2], two[:2])
    assert not set(one[2:]) & set(two[2:])


def test_equal_text_after_different_prefixes_is_another_block():
    one, two = make_chains([3, 3], [5, 6], [1, 1], [7, 7])
    assert not set(one) & set(two)


def test_no_blocks_at_all():
    assert make_chains([0, 0], [1, 1], [4, 4], [2, 3])[0].size == 0


def test_rows_of_one_salt_keep_their_equalities_and_others_lose_them():
    offsets = np.array([0, 2, 4, 6])
    hashes = np.array([1, 2, 1, 2, 1, 2], np.uint64)
    mixed = mix_rows(offsets, hashes, np.array([0, 0, 1], np.uint64))
    np.testing.assert_array_equal(mixed[0:2], mixed[2:4])
    assert not set(mixed[0:2]) & set(mixed[4:6])


@given(st.lists(st.integers(0, 2**64 - 1), unique=True), st.integers(0, 2**64 - 1))
def test_mixing_keeps_different_values_different(values, salt):
    mixed = mix_all(np.array(values, np.uint64), np.uint64(salt))
    assert len(set(mixed.tolist())) == len(values)

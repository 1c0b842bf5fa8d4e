"""Budgets: known answers of a bucket over time, and what can never be exceeded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.budget import full_buckets, give_back, has_budget, take_from_bucket
from trimtab.env.restrictions import open_groups


def group(**values) -> np.ndarray:
    groups = open_groups(1)
    for name, value in values.items():
        groups[name] = value
    return groups


def take_all(groups, needs) -> list[bool]:
    """Take (moment, tokens) one after the other."""
    buckets = full_buckets(groups)
    return [bool(take_from_bucket(buckets[0], groups[0], tokens, at_s)) for at_s, tokens in needs]


def test_a_group_without_a_budget_takes_what_it_likes():
    groups = open_groups(1)
    assert not has_budget(groups[0])
    assert take_all(groups, [(0.0, 1e12)] * 5) == [True] * 5


def test_tokens_come_back_at_their_rate():
    groups = group(tokens_per_s=100.0, burst_tokens=1000.0)
    assert has_budget(groups[0])
    needs = [(0.0, 600), (0.0, 500), (0.9, 500), (1.0, 500), (1.0, 1), (60.0, 1000), (60.0, 1)]
    assert take_all(groups, needs) == [True, False, False, True, False, True, False]


def test_requests_are_counted_whatever_their_size():
    groups = group(requests_per_s=2.0, burst_requests=3.0)
    needs = [(0.0, 1e6)] * 4 + [(0.5, 1), (0.5, 1), (1.0, 1), (1.1, 1), (1.5, 1)]
    assert take_all(groups, needs) == [True] * 3 + [False, True, False, True, False, True]


def test_what_is_refused_for_one_of_both_takes_nothing_of_the_other():
    groups = group(tokens_per_s=10.0, burst_tokens=100.0, requests_per_s=1e-9, burst_requests=2.0)
    # The second finds too few tokens, and leaves its request to the third.
    assert take_all(groups, [(0.0, 90), (0.0, 90), (0.0, 10), (0.0, 0)]) == [
        True, False, True, False,
    ]  # fmt: skip


def test_more_than_a_bucket_holds_passes_when_it_is_full_and_leaves_a_debt():
    groups = group(tokens_per_s=100.0, burst_tokens=100.0)
    # 900 in debt at 0, so full again only at 10 s.
    assert take_all(groups, [(0.0, 1000), (9.9, 100), (10.1, 100)]) == [True, False, True]
    assert take_all(groups, [(0.0, 1), (0.0, 1000)]) == [True, False]


@pytest.mark.parametrize("name", ["tokens", "requests"])
def test_an_empty_budget_lets_nothing_pass(name):
    groups = group(**{f"{name}_per_s": 0.0, f"burst_{name}": 0.0})
    assert take_all(groups, [(0.0, 1), (100.0, 0)]) == [False, False]


def test_what_is_given_back_can_be_had_again():
    groups = group(tokens_per_s=1.0, burst_tokens=100.0, requests_per_s=1.0, burst_requests=1.0)
    buckets = full_buckets(groups)
    assert take_from_bucket(buckets[0], groups[0], 100.0, 0.0)
    assert not take_from_bucket(buckets[0], groups[0], 100.0, 0.0)
    give_back(buckets[0], groups[0], 100.0)
    assert take_from_bucket(buckets[0], groups[0], 100.0, 0.0)
    give_back(buckets[0], groups[0], 1e9)
    assert buckets["tokens"][0] == 100.0


@given(
    gaps_s=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60),
    tokens=st.lists(st.integers(1, 400), min_size=60, max_size=60),
    per_s=st.floats(1.0, 200.0),
    burst=st.floats(10.0, 1000.0),
)
def test_nobody_gets_more_than_burst_and_rate_give(gaps_s, tokens, per_s, burst):
    groups = group(tokens_per_s=per_s, burst_tokens=burst)
    moments_s = np.cumsum(gaps_s)
    needs = [(float(at_s), float(n)) for at_s, n in zip(moments_s, tokens, strict=False)]
    taken = take_all(groups, needs)
    spent = sum(n for (_, n), is_taken in zip(needs, taken, strict=True) if is_taken)
    # The last may leave a debt of as much as it needs.
    assert spent <= burst + per_s * moments_s[-1] + 400.0

"""Answers' lengths: draws follow what was seen, given what has come already."""

import numpy as np
import pytest

from trimtab.env.lookahead.lengths import (
    MOST_REQUESTS,
    PRIOR_REQUESTS,
    count_length,
    draw_length,
    prior_lengths,
)

FOREVER = 1 << 40


def drawn(counts: np.ndarray, tokens: int, num: int = 2000) -> np.ndarray:
    return np.array([draw_length(counts, tokens, FOREVER, 0, key, 0, 0, 1) for key in range(num)])


def test_before_anything_is_seen_lengths_are_the_priors():
    counts = prior_lengths(200.0)
    assert counts.sum() == pytest.approx(PRIOR_REQUESTS)
    assert np.median(drawn(counts, 0)) == pytest.approx(200.0 * np.log(2.0), rel=0.15)


def test_draws_follow_what_was_seen_and_lie_beyond_what_has_come():
    counts, rng = prior_lengths(200.0), np.random.default_rng(0)
    seen = np.maximum(1, rng.lognormal(5.0, 0.8, 3000)).astype(int)
    for tokens in seen:
        count_length(counts, tokens)
    for come in (0, 50, 300):
        lengths = drawn(counts, come)
        assert lengths.min() > come
        assert np.median(lengths) == pytest.approx(np.median(seen[seen > come]), rel=0.1)


def test_old_lengths_are_forgotten():
    counts = prior_lengths(200.0)
    for tokens in [10] * 8000 + [1000] * 12000:
        count_length(counts, tokens)
    assert counts.sum() <= MOST_REQUESTS
    assert np.mean(drawn(counts, 0) > 500) > 0.9


def test_samples_of_one_request_spread_over_the_distribution():
    counts = prior_lengths(200.0)
    for key in range(50):
        lengths = sorted(draw_length(counts, 0, FOREVER, 0, key, 0, s, 3) for s in range(3))
        assert lengths[0] < 200.0 * np.log(3.0) * 0.75 + 10
        assert lengths[2] > 200.0 * np.log(1.5) * 1.5


def test_a_limit_on_tokens_is_obeyed_and_what_was_never_seen_is_possible():
    counts = np.zeros_like(prior_lengths(200.0))
    assert draw_length(counts, 70, FOREVER, 0, 1, 0, 0, 1) > 70
    counts[:] = prior_lengths(200.0)
    assert max(draw_length(counts, 5, 64, 0, key, 0, 0, 1) for key in range(200)) == 64

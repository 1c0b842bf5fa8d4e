"""The benchmark of understanding measures what it says."""

import numpy as np
import pytest
from loading import load

streams = load("understanding_path.length_streams")
scores = load("understanding_path.length_scores")


def test_pinball_loss() -> None:
    actual, predicted = np.array([10.0, 10.0]), np.array([8.0, 12.0])
    assert scores.pinball(actual, predicted, 0.9) == pytest.approx((0.9 * 2 + 0.1 * 2) / 2)


def test_an_answer_is_known_when_it_has_ended() -> None:
    answer = streams.Answer(arrived_at_s=10.0, input_tokens=5, output_tokens=100)
    assert answer.ended_at_s == pytest.approx(10.0 + 0.5 + 3.0)


def test_a_drifting_stream_is_the_same_for_a_seed_and_keeps_its_limits() -> None:
    first, again = streams.drifting(300, seed=4), streams.drifting(300, seed=4)
    assert first == again
    assert all(1 <= answer.output_tokens <= answer.most_tokens for answer in first)


def test_ours_beat_a_mean_where_tenants_differ() -> None:
    found = scores.score(streams.drifting(2500, seed=1))
    assert found["requests"] == 2500
    assert found["p90_pinball"] < found["p90_pinball_all_lengths"]
    assert found["p50_pinball"] < found["p50_pinball_exponential_mean"]
    assert 0.85 <= found["p90_coverage"] <= 0.97

"""Tuning over sites: better than a bad start, never kept unless better on unseen episodes."""

import numpy as np
import pytest

from trimtab.agents.heuristics import ANALYTIC_SCORER
from trimtab.agents.knob_search import SearchBudget
from trimtab.agents.site_tuning import SiteTuningConfig, training_episodes, tune_on_episodes
from trimtab.env.sites import Split, sample_site, site_episode

QUICK = SiteTuningConfig(
    budget=SearchBudget(num_generations=3, population=6, step_size=0.4), episodes_per_generation=2
)
# Sheds whatever would wait at all.
BAD = ANALYTIC_SCORER.knobs.replace({"shed_interactive": 0.1, "shed_batch": 0.1, "backlog": 4.0})


def episodes(split, numbers):
    return [
        site_episode(sample_site(split, i, None, is_changing=False), 0, None, span_s=12.0)
        for i in numbers
    ]


def test_a_bad_start_is_improved_on_sites_that_were_not_seen():
    seen = []
    train, unseen = episodes(Split.TRAIN, (0, 1, 3)), episodes(Split.VALIDATION, (0, 1))
    result = tune_on_episodes(BAD, train, unseen, QUICK, on_generation=seen.append)
    assert result.is_improved
    assert result.tuned_goodput > result.base_goodput + 0.01
    assert len(seen) == 3
    again = tune_on_episodes(BAD, train, unseen, QUICK)
    np.testing.assert_array_equal(result.knobs.values, again.knobs.values)


def test_the_start_is_kept_where_validation_says_so(monkeypatch):
    def goodput_of(candidates, chosen, pool):
        # The last of two is what was found; it is worse wherever it is validated.
        return -np.arange(len(candidates), dtype=float)[:, None]

    monkeypatch.setattr("trimtab.agents.site_tuning.goodput_of", goodput_of)
    some = episodes(Split.TRAIN, (0,))
    result = tune_on_episodes(ANALYTIC_SCORER.knobs, some, some, QUICK)
    assert not result.is_improved
    assert result.knobs is ANALYTIC_SCORER.knobs


def test_nothing_to_validate_on_is_refused():
    with pytest.raises(ValueError, match="need episodes to tune and validate on, got 0 and 0"):
        tune_on_episodes(ANALYTIC_SCORER.knobs, [], [], QUICK)


def test_training_episodes_are_of_their_split_and_a_third_of_them_changes():
    found = training_episodes(Split.TRAIN, 6, None)
    assert {episode.site.number % 3 == 2 for episode in found if episode.site.is_changing} == {True}
    assert {episode.site.split for episode in found} == {Split.TRAIN}
    assert len(found) >= 4
    assert max(episode.workload.requests.size for episode in found) <= 8000

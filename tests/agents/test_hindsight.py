from dataclasses import replace

import numpy as np
import pytest

from trimtab.agents.contest import Contender, play_out
from trimtab.agents.heuristics import heuristic
from trimtab.agents.hindsight import Replay, placement_of, search
from trimtab.agents.universal import universal_scorer
from trimtab.env.sites import Split, sample_site, site_episode
from trimtab.env.sites.goodput import goodput


def busy_episode(number=0):
    site = replace(sample_site(Split.TRAIN, number, None, is_changing=False), load_frac=1.1)
    return site_episode(site, 0, None, span_s=10.0)


@pytest.fixture(scope="module", params=[0, 1])
def played(request):
    episode = busy_episode(request.param)
    fleet = play_out(episode, Contender(name="scorer", knobs=universal_scorer()))
    return episode, fleet.requests.copy()


def test_the_placements_of_a_schedule_bring_its_outcome_again(played):
    episode, requests = played
    replay = Replay(episode)
    found = replay.run(placement_of(requests, replay.num_replicas)).requests
    for name in ("status", "first_token_s", "finish_s", "hit_tokens"):
        np.testing.assert_allclose(found[name], requests[name], atol=1e-9, equal_nan=True)


def test_what_one_replica_brings_in_does_not_depend_on_the_others(played):
    episode, requests = played
    replay = Replay(episode)
    placement = placement_of(requests, replay.num_replicas)
    whole = replay.worth(placement, np.arange(replay.num_replicas))
    parts = [replay.worth(placement, np.array([r])) for r in range(replay.num_replicas)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), whole)


def test_a_search_never_ends_below_its_start_and_its_placement_brings_what_it_says():
    episode = busy_episode()
    fleet = play_out(episode, Contender(name="turns", knobs=heuristic("round-robin").knobs))
    replay = Replay(episode)
    start = placement_of(fleet.requests, replay.num_replicas)
    found = search(replay, start, num_moves=40)
    assert found.start_goodput == pytest.approx(goodput(fleet.requests))
    assert found.goodput > found.start_goodput
    assert list(found.goodput_by_quarter) == sorted(found.goodput_by_quarter)
    assert goodput(replay.run(found.placement).requests) == pytest.approx(found.goodput)
    again = search(replay, start, num_moves=40)
    np.testing.assert_array_equal(again.placement, found.placement)


def test_all_refused_is_worth_nothing_and_one_taken_in_is_worth_its_weight():
    episode = busy_episode()
    replay = Replay(episode)
    placement = np.full(episode.workload.requests.size, replay.num_replicas)
    assert goodput(replay.run(placement).requests) == 0.0
    placement[0] = 0
    requests = replay.run(placement).requests
    expected = requests["weight"][0] / requests["weight"].sum()
    assert goodput(requests) == pytest.approx(expected)


def test_faults_name_the_value():
    episode = busy_episode()
    replay = Replay(episode)
    with pytest.raises(ValueError, match=r"placement must have shape .* got \(3,\)"):
        replay.run(np.zeros(3, np.int64))
    none = np.zeros(episode.workload.requests.size, np.int64)
    with pytest.raises(ValueError, match="num_moves must be at least 0, got -1"):
        search(replay, none, num_moves=-1)
    scripted = replace(episode, config=replace(episode.config, script=(None,)))
    with pytest.raises(ValueError, match="loses replicas"):
        Replay(scripted)

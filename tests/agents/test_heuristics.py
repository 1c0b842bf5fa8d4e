"""The named schedulers: complete, distinct, and themselves under the simulator."""

import numpy as np
import pytest

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS, heuristic
from trimtab.env.scenario import Part
from trimtab.env.simulated_fleet import run_workload


def test_every_usual_scheduler_is_there():
    assert {
        "random", "round-robin", "least-requests", "least-tokens", "power-of-two", "session-hash",
        "sglang-cache-aware", "llm-d-weighted", "dynamo-logit", "predicted-ttft", "analytic-scorer",
        "universal-scorer", "marginal-value",
    } == set(HEURISTICS)  # fmt: skip


def test_names_sources_and_settings_are_their_own():
    assert all(name == h.name and h.source for name, h in HEURISTICS.items())
    settings = {h.knobs.values.tobytes() for h in HEURISTICS.values()}
    assert len(settings) == len(HEURISTICS)


def test_none_that_is_imported_sheds():
    imported = [h for h in HEURISTICS.values() if h.is_imported]
    assert all(h.knobs["shed_enabled"] == 0.0 for h in imported)
    assert ANALYTIC_SCORER.knobs["shed_enabled"] == 1.0


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown policy 'least-request'; known: random, "):
        heuristic("least-request")


@pytest.mark.parametrize("name", sorted(HEURISTICS))
def test_each_serves_a_workload(scenario, name):
    workload = scenario.workload(Part.TEST, 0)
    fleet = run_workload(scenario.cluster, workload, heuristic(name).knobs, config=scenario.config)
    assert fleet.num_open == 0
    assert fleet.requests.size == workload.requests.size
    assert 0.0 < fleet.kpis().goodput_frac <= 1.0


def test_round_robin_gives_each_replica_the_same_share(scenario):
    workload = scenario.workload(Part.TEST, 0)
    fleet = run_workload(scenario.cluster, workload, heuristic("round-robin").knobs)
    counts = np.bincount(fleet.requests["replica"])
    assert counts.max() - counts.min() <= 1


def test_session_hash_keeps_a_conversation_together(scenario):
    workload = scenario.workload(Part.TEST, 0)
    requests = run_workload(scenario.cluster, workload, heuristic("session-hash").knobs).requests
    sessions, counts = np.unique(requests["query"]["session_hash"], return_counts=True)
    assert (counts > 1).any()
    for session in sessions[counts > 1]:
        of_session = requests["query"]["session_hash"] == session
        assert np.unique(requests["replica"][of_session]).size == 1

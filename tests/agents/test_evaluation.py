"""Evaluation: pairs, intervals, determinism, and policies that are the same are found the same."""

import numpy as np
import pytest

from trimtab.agents.evaluation import bootstrap, evaluate, num_runs, run_policy
from trimtab.agents.heuristics import HEURISTICS
from trimtab.agents.policy import constant_policy
from trimtab.env.knobs import Knobs
from trimtab.env.scenario import Part
from trimtab.env.state.cluster_state import ClusterState


class Switching:
    """Two settings in turn, window by window."""

    name = "switching"
    is_constant = False

    def __init__(self, *settings: Knobs) -> None:
        self._settings = settings
        self._window = 0

    def begin(self) -> Knobs:
        self._window = 0
        return self._settings[0]

    def act(self, state: ClusterState) -> Knobs:
        self._window += 1
        return self._settings[(self._window - 1) % len(self._settings)]


def makers(*names: str):
    return {name: lambda name=name: constant_policy(HEURISTICS[name]) for name in names}


def test_bootstrap_of_one_value_is_that_value():
    interval = bootstrap([0.25])
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_bootstrap_covers_the_mean_of_a_known_distribution():
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(1.0, 2.0, 40), seed=i) for i in range(100)]
    covered = sum(i.low <= 1.0 <= i.high for i in intervals)
    assert 88 <= covered <= 99


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="cannot bootstrap 0 values"):
        bootstrap([])


def test_same_seed_same_results_whatever_the_threads(scenario):
    first, second = (
        evaluate(scenario, makers("random", "analytic-scorer"), num_workloads=3) for _ in range(2)
    )
    for a, b in zip(first.policies, second.policies, strict=True):
        assert a.kpis == b.kpis
        assert np.array_equal(a.ttft_quantiles_s, b.ttft_quantiles_s)


def test_policies_meet_the_same_workloads_in_pairs(scenario):
    runs = []
    evaluation = evaluate(
        scenario,
        makers("round-robin", "predicted-ttft"),
        num_workloads=3,
        loads=(0.5,),
        num_load_workloads=2,
        on_run=lambda: runs.append(1),
    )
    assert len(runs) == num_runs(2, 3, 1, 2) == 10
    counts = [[k.num_requests for k in result.kpis] for result in evaluation.policies]
    assert counts[0] == counts[1]
    difference = evaluation.difference("predicted-ttft", "round-robin")
    by_hand = evaluation.result("predicted-ttft").values("goodput_frac") - evaluation.result(
        "round-robin"
    ).values("goodput_frac")
    assert difference.mean == pytest.approx(by_hand.mean())
    assert difference.low <= difference.mean <= difference.high
    same = evaluation.difference("round-robin", "round-robin")
    assert (same.low, same.high) == (0.0, 0.0)
    assert [load for load, _ in evaluation.goodput_by_load["round-robin"]] == [0.5]


def test_unknown_result_is_refused(scenario):
    evaluation = evaluate(scenario, makers("random"), num_workloads=1)
    with pytest.raises(ValueError, match="no results of policy 'best'"):
        evaluation.result("best")


def test_setting_the_same_knobs_every_window_changes_nothing(scenario):
    knobs = HEURISTICS["analytic-scorer"].knobs
    workload = scenario.workload(Part.TEST, 1)
    constant, _ = run_policy(
        scenario, workload, constant_policy(HEURISTICS["analytic-scorer"]), seed=1
    )
    windowed, track = run_policy(scenario, workload, Switching(knobs, knobs), seed=1)
    assert constant.requests["replica"].tolist() == windowed.requests["replica"].tolist()
    assert constant.kpis().goodput_frac == windowed.kpis().goodput_frac
    assert track.at_s.size == 1 + round(scenario.span_s / 2.0)


def test_a_policy_that_moves_the_knobs_moves_the_requests(scenario):
    workload = scenario.workload(Part.TEST, 1)
    settings = [HEURISTICS[name].knobs for name in ("round-robin", "least-tokens")]
    switching, track = run_policy(scenario, workload, Switching(*settings), seed=1)
    constant, _ = run_policy(scenario, workload, constant_policy(HEURISTICS["round-robin"]), seed=1)
    assert switching.requests["replica"].tolist() != constant.requests["replica"].tolist()
    assert set(track.values["round_robin_weight"]) == {0.0, 1.0}

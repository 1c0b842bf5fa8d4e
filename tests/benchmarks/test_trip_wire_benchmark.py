"""The trip-wire's benchmark: when a wire fires, and figures of a small run."""

from dataclasses import replace

from loading import load

from trimtab.env.regret import NO_REGRET, Regret
from trimtab.env.scenario import TROUBLED, scenario_from_trace
from trimtab.traces.synthetic import SyntheticConfig, generate

trip_wire = load("trip_wire")


def test_windows_are_counted_from_the_start():
    bad, good = (Regret(num_sampled=100, mean=m, std_error=0.02) for m in (0.5, 0.0))
    assert trip_wire.windows_to_trip([NO_REGRET, bad, bad]) == 2
    assert trip_wire.windows_to_trip([good] * 9) is None


def test_truth_and_estimate_are_of_the_same_policies(make_cluster):
    trace = generate(SyntheticConfig(num_requests=3000, rate_rps=10.0, seed=0, block_tokens=128))
    cluster = make_cluster(["A100-80G", "A100-80G", "H100-80G", "L40S-48G"])
    scenario = scenario_from_trace(trace, name="small", cluster=cluster, config=TROUBLED)
    scenario = replace(scenario, span_s=12.0)
    rows = trip_wire.measure_regret(scenario, 0.6, 1, 1)
    worst, best = rows["sheds nearly all"], rows["random action 0"]
    assert worst["true_regret"] > 0.05
    assert worst["estimated_regret"] > 0.05
    assert worst["windows_to_trip"][0] <= 5
    assert best["windows_to_trip"] == [None]
    novelty = trip_wire.measure_novelty(scenario, 1)
    assert novelty["alarm_frac_all_replicas_gone"] == novelty["alarm_frac_garbage"] == 1.0

"""Iteration times as measured: the simulator and a gateway both go by them."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster_file import load_cluster
from trimtab.env.latency import iteration_time_s
from trimtab.env.measured_latency import MeasuredLatency
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import replica_coefficients
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.schema import RequestTrace

TIMES = MeasuredLatency(
    step_s=2e-3, token_s=1e-4, sequence_s=5e-5, context_s=1e-8, attention_s=1e-8
)


def test_an_iteration_is_the_sum_of_its_parts() -> None:
    record = TIMES.coefficients()[0]
    assert iteration_time_s(record, 0, 0, 1, 0) == pytest.approx(2e-3 + 1e-4 + 5e-5)
    assert iteration_time_s(record, 0, 0, 4, 1000) == pytest.approx(2e-3 + 6e-4 + 1e-5)
    prefill_s = iteration_time_s(record, 100, 0, 0, 0)
    assert prefill_s == pytest.approx(2e-3 + 1e-2, rel=0.01)
    assert iteration_time_s(record, 100, 1000, 0, 0) - prefill_s == pytest.approx(1e-3, rel=1e-6)


def test_one_request_in_a_simulation_takes_as_long() -> None:
    cluster = load_cluster("demo-16")
    one = replace(
        cluster,
        servers=cluster.servers[:1],
        replicas=(replace(cluster.replicas[0], measured=TIMES),),
    )
    np.testing.assert_array_equal(replica_coefficients(one), TIMES.coefficients())
    trace = RequestTrace.from_columns(arrival_s=[0.0], input_tokens=[200], output_tokens=[11])
    fleet = SimulatedFleet(one, compile_workload(trace, name="one"))
    fleet.reset(seed=0)
    fleet.drain()
    (request,) = fleet.requests
    assert request["first_token_s"] == pytest.approx(2e-3 + 2e-2, rel=0.02)
    span_s = request["finish_s"] - request["first_token_s"]
    assert span_s / 10 == pytest.approx(2e-3 + 1.5e-4, rel=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_s": -1.0, "token_s": 0.0}, "step_s must be at least 0 and finite, got -1.0"),
        ({"step_s": 0.0, "token_s": 0.0}, "no iteration takes no time"),
        ({"step_s": 0.0, "token_s": float("nan")}, "token_s must be at least 0 and finite"),
    ],
)
def test_impossible_times_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeasuredLatency(**values)

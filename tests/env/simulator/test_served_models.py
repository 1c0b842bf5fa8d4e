"""Requests go only to replicas that serve their model, found by name."""

import numpy as np
import pytest

from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.layout import FINISHED
from trimtab.env.simulator.served_models import served_models
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload, compile_workload
from trimtab.traces.schema import RequestTrace

SERVED = ("llama-3-70b", "qwen-2.5-32b", "mixtral-8x7b")


def make_trace(models: list[str]) -> RequestTrace:
    count = len(models)
    return RequestTrace.from_columns(
        arrival_s=np.arange(count) * 0.2,
        input_tokens=[300] * count,
        output_tokens=[20] * count,
        model=models,
    )


def make_named(models: list[str], **model_map: str) -> Workload:
    return compile_workload(make_trace(models), name="named", model_map=model_map)


@pytest.mark.parametrize(
    "knobs",
    [Knobs.of(round_robin_weight=1.0), Knobs.of(num_choices=2.0), ANALYTIC_SCORER_KNOBS],
)
@pytest.mark.parametrize("config", [{}, {"num_gateways": 2, "num_candidates": 1}])
def test_each_model_has_its_replicas(knobs, config):
    cluster = load_cluster("mixed-models")
    assert served_models(cluster) == SERVED
    # Not in the order of the cluster, nor all in equal number.
    named = ["mixtral-8x7b", "llama-3-70b", "mixtral-8x7b", "qwen-2.5-32b"] * 10
    fleet = run_workload(cluster, make_named(named), knobs, config=FleetConfig(**config))
    replicas = [SERVED.index(name) for name in named]
    np.testing.assert_array_equal(fleet.requests["replica"], replicas)
    assert (fleet.requests["status"] == FINISHED).all()


def test_a_model_map_renames():
    workload = make_named(["big", "small"], big="llama-3-70b", small="qwen-2.5-32b")
    fleet = run_workload(load_cluster("mixed-models"), workload, Knobs())
    assert fleet.requests["replica"].tolist() == [0, 1]


def test_one_model_takes_all_names(make_cluster):
    workload = make_named(["gpt-4", "llama-3-70b", "default"])
    fleet = run_workload(make_cluster(), workload, Knobs())
    assert (fleet.requests["status"] == FINISHED).all()


def test_an_unknown_model_among_several_is_an_error():
    fleet = SimulatedFleet(load_cluster("mixed-models"), make_named(["mixtral-8x22b"]))
    message = (
        "workload 'named': unknown model 'mixtral-8x22b'; did you mean 'mixtral-8x7b'\\? "
        "known: llama-3-70b, mixtral-8x7b, qwen-2.5-32b; map the trace's names with model_map"
    )
    with pytest.raises(ValueError, match=message):
        fleet.reset(seed=0)

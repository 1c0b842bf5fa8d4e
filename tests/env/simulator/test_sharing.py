"""Replicas on shared GPUs: fixed shares, turns, and what they draw."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec, Sharing
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)
FIRST = Knobs.of()


def make_shared(make_cluster, count: int, **fields: object) -> ClusterSpec:
    """Equal replicas on one GPU."""
    cluster = make_cluster(["H100-80G"])
    replicas = tuple(
        replace(cluster.replicas[0], name=f"r{i}", gpu_frac=1.0 / count, **fields)
        for i in range(count)
    )
    return replace(cluster, replicas=replicas)


def test_a_fixed_share_is_slow_whatever_the_others_do(make_cluster, make_workload):
    cluster = make_shared(make_cluster, 2)
    alone = run_workload(cluster, make_workload([0.0], [500], [100]), FIRST)
    beside = run_workload(cluster, make_workload([0.0, 0.0], [500] * 2, [100] * 2), ROUND_ROBIN)
    whole = run_workload(make_cluster(), make_workload([0.0], [500], [100]), FIRST)
    np.testing.assert_array_equal(
        beside.requests["finish_s"], np.repeat(alone.requests["finish_s"], 2)
    )
    c, shared = (replica_coefficients(one.cluster)[0] for one in (whole, alone))
    fixed_s = c["step_s"] + c["request_s"] + c["decode_step_s"]
    assert iteration_time_s(shared, 0, 0, 1, 700) - fixed_s == pytest.approx(
        2 * (iteration_time_s(c, 0, 0, 1, 700) - fixed_s)
    )
    first_s = iteration_time_s(shared, 500, 0, 0, 0)
    assert alone.requests["first_token_s"][0] == pytest.approx(first_s)


def test_turns_cost_nothing_while_the_others_are_idle(make_cluster, make_workload):
    workload = make_workload([0.0], [500], [200])
    by_turns = run_workload(
        make_shared(make_cluster, 2, sharing=Sharing.TIME_SLICED), workload, FIRST
    )
    whole = run_workload(make_cluster(), workload, FIRST)
    assert by_turns.requests["finish_s"][0] == pytest.approx(whole.requests["finish_s"][0])


@pytest.mark.parametrize("count", [2, 3])
def test_busy_replicas_get_equal_turns(make_cluster, make_workload, count):
    """All busy for long: each is slower by their number, but for the first scrapes."""
    cluster = make_cluster(["B200-180G"])
    replicas = tuple(
        replace(
            cluster.replicas[0],
            name=f"r{i}",
            gpu_frac=1.0 / count,
            sharing=Sharing.TIME_SLICED,
        )
        for i in range(count)
    )
    workload = make_workload([0.0] * count, [100] * count, [3000] * count)
    shared = run_workload(replace(cluster, replicas=replicas), workload, ROUND_ROBIN)
    alone = run_workload(cluster, make_workload([0.0], [100], [3000]), FIRST)
    ratio = shared.requests["finish_s"] / alone.requests["finish_s"][0]
    assert ratio == pytest.approx(np.full(count, float(count)), rel=0.02)


def test_power_of_turns_is_that_of_one_gpu(make_cluster, make_workload):
    """Two that are always busy draw together what one draws alone on the whole GPU."""
    workload = make_workload([0.0, 0.0], [100, 100], [2000, 2000])
    shared = SimulatedFleet(make_shared(make_cluster, 2, sharing=Sharing.TIME_SLICED), workload)
    alone = SimulatedFleet(make_cluster(), make_workload([0.0], [100], [2000]))
    watts = []
    for fleet in (shared, alone):
        fleet.reset(seed=0, knobs=ROUND_ROBIN)
        fleet.advance(1.0)
        before_j = fleet.arrays.replicas["energy_j"].sum()
        fleet.advance(2.0)
        watts.append((fleet.arrays.replicas["energy_j"].sum() - before_j) / 2.0)
    # 300 W in decode at batch 1, and 275 W of the host
    assert watts[1] == pytest.approx(300 + 275, rel=0.01)
    assert watts[0] == pytest.approx(watts[1], rel=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_jump_equals_single_steps(make_cluster, make_random_workload, seed):
    workload = make_random_workload(150, rate_rps=8.0, seed=seed, mean_output_tokens=200.0)
    cluster = make_shared(make_cluster, 2, sharing=Sharing.TIME_SLICED)
    jumped, stepped = (
        run_workload(
            cluster,
            workload,
            ROUND_ROBIN,
            config=FleetConfig(is_single_step=is_single_step),
            seed=seed,
        )
        for is_single_step in (False, True)
    )
    np.testing.assert_array_equal(jumped.requests["status"], stepped.requests["status"])
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(jumped.requests[name], stepped.requests[name], atol=1e-9, rtol=0)
    assert jumped.arrays.replicas["num_steps"].sum() < stepped.arrays.replicas["num_steps"].sum()


def test_the_bundled_cluster_keeps_its_models_apart():
    cluster = load_cluster("shared-gpus")
    coefficients = replica_coefficients(cluster)
    # 0.4 of a GPU against 0.5, the same model
    assert coefficients["weight_s"][2] / coefficients["weight_s"][0] == pytest.approx(0.5 / 0.4)
    assert coefficients["weight_s"][4] == pytest.approx(coefficients["weight_s"][0] / 2)

"""Taking many iterations at once gives what taking each by itself gives, for every request.

One difference is left out on purpose: blocks that a jump evicts on the way leave the gateway's
view at its end, not at the iteration that evicts them. A policy that reads prefix hits may then
choose otherwise, so such policies are held to equality where nothing is evicted.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import FAILED, FINISHED, SHED
from trimtab.env.simulator.setup import FleetConfig

GPU_NAMES = ("H100-80G", "A100-80G", "L40S-48G", "H200-141G")
POLICIES = {
    "round_robin": Knobs.of(round_robin_weight=1.0),
    "session_hash": Knobs.of(session_hash_weight=1.0),
    "least_requests": Knobs.of(outstanding_requests_weight=1.0),
    "scorer": Knobs.of(scorer_weight=1.0, shed_enabled=1.0),
    "scorer_few_slots": Knobs.of(scorer_weight=1.0, max_num_seqs_frac=0.25, batch_tokens_scale=0.5),
}
READS_HITS = {"scorer", "scorer_few_slots"}
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=400.0,
    server_slowdowns_per_hour=200.0,
    slowdown_span_s=(0.5, 5.0),
    crashes_per_hour=60.0,
    restart_span_s=(1.0, 5.0),
)
SAME = ("status", "replica", "hit_tokens", "num_preemptions", "num_dispatches", "generated_tokens")


def assert_same_run(one: SimulatedFleet, other: SimulatedFleet) -> None:
    for name in SAME:
        np.testing.assert_array_equal(one.requests[name], other.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(
            one.requests[name], other.requests[name], rtol=0, atol=1e-9, err_msg=name
        )
    for name in ("energy_j", "busy_s", "prefill_s"):
        np.testing.assert_allclose(
            one.arrays.replicas[name], other.arrays.replicas[name], rtol=1e-9, err_msg=name
        )
    for name in ("num_iterations", "prefill_tokens", "num_cached_blocks", "free_pages"):
        np.testing.assert_array_equal(
            one.arrays.replicas[name], other.arrays.replicas[name], err_msg=name
        )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    gpus=st.lists(st.sampled_from(GPU_NAMES), min_size=1, max_size=4),
    policy=st.sampled_from(sorted(POLICIES)),
    kv_pages=st.sampled_from([130, 150, 200, 400, None]),
    max_num_seqs=st.sampled_from([3, 16, 256]),
    rate_rps=st.floats(2.0, 60.0),
    mean_output_tokens=st.sampled_from([20.0, 150.0, 500.0]),
    num_prompts=st.sampled_from([0, 3, 20]),
    is_in_trouble=st.booleans(),
)
def test_jump_equals_single_steps(
    make_cluster,
    make_random_workload,
    seed,
    gpus,
    policy,
    kv_pages,
    max_num_seqs,
    rate_rps,
    mean_output_tokens,
    num_prompts,
    is_in_trouble,
):
    workload = make_random_workload(
        120,
        rate_rps=rate_rps,
        seed=seed,
        mean_output_tokens=mean_output_tokens,
        num_prompts=num_prompts,
    )
    if policy in READS_HITS and num_prompts > 0:
        kv_pages = None
    cluster = make_cluster(gpus, kv_pages=kv_pages, max_num_seqs=max_num_seqs)
    faults = TROUBLE if is_in_trouble else FaultConfig()
    jumped, stepped = (
        run_workload(
            cluster,
            workload,
            POLICIES[policy],
            config=FleetConfig(faults=faults, is_single_step=is_single_step),
            seed=seed,
        )
        for is_single_step in (False, True)
    )
    assert_same_run(jumped, stepped)


@pytest.mark.parametrize(
    ("policy", "num_prompts"), [("least_requests", 8), ("round_robin", 8), ("scorer", 0)]
)
def test_jump_covers_what_the_property_is_about(
    make_cluster, make_random_workload, policy, num_prompts
):
    """Runs of the kind above have preemptions, hits, crashes and refusals, and really jump."""
    workload = make_random_workload(
        400, rate_rps=30.0, seed=3, mean_output_tokens=300.0, num_prompts=num_prompts
    )
    cluster = make_cluster(GPU_NAMES, kv_pages=300, max_num_seqs=32)
    runs = [
        run_workload(
            cluster,
            workload,
            POLICIES[policy],
            config=FleetConfig(faults=TROUBLE, is_single_step=is_single_step),
            seed=1,
        )
        for is_single_step in (False, True)
    ]
    assert_same_run(*runs)
    replicas, status = runs[0].arrays.replicas, runs[0].requests["status"]
    assert replicas["num_preemptions"].sum() > 20
    assert replicas["num_crashes"].sum() > 0
    assert (replicas["hit_tokens"].sum() > 1000) == (num_prompts > 0)
    assert {FINISHED, FAILED} <= set(status.tolist())
    assert (SHED in status) == (policy == "scorer")
    assert replicas["num_steps"].sum() < 0.5 * replicas["num_iterations"].sum()


@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_stops_on_the_way_change_nothing(make_cluster, make_random_workload, policy):
    """However a run is cut into windows, requests fare the same.

    Not so for policies that read the mean output length: finishes between two stops are noted
    replica by replica, so a stop changes their order in that moving average.
    """
    workload = make_random_workload(300, rate_rps=20.0, seed=5, mean_output_tokens=200.0)
    cluster = make_cluster(GPU_NAMES[:3], kv_pages=200)
    config = FleetConfig(faults=TROUBLE)
    whole = run_workload(cluster, workload, POLICIES[policy], config=config, seed=2)
    cut = SimulatedFleet(cluster, workload, config)
    cut.reset(seed=2, knobs=POLICIES[policy])
    rng = np.random.default_rng(0)
    while cut.now_s < workload.span_s:
        cut.advance(float(rng.exponential(0.03)))
    cut.drain()
    assert whole.arrays.replicas["num_preemptions"].sum() > 0
    for name in SAME:
        np.testing.assert_array_equal(whole.requests[name], cut.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s"):
        np.testing.assert_allclose(whole.requests[name], cut.requests[name], rtol=0, atol=1e-9)

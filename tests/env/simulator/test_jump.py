"""Taking many iterations at once gives what taking each by itself gives, for every request.

One difference is left out on purpose: blocks that a jump evicts on the way leave the gateway's
view at its end, not at the iteration that evicts them. A policy that reads prefix hits may then
choose otherwise, so such policies are held to equality where nothing is evicted.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.cluster import Preemption
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

COUNTED = (
    *("num_iterations", "prefill_tokens", "num_cached_blocks", "free_pages", "generated_tokens"),
    *("num_swaps", "host_hit_tokens", "num_adapter_loads", "num_adapter_hits", "windowed_tokens"),
)
# Llama 3 8B in BF16: 2 * 32 layers * 8 heads * 128 values * 2 bytes * 16 tokens.
PAGE_BYTES = 2 * 32 * 8 * 128 * 2 * 16


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
    np.testing.assert_allclose(
        one.arrays.replicas["copied_s"], other.arrays.replicas["copied_s"], rtol=1e-9
    )
    for name in COUNTED:
        np.testing.assert_array_equal(
            one.arrays.replicas[name], other.arrays.replicas[name], err_msg=name
        )
    for name in ("free_pages", "num_cached_blocks"):
        np.testing.assert_array_equal(
            one.arrays.hosts[name], other.arrays.hosts[name], err_msg=name
        )


@settings(max_examples=60, derandomize=True, database=None)
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


@settings(max_examples=60, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    gpus=st.lists(st.sampled_from(GPU_NAMES), min_size=1, max_size=2),
    policy=st.sampled_from(["round_robin", "session_hash", "least_requests"]),
    kv_blocks=st.sampled_from([130, 200, 400]),
    host_pages=st.sampled_from([0, 30, 80, 1000]),
    is_swapping=st.booleans(),
    has_tier=st.booleans(),
    max_num_seqs=st.sampled_from([4, 16, 256]),
    max_loras=st.integers(0, 3),
    max_sequences=st.sampled_from([1, 2, 6]),
    window_tokens=st.sampled_from([None, 1, 200, 600]),
    rate_rps=st.floats(2.0, 40.0),
    mean_output_tokens=st.sampled_from([20.0, 150.0, 400.0]),
    is_in_trouble=st.booleans(),
)
def test_jump_equals_single_steps_with_all_of_engine_memory(
    make_cluster,
    make_random_workload,
    sliding_window,
    seed,
    gpus,
    policy,
    kv_blocks,
    host_pages,
    is_swapping,
    has_tier,
    max_num_seqs,
    max_loras,
    max_sequences,
    window_tokens,
    rate_rps,
    mean_output_tokens,
    is_in_trouble,
):
    workload = make_random_workload(
        120,
        rate_rps=rate_rps,
        seed=seed,
        mean_output_tokens=mean_output_tokens,
        num_prompts=3,
        num_adapters=4,
        max_sequences=max_sequences,
    )
    cluster = make_cluster(
        gpus,
        kv_blocks=kv_blocks,
        max_num_seqs=max_num_seqs,
        max_loras=max_loras,
        host_kv_bytes=host_pages * PAGE_BYTES,
        preemption=Preemption.SWAP if is_swapping and host_pages else Preemption.RECOMPUTE,
        has_host_prefix_cache=has_tier and host_pages > 0,
    )
    faults = TROUBLE if is_in_trouble else FaultConfig()
    with sliding_window(window_tokens) if window_tokens else nullcontext():
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


def test_jump_covers_engine_memory(make_cluster, make_random_workload, sliding_window):
    """Runs of the kind above swap, load, wait for adapters, fork, fill windows, and jump."""
    workload = make_random_workload(
        300,
        rate_rps=25.0,
        seed=3,
        mean_output_tokens=300.0,
        num_prompts=12,
        num_adapters=4,
        max_sequences=4,
    )
    cluster = make_cluster(
        GPU_NAMES[:2],
        kv_blocks=250,
        max_num_seqs=32,
        max_loras=2,
        host_kv_bytes=400 * PAGE_BYTES,
        preemption=Preemption.SWAP,
        has_host_prefix_cache=True,
    )
    with sliding_window(500):
        runs = [
            run_workload(
                cluster,
                workload,
                POLICIES["round_robin"],
                config=FleetConfig(faults=TROUBLE, is_single_step=is_single_step),
                seed=1,
            )
            for is_single_step in (False, True)
        ]
    assert_same_run(*runs)
    replicas = runs[0].arrays.replicas
    assert replicas["num_swaps"].sum() > 20
    assert replicas["num_preemptions"].sum() > replicas["num_swaps"].sum()
    assert replicas["host_hit_tokens"].sum() > 1000
    assert replicas["num_adapter_loads"].sum() > 20
    assert replicas["num_crashes"].sum() > 0
    assert replicas["num_steps"].sum() < 0.5 * replicas["num_iterations"].sum()


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

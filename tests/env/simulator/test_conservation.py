"""Nothing is lost or made up: requests, KV pages, tokens, time and energy, at many moments."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from trimtab.env.cluster import Preemption
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import (
    DECODING,
    FAILED,
    FINISHED,
    PENDING,
    PREFILLING,
    SHED,
    WAITING,
)
from trimtab.env.simulator.setup import FleetConfig

GPU_NAMES = ("H100-80G", "A100-80G", "L40S-48G")
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=400.0, crashes_per_hour=120.0, restart_span_s=(0.5, 4.0)
)
SCORER = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)
ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)


def run_in_windows(fleet: SimulatedFleet) -> Iterator[None]:
    """Stop often at first, then every second."""
    while fleet.now_s < fleet.workload.span_s or fleet.num_open:
        fleet.advance(0.07 if fleet.now_s < 7.0 else 1.0)
        yield
        assert fleet.now_s < fleet.workload.span_s + 600.0, "requests stay open for ever"


def assert_requests_conserved(fleet: SimulatedFleet) -> None:
    table, status = fleet.arrays.requests, fleet.requests["status"]
    counts = np.bincount(status, minlength=7)
    assert counts[PENDING] == 0
    assert (table["status"][status.size :] == PENDING).all()
    is_due = table["arrival_s"] < fleet.now_s
    assert is_due.sum() == status.size
    replicas = fleet.arrays.replicas
    for name, kind in (
        ("num_waiting", WAITING),
        ("num_prefilling", PREFILLING),
        ("num_decoding", DECODING),
    ):
        held = np.bincount(fleet.requests["replica"][status == kind], minlength=replicas.size)
        np.testing.assert_array_equal(held, replicas[name], err_msg=name)
    assert fleet.num_open == counts[WAITING] + counts[PREFILLING] + counts[DECODING]
    own = fleet.arrays.views["outstanding_requests"]
    np.testing.assert_array_equal(
        own, replicas["num_waiting"] + replicas["num_prefilling"] + replicas["num_decoding"]
    )


def kv_tokens(requests: np.ndarray, replicas: np.ndarray) -> np.ndarray:
    """Tokens in KV of each sequence of running requests, 0 of others, from the request table."""
    iterations = replicas["decode_iteration"][requests["replica"]] - requests["joined_iteration"]
    tokens = requests["query"]["input_tokens"] + requests["generated_tokens"]
    tokens += np.where(requests["status"] == DECODING, iterations - 1, 0)
    return np.where(np.isin(requests["status"], [PREFILLING, DECODING]), tokens, 0)


def own_pages(requests: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Pages of running requests; several sequences share the full pages of the prompt."""
    pages = -(-tokens // 16)
    shared = requests["query"]["input_tokens"] // 16
    return np.where(tokens > 0, pages + requests["extra_sequences"] * (pages - shared), 0)


def assert_pages_conserved(fleet: SimulatedFleet) -> None:
    arrays, requests, replicas = fleet.arrays, fleet.requests, fleet.arrays.replicas
    block_pages = int(arrays.fleet[0]["block_pages"])
    tokens = kv_tokens(requests, replicas)
    num_sequences = 1 + requests["extra_sequences"]
    pinned_pages = np.where(tokens > 0, requests["pinned_blocks"] * block_pages, 0)
    own = own_pages(requests, tokens) - pinned_pages
    assert (own >= 0).all()
    is_placed = requests["replica"] >= 0
    left = requests["prefill_target_tokens"] - requests["prefill_done_tokens"]
    held, references, context, prefill_left = (
        np.bincount(requests["replica"][is_placed], values[is_placed], minlength=replicas.size)
        for values in (
            own,
            np.where(tokens > 0, requests["pinned_blocks"], 0),
            np.where(requests["status"] == DECODING, num_sequences * tokens, 0),
            np.where(requests["status"] == PREFILLING, left, 0),
        )
    )
    cached = replicas["num_cached_blocks"] * block_pages
    np.testing.assert_array_equal(replicas["free_pages"] + held + cached, replicas["total_pages"])
    assert (replicas["free_pages"] >= 0).all()
    np.testing.assert_array_equal(replicas["context_tokens"], context)
    np.testing.assert_array_equal(replicas["prefill_left_tokens"], prefill_left)
    for r, table in enumerate(arrays.cache_table):
        entries = arrays.cache[r][table[table > 0] - 1]
        assert entries.size == replicas["num_cached_blocks"][r]
        assert np.unique(entries["block"]).size == entries.size
        assert entries["references"].sum() == references[r]
        assert (entries["references"] == 0).sum() == replicas["num_evictable_blocks"][r]
        word, bit = r // 64, np.uint64(r % 64)
        holds = (arrays.holders[:, word] >> bit) & np.uint64(1)
        np.testing.assert_array_equal(np.flatnonzero(holds), np.sort(entries["block"]))


def sum_by_replica(fleet: SimulatedFleet, values: np.ndarray) -> np.ndarray:
    is_placed = fleet.requests["replica"] >= 0
    return np.bincount(
        fleet.requests["replica"][is_placed],
        values[is_placed],
        minlength=len(fleet.arrays.replicas),
    )


def assert_host_memory_conserved(fleet: SimulatedFleet) -> None:
    hosts, requests = fleet.arrays.hosts, fleet.requests
    assert (requests["host_pages"][requests["status"] != WAITING] == 0).all()
    cached = hosts["num_cached_blocks"] * int(fleet.arrays.fleet[0]["block_pages"])
    held = sum_by_replica(fleet, requests["host_pages"])
    np.testing.assert_array_equal(hosts["free_pages"] + cached + held, hosts["total_pages"])
    assert (hosts["free_pages"] >= 0).all()
    for r, table in enumerate(fleet.arrays.host_table):
        blocks = fleet.arrays.host_cache[r][table[table > 0] - 1]["block"]
        assert np.unique(blocks).size == blocks.size == hosts["num_cached_blocks"][r]
        assert hosts["num_evictable_blocks"][r] == blocks.size


def assert_batches_conserved(fleet: SimulatedFleet) -> None:
    """Sequences, adapter slots and windowed context are those of the running requests."""
    requests, replicas = fleet.requests, fleet.arrays.replicas
    num_sequences = 1 + requests["extra_sequences"]
    for name, status in (("num_sequences", DECODING), ("num_prefill_sequences", PREFILLING)):
        held = sum_by_replica(fleet, np.where(requests["status"] == status, num_sequences, 0))
        np.testing.assert_array_equal(replicas[name], held, err_msg=name)
    is_running = np.isin(requests["status"], [PREFILLING, DECODING])
    running = replicas["num_sequences"] + replicas["num_prefill_sequences"]
    assert (running <= replicas["max_num_seqs"]).all()
    for r, slots in enumerate(fleet.arrays.adapters):
        if replicas["max_adapters"][r] > 0:
            used = requests["adapter"][is_running & (requests["replica"] == r)]
            found = {int(s["adapter"]): int(s["num_running"]) for s in slots if s["num_running"]}
            assert found == {int(a): int((used == a).sum()) for a in set(used[used > 0])}
    window_tokens = fleet.arrays.actual["window_tokens"].astype(np.int64)[requests["replica"]]
    is_windowed = (requests["status"] == DECODING) & (window_tokens > 0)
    tokens = np.where(is_windowed, kv_tokens(requests, replicas), 0)
    windowed = sum_by_replica(fleet, num_sequences * np.minimum(tokens, window_tokens))
    np.testing.assert_array_equal(replicas["windowed_tokens"], windowed)
    growing = sum_by_replica(fleet, is_windowed & (tokens < window_tokens))
    np.testing.assert_array_equal(replicas["num_growing"], growing)


def assert_moments_in_order(requests: np.ndarray) -> None:
    has_token = np.isfinite(requests["first_token_s"])
    is_placed = requests["replica"] >= 0
    assert (requests["ready_s"] >= requests["arrival_s"])[is_placed].all()
    assert (requests["first_token_s"] > requests["ready_s"])[has_token].all()
    has_both = has_token & np.isfinite(requests["finish_s"])
    assert (requests["finish_s"] >= requests["first_token_s"])[has_both].all()
    is_finished = requests["status"] == FINISHED
    assert has_both[is_finished].all()
    np.testing.assert_array_equal(
        requests["generated_tokens"][is_finished], requests["output_tokens"][is_finished]
    )


@pytest.mark.parametrize("knobs", [SCORER, ROUND_ROBIN], ids=["scorer", "round_robin"])
@pytest.mark.parametrize(("kv_pages", "num_prompts"), [(130, 6), (300, 0), (2000, 30)])
def test_conservation_at_any_moment(
    make_cluster, make_random_workload, knobs, kv_pages, num_prompts
):
    workload = make_random_workload(
        400, rate_rps=40.0, seed=kv_pages, mean_output_tokens=200.0, num_prompts=num_prompts
    )
    cluster = make_cluster(GPU_NAMES, kv_pages=kv_pages, max_num_seqs=64)
    fleet = SimulatedFleet(cluster, workload, FleetConfig(faults=TROUBLE))
    fleet.reset(seed=1, knobs=knobs)
    clock_s, energy_j = np.zeros(3), np.zeros(3)
    for _ in run_in_windows(fleet):
        assert_requests_conserved(fleet)
        assert_pages_conserved(fleet)
        assert_moments_in_order(fleet.requests)
        replicas = fleet.arrays.replicas
        assert (replicas["clock_s"] >= clock_s).all()
        assert (replicas["energy_j"] >= energy_j).all()
        assert (replicas["clock_s"] <= fleet.now_s + 1e-9).all()
        clock_s, energy_j = replicas["clock_s"].copy(), replicas["energy_j"].copy()
    assert np.isin(fleet.requests["status"], [FINISHED, SHED, FAILED]).all()
    assert len(fleet.requests) == len(workload.requests)
    cached = fleet.arrays.replicas["num_cached_blocks"] * fleet.arrays.fleet[0]["block_pages"]
    np.testing.assert_array_equal(
        fleet.arrays.replicas["free_pages"], fleet.arrays.replicas["total_pages"] - cached
    )


@pytest.mark.parametrize(
    ("host_pages", "preemption", "has_tier", "window_tokens", "max_loras"),
    [
        (200, Preemption.SWAP, True, 300, 2),
        (60, Preemption.SWAP, True, None, 1),
        (1000, Preemption.SWAP, False, 64, 3),
        (100, Preemption.RECOMPUTE, True, 5000, 2),
    ],
)
def test_engine_memory_conserved_at_any_moment(
    make_cluster,
    make_random_workload,
    sliding_window,
    host_pages,
    preemption,
    has_tier,
    window_tokens,
    max_loras,
):
    workload = make_random_workload(
        400,
        rate_rps=40.0,
        seed=host_pages,
        mean_output_tokens=200.0,
        num_prompts=12,
        num_adapters=5,
        max_sequences=5,
    )
    cluster = make_cluster(
        GPU_NAMES,
        kv_blocks=200,
        max_num_seqs=32,
        host_kv_bytes=host_pages * 2 * 2**20,
        preemption=preemption,
        has_host_prefix_cache=has_tier,
        max_loras=max_loras,
    )
    fleet = SimulatedFleet(cluster, workload, FleetConfig(faults=TROUBLE))
    with sliding_window(window_tokens) if window_tokens else nullcontext():
        fleet.reset(seed=1, knobs=ROUND_ROBIN)
    for _ in run_in_windows(fleet):
        assert_requests_conserved(fleet)
        assert_pages_conserved(fleet)
        assert_host_memory_conserved(fleet)
        assert_batches_conserved(fleet)
        assert_moments_in_order(fleet.requests)
    replicas = fleet.arrays.replicas
    assert np.isin(fleet.requests["status"], [FINISHED, SHED, FAILED]).all()
    assert (replicas["num_swaps"].sum() > 0) == (preemption is Preemption.SWAP)
    assert (replicas["host_hit_tokens"].sum() > 0) == has_tier
    assert replicas["num_adapter_loads"].sum() > 10
    assert replicas["num_crashes"].sum() > 0


def test_window_outcomes_add_up(make_cluster, make_random_workload):
    workload = make_random_workload(400, rate_rps=60.0, seed=4)
    fleet = SimulatedFleet(
        make_cluster(GPU_NAMES, kv_pages=300), workload, FleetConfig(faults=TROUBLE)
    )
    fleet.reset(seed=0, knobs=SCORER)
    outcomes = []
    while fleet.now_s < workload.span_s or fleet.num_open:
        outcomes.append(fleet.advance(0.5))
    status = fleet.requests["status"]
    assert sum(o.num_arrived for o in outcomes) == status.size
    assert sum(o.num_finished for o in outcomes) == (status == FINISHED).sum()
    assert sum(o.num_shed for o in outcomes) == (status == SHED).sum() > 0
    assert sum(o.num_failed for o in outcomes) == (status == FAILED).sum() > 0
    assert sum(o.arrived_weight for o in outcomes) == workload.requests["weight"].sum()
    credit = fleet.credit_by_window(0.5, len(outcomes))
    assert sum(o.credit for o in outcomes) == pytest.approx(credit.sum())
    energy_j = fleet.arrays.replicas["energy_j"].sum()
    assert sum(o.energy_j for o in outcomes) == pytest.approx(energy_j)


def test_refusals_on_a_window_border_are_counted_once(make_cluster, make_workload):
    workload = make_workload([0.0, 1.0, 1.5, 2.0], [5000] * 4, [10] * 4)
    fleet = SimulatedFleet(make_cluster(kv_pages=130), workload)
    fleet.reset(seed=0, knobs=ROUND_ROBIN)
    assert [fleet.advance(1.0).num_shed for _ in range(4)] == [1, 2, 1, 0]


def test_overload_with_crashes_and_tiny_kv_ends(make_cluster, make_random_workload):
    """20 000 requests, long outputs, room for two or three a replica: no hang, nothing lost."""
    workload = make_random_workload(
        20_000, rate_rps=150.0, seed=9, mean_output_tokens=400.0, max_tokens=2500, num_prompts=40
    )
    cluster = make_cluster(GPU_NAMES * 2, kv_pages=140)
    faults = FaultConfig(crashes_per_hour=200.0, restart_span_s=(1.0, 5.0))
    fleet = SimulatedFleet(cluster, workload, FleetConfig(faults=faults))
    fleet.reset(seed=3, knobs=ROUND_ROBIN)
    while fleet.now_s < workload.span_s + 300.0:
        fleet.advance(20.0)
        assert_requests_conserved(fleet)
        assert_pages_conserved(fleet)
        assert_moments_in_order(fleet.requests)
    while fleet.num_open:
        fleet.drain()
    assert np.isin(fleet.requests["status"], [FINISHED, FAILED, SHED]).all()
    assert fleet.arrays.replicas["num_preemptions"].sum() > 1000
    assert fleet.arrays.replicas["num_crashes"].sum() > 10

"""Prefill here, decode there, and migration: known moments, nothing lost, jumps exact."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.cluster import ClusterSpec, Role
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import (
    DECODING,
    FAILED,
    FINISHED,
    MOVING,
    NONE,
    PREFILLING,
    SHED,
    WAITING,
)
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

FIRST = Knobs.of()
LEAST = Knobs.of(outstanding_requests_weight=1.0)
ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=400.0, crashes_per_hour=90.0, restart_span_s=(0.5, 4.0)
)
NETWORK = 0.87 * 25e9
TOKEN_BYTES = 131_072  # Llama-3-8B: 2 x 32 layers x 8 heads x 128 values x 2 bytes
SPLIT = (Role.PREFILL, Role.DECODE)
WIDE = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
WIDE_GPUS = ("H100-80G", "H100-80G", "A100-80G", "L40S-48G")


def with_roles(cluster: ClusterSpec, roles: Sequence[Role]) -> ClusterSpec:
    replicas = zip(cluster.replicas, roles, strict=True)
    return replace(cluster, replicas=tuple(replace(r, role=role) for r, role in replicas))


def decode_s(coefficients, contexts) -> float:
    return sum(iteration_time_s(coefficients, 0, 0, 1, context) for context in contexts)


@pytest.mark.parametrize("overlap_frac", [0.0, 0.75])
def test_one_request_by_hand(make_cluster, make_workload, overlap_frac):
    cluster = make_cluster(["H100-80G", "A100-80G"], max_batch_tokens=2048)
    cluster = with_roles(cluster, SPLIT)
    prefill, decode = replica_coefficients(cluster)
    config = FleetConfig(kv_overlap_frac=overlap_frac)
    fleet = run_workload(cluster, make_workload([1.0], [1000], [20]), FIRST, config=config)
    (request,) = fleet.requests
    first_s = 1.0 + iteration_time_s(prefill, 1000, 0, 0, 0)
    move_s = 50e-6 + (1.0 - overlap_frac) * 1000 * TOKEN_BYTES / NETWORK
    assert request["first_token_s"] == pytest.approx(first_s, abs=1e-12)
    assert request["kv_ready_s"] == pytest.approx(first_s + move_s, abs=1e-12)
    end_s = first_s + move_s + decode_s(decode, range(1001, 1020))
    assert request["finish_s"] == pytest.approx(end_s, abs=1e-12)
    assert request["replica"] == 1
    assert request["num_moves"] == 1
    np.testing.assert_array_equal(fleet.arrays.replicas["generated_tokens"], [1, 19])
    np.testing.assert_array_equal(fleet.arrays.replicas["prefill_tokens"], [1000, 0])


def test_two_moves_share_the_network(make_cluster, make_workload):
    """Two equal prompts on two prefill replicas of a server: both take twice as long to move."""
    cluster = make_cluster(["H100-80G", "H100-80G", "A100-80G", "A100-80G"], max_batch_tokens=2048)
    cluster = with_roles(cluster, (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE))
    fleet = run_workload(cluster, make_workload([0.0, 0.0], [1600, 1600], [9, 9]), ROUND_ROBIN)
    moved_s = fleet.requests["kv_ready_s"] - fleet.requests["first_token_s"]
    np.testing.assert_allclose(moved_s, 50e-6 + 2 * 1600 * TOKEN_BYTES / NETWORK, rtol=1e-9)
    np.testing.assert_array_equal(fleet.requests["replica"], [2, 3])


def test_pages_are_held_at_both_ends_while_kv_moves(make_cluster, make_workload):
    cluster = with_roles(make_cluster(["H100-80G", "A100-80G"], max_batch_tokens=2048), SPLIT)
    fleet = SimulatedFleet(cluster, make_workload([0.0], [1600], [50]))
    fleet.reset(seed=0)
    first_s = iteration_time_s(replica_coefficients(cluster)[0], 1600, 0, 0, 0)

    def held() -> list[int]:
        replicas = fleet.arrays.replicas
        return list(replicas["total_pages"] - replicas["free_pages"])

    fleet.advance(first_s - 1e-4)
    assert held() == [100, 0]
    fleet.advance(2e-4)
    assert fleet.requests["status"][0] == MOVING
    assert held() == [100, 100]
    fleet.advance(1600 * TOKEN_BYTES / NETWORK)
    assert fleet.requests["status"][0] == DECODING
    assert held() == [0, 100]
    fleet.drain()
    assert held() == [0, 0]


def test_a_full_target_makes_kv_wait_at_its_source(make_cluster, make_workload):
    """Room for one at a time: the second moves when the first has finished."""
    cluster = make_cluster(["H100-80G", "A100-80G"], kv_pages=150, max_batch_tokens=2048)
    large = replace(cluster.replicas[0], kv_memory_frac=0.9, role=Role.PREFILL)
    small = replace(cluster.replicas[1], role=Role.DECODE)
    cluster = replace(cluster, replicas=(large, small))
    fleet = run_workload(cluster, make_workload([0.0, 0.0], [1600, 1600], [200, 9]), FIRST)
    first, second = fleet.requests
    assert second["status"] == FINISHED
    assert second["first_token_s"] < first["first_token_s"] + 0.2
    move_s = 50e-6 + 1600 * TOKEN_BYTES / NETWORK
    assert second["kv_ready_s"] == pytest.approx(first["finish_s"] + move_s, abs=1e-9)


def test_places_in_the_batch_are_kept_for_those_who_come(make_cluster, make_workload):
    cluster = make_cluster(["H100-80G", "A100-80G"], max_batch_tokens=4096)
    prefill = replace(cluster.replicas[0], role=Role.PREFILL)
    decode = replace(cluster.replicas[1], role=Role.DECODE, max_num_seqs=3)
    fleet = SimulatedFleet(
        replace(cluster, replicas=(prefill, decode)),
        make_workload(np.linspace(0.0, 0.1, 30), [300] * 30, [60] * 30),
    )
    fleet.reset(seed=0, knobs=FIRST)
    most = 0
    while fleet.now_s < 0.2 or fleet.num_open:
        fleet.advance(0.02)
        record = fleet.arrays.replicas[1]
        most = max(most, record["num_decoding"] + record["num_coming"])
    assert most == 3
    assert (fleet.requests["status"] == FINISHED).all()


def test_round_robin_takes_turns_in_both_phases(make_cluster, make_workload):
    cluster = with_roles(make_cluster(WIDE_GPUS), WIDE)
    fleet = run_workload(cluster, make_workload(np.arange(8.0), [100] * 8, [5] * 8), ROUND_ROBIN)
    np.testing.assert_array_equal(fleet.requests["replica"], [2, 3] * 4)
    np.testing.assert_array_equal(fleet.arrays.replicas["prefill_tokens"], [400, 400, 0, 0])


def test_a_decode_replica_takes_no_new_request(make_cluster, make_workload):
    cluster = make_cluster(["H100-80G", "A100-80G"])
    cluster = with_roles(cluster, (Role.BOTH, Role.DECODE))
    fleet = run_workload(cluster, make_workload([0.0, 0.1], [50, 50], [5, 5]), ROUND_ROBIN)
    assert (fleet.requests["replica"] == 0).all()
    assert (fleet.requests["num_moves"] == 0).all()


def assert_conserved(fleet: SimulatedFleet) -> None:
    """Every request is somewhere, once; every page is free, cached, or held by one request."""
    arrays, requests, replicas = fleet.arrays, fleet.requests, fleet.arrays.replicas
    status, num_replicas = requests["status"], fleet.arrays.replicas.size
    for name, kind in (
        ("num_waiting", WAITING),
        ("num_prefilling", PREFILLING),
        ("num_decoding", DECODING),
    ):
        count = np.bincount(requests["replica"][status == kind], minlength=num_replicas)
        np.testing.assert_array_equal(count, replicas[name], err_msg=name)
    is_moving = status == MOVING
    assert is_moving.sum() == arrays.fleet[0]["num_moving"]
    is_open = np.isin(status, [WAITING, PREFILLING, DECODING, MOVING])
    assert fleet.num_open == is_open.sum()
    own = np.bincount(requests["replica"][is_open], minlength=num_replicas)
    np.testing.assert_array_equal(own, arrays.views["outstanding_requests"])
    has_source = is_moving & (requests["source"] != NONE)
    leaving = np.bincount(requests["source"][has_source], minlength=num_replicas)
    np.testing.assert_array_equal(leaving, replicas["num_leaving"])

    block_pages = int(arrays.fleet[0]["block_pages"])
    iterations = replicas["decode_iteration"][requests["replica"]] - requests["joined_iteration"]
    tokens = requests["prefill_target_tokens"] + np.where(status == DECODING, iterations, 0)
    own_pages = -(-tokens // 16) - requests["pinned_blocks"] * block_pages
    held = np.zeros(num_replicas, dtype=np.int64)
    is_running = np.isin(status, [PREFILLING, DECODING])
    np.add.at(held, requests["replica"][is_running], own_pages[is_running])
    np.add.at(held, requests["source"][has_source], own_pages[has_source])
    # At the target: what transfers keep there, and what has landed and not joined yet.
    rows = arrays.transfers[: arrays.fleet[0]["num_transfers"]]
    np.add.at(held, rows["target"], rows["pages"])
    has_landed = is_moving & (requests["source"] == NONE)
    np.add.at(held, requests["replica"][has_landed], -(-tokens[has_landed] // 16))
    coming = np.bincount(rows["target"][rows["pages"] > 0], minlength=num_replicas)
    coming += np.bincount(requests["replica"][has_landed], minlength=num_replicas)
    np.testing.assert_array_equal(coming, replicas["num_coming"])
    cached = replicas["num_cached_blocks"] * block_pages
    np.testing.assert_array_equal(replicas["free_pages"] + held + cached, replicas["total_pages"])
    assert (replicas["free_pages"] >= 0).all()
    batch = replicas["num_prefilling"] + replicas["num_decoding"] + replicas["num_coming"]
    assert (batch <= replicas["max_num_seqs"]).all()


def migrate_some(fleet: SimulatedFleet, rng: np.random.Generator, count: int) -> int:
    """Order some migrations, wherever they may; return how many were accepted."""
    accepted = 0
    for _ in range(count):
        decoding = np.flatnonzero(fleet.requests["status"] == DECODING)
        if decoding.size:
            try:
                fleet.migrate(
                    int(rng.choice(decoding)), int(rng.integers(fleet.arrays.replicas.size))
                )
                accepted += 1
            except ValueError:
                pass
    return accepted


@pytest.mark.parametrize("roles", [WIDE, (Role.BOTH,) * 4], ids=["split", "both"])
@pytest.mark.parametrize(("kv_pages", "num_prompts"), [(130, 6), (300, 0), (2000, 30)])
def test_nothing_is_lost_on_the_move(
    make_cluster, make_random_workload, roles, kv_pages, num_prompts
):
    workload = make_random_workload(
        300, rate_rps=30.0, seed=kv_pages, mean_output_tokens=150.0, num_prompts=num_prompts
    )
    cluster = make_cluster(WIDE_GPUS, kv_pages=kv_pages, max_num_seqs=16)
    fleet = SimulatedFleet(with_roles(cluster, roles), workload, FleetConfig(faults=TROUBLE))
    fleet.reset(seed=1, knobs=LEAST)
    rng, accepted = np.random.default_rng(0), 0
    while fleet.now_s < workload.span_s or fleet.num_open:
        fleet.advance(0.031 if fleet.now_s < 12.0 else 0.5)
        assert_conserved(fleet)
        accepted += migrate_some(fleet, rng, 2)
        assert_conserved(fleet)
        assert fleet.now_s < workload.span_s + 300.0, "requests stay open for ever"
    assert accepted > 20
    status = fleet.requests["status"]
    assert np.isin(status, [FINISHED, FAILED, SHED]).all()
    assert (status == FINISHED).sum() > 150
    assert fleet.requests["num_moves"].sum() > 20
    assert fleet.arrays.replicas["num_crashes"].sum() > 0
    is_finished = status == FINISHED
    np.testing.assert_array_equal(
        fleet.requests["generated_tokens"][is_finished],
        fleet.requests["output_tokens"][is_finished],
    )
    moved = fleet.requests[is_finished & (fleet.requests["num_moves"] > 0)]
    assert (moved["kv_ready_s"] > moved["first_token_s"]).all()
    assert (moved["finish_s"] > moved["kv_ready_s"]).all()
    is_up = fleet.arrays.replicas["is_up"] == 1
    cached = fleet.arrays.replicas["num_cached_blocks"] * fleet.arrays.fleet[0]["block_pages"]
    free = fleet.arrays.replicas["free_pages"] + cached
    np.testing.assert_array_equal(free[is_up], fleet.arrays.replicas["total_pages"][is_up])
    assert fleet.arrays.fleet[0]["num_watched"] == (1 if roles == WIDE else 0)


SAME = ("status", "replica", "num_moves", "num_preemptions", "generated_tokens", "hit_tokens")


def run_with_migrations(cluster, workload, knobs, config, seed) -> SimulatedFleet:
    """Run in windows; at their ends, migrations are ordered by what the arrays say."""
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=seed, knobs=knobs)
    rng = np.random.default_rng(seed)
    while fleet.now_s < workload.span_s:
        fleet.advance(0.237)
        migrate_some(fleet, rng, 3)
    fleet.drain()
    return fleet


@settings(max_examples=40, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    roles=st.sampled_from([WIDE, (Role.BOTH,) * 4, (Role.BOTH, Role.PREFILL, *SPLIT)]),
    knobs=st.sampled_from([LEAST, ROUND_ROBIN]),
    kv_pages=st.sampled_from([140, 200, 400, None]),
    max_num_seqs=st.sampled_from([3, 16, 256]),
    rate_rps=st.floats(2.0, 60.0),
    mean_output_tokens=st.sampled_from([20.0, 150.0, 400.0]),
    num_prompts=st.sampled_from([0, 5]),
    is_in_trouble=st.booleans(),
)
def test_jump_equals_single_steps(
    make_cluster,
    make_random_workload,
    seed,
    roles,
    knobs,
    kv_pages,
    max_num_seqs,
    rate_rps,
    mean_output_tokens,
    num_prompts,
    is_in_trouble,
):
    workload = make_random_workload(
        100,
        rate_rps=rate_rps,
        seed=seed,
        mean_output_tokens=mean_output_tokens,
        num_prompts=num_prompts,
    )
    cluster = make_cluster(WIDE_GPUS, kv_pages=kv_pages, max_num_seqs=max_num_seqs)
    faults = TROUBLE if is_in_trouble else FaultConfig()
    jumped, stepped = (
        run_with_migrations(
            with_roles(cluster, roles),
            workload,
            knobs,
            FleetConfig(faults=faults, is_single_step=is_single_step),
            seed,
        )
        for is_single_step in (False, True)
    )
    for name in SAME:
        np.testing.assert_array_equal(jumped.requests[name], stepped.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s", "kv_ready_s"):
        np.testing.assert_allclose(
            jumped.requests[name], stepped.requests[name], rtol=0, atol=1e-9, err_msg=name
        )
    one, other = jumped.arrays.replicas, stepped.arrays.replicas
    for name in ("free_pages", "num_iterations", "prefill_tokens", "num_cached_blocks"):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    np.testing.assert_allclose(one["energy_j"], other["energy_j"], rtol=1e-9)


def test_a_branch_in_the_middle_of_moves_goes_on_alike(make_cluster, make_random_workload):
    workload = make_random_workload(200, rate_rps=40.0, seed=4)
    cluster = with_roles(make_cluster(WIDE_GPUS, kv_pages=300), WIDE)
    fleet = SimulatedFleet(cluster, workload, FleetConfig(faults=TROUBLE))
    fleet.reset(seed=5, knobs=LEAST)
    while not (fleet.requests["status"] == MOVING).any():
        fleet.advance(0.01)
    twin = fleet.branch()
    for one in (fleet, twin):
        one.advance(3.0)
        one.drain()
    for name, array in fleet.arrays._asdict().items():
        assert array.tobytes() == getattr(twin.arrays, name).tobytes(), name


def start_decoding(make_cluster, make_workload, gpus: Sequence[str] = ("H100-80G", "A100-80G")):
    """A fleet whose only request decodes on its first replica."""
    fleet = SimulatedFleet(make_cluster(gpus, max_batch_tokens=2048),
                           make_workload([0.0], [1600], [200]))  # fmt: skip
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(0.3)
    assert fleet.requests["status"][0] == DECODING
    return fleet


def test_a_migration_by_hand(make_cluster, make_workload):
    """It leaves at the end of its iteration, stands still for the copy, and goes on there."""
    fleet = start_decoding(make_cluster, make_workload)
    here, there = replica_coefficients(fleet.cluster)
    first_s = float(fleet.requests["first_token_s"][0])
    steps, left_s = 0, first_s
    while left_s < 0.3:
        steps += 1
        left_s += iteration_time_s(here, 0, 0, 1, 1600 + steps)
    fleet.migrate(0, 1)
    fleet.drain()
    (request,) = fleet.requests
    ready_s = left_s + 50e-6 + (1600 + steps) * TOKEN_BYTES / NETWORK
    assert request["kv_ready_s"] == pytest.approx(ready_s, abs=1e-11)
    end_s = ready_s + decode_s(there, range(1601 + steps, 1800))
    assert request["finish_s"] == pytest.approx(end_s, abs=1e-11)
    assert request["replica"] == 1
    assert request["first_token_s"] == first_s
    np.testing.assert_array_equal(
        fleet.arrays.replicas["generated_tokens"], [1 + steps, 199 - steps]
    )
    np.testing.assert_array_equal(
        fleet.arrays.replicas["free_pages"], fleet.arrays.replicas["total_pages"]
    )


def test_a_request_that_finishes_first_gives_the_room_back(make_cluster, make_workload):
    fleet = SimulatedFleet(
        make_cluster(["H100-80G", "A100-80G"]), make_workload([0.0], [100], [20])
    )
    fleet.reset(seed=0, knobs=FIRST)
    whole = run_workload(fleet.cluster, fleet.workload, FIRST)
    finish_s = float(whole.requests["finish_s"][0])
    fleet.advance(finish_s - 1e-4)
    fleet.migrate(0, 1)
    fleet.drain()
    assert fleet.requests["finish_s"][0] == pytest.approx(finish_s, abs=1e-12)
    assert fleet.requests["num_moves"][0] == 0
    np.testing.assert_array_equal(
        fleet.arrays.replicas["free_pages"], fleet.arrays.replicas["total_pages"]
    )
    np.testing.assert_array_equal(fleet.arrays.replicas["num_coming"], 0)


def test_refusals_of_a_migration(make_cluster, make_workload):
    fleet = start_decoding(make_cluster, make_workload)
    with pytest.raises(ValueError, match=r"replica must be in \[0, 1\], got 2"):
        fleet.migrate(0, 2)
    with pytest.raises(ValueError, match=r"request must be in \[0, 0\], got 5"):
        fleet.migrate(5, 1)
    with pytest.raises(ValueError, match="to replica 0: it is there already"):
        fleet.migrate(0, 0)
    fleet.migrate(0, 1)
    with pytest.raises(ValueError, match="has been ordered to migrate already"):
        fleet.migrate(0, 1)
    fleet.drain()
    with pytest.raises(ValueError, match="request 0 is not decoding"):
        fleet.migrate(0, 1)


def test_no_migration_without_room(make_cluster, make_workload):
    cluster = make_cluster(["H100-80G", "A100-80G"], kv_pages=101)
    large = replace(cluster.replicas[0], kv_memory_frac=0.9)
    fleet = SimulatedFleet(
        replace(cluster, replicas=(large, cluster.replicas[1])),
        make_workload([0.0], [1600], [200]),
    )
    fleet.reset(seed=0, knobs=FIRST)
    fleet.advance(0.9)
    with pytest.raises(ValueError, match=r"finds no room for 10\d KV pages"):
        fleet.migrate(0, 1)

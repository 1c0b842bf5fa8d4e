"""Requests that stand still, and what holds for all emergency actions at any moments.

Known answers of the other actions are in `test_emergency_orders.py`.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.cluster import ClusterSpec, Preemption, ReplicaSpec, ServerSpec
from trimtab.env.emergency import EMERGENCY_SPECS, Emergency, EmergencyAction
from trimtab.env.knobs import Knobs
from trimtab.env.request_life import read_life
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import (
    DECODING,
    FAILED,
    FINISHED,
    FROZEN,
    MOVING,
    PENDING,
    PREFILLING,
    READY,
    SHED,
    STOPPED,
    WAITING,
)
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload

FIRST = Knobs.of()
LEAST = Knobs.of(outstanding_requests_weight=1.0)
FREEZE = Emergency.FREEZE_KV_GROWTH


def begin(cluster, workload, knobs=FIRST, **config) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload, FleetConfig(**config))
    fleet.reset(seed=0, knobs=knobs)
    return fleet


def freeze(fleet: SimulatedFleet, tokens: float, replica: int = 0) -> int:
    return fleet.act(EmergencyAction(kind=FREEZE, amount=tokens, replica=replica))


def assert_conserved(fleet: SimulatedFleet) -> None:
    """Requests are somewhere, exactly once; pages are free or held, and slots are kept."""
    requests, replicas = fleet.requests, fleet.arrays.replicas
    counts = np.bincount(requests["status"], minlength=FROZEN + 1)
    assert counts[PENDING] == 0
    ended = counts[[FINISHED, SHED, FAILED]].sum()
    assert ended + fleet.num_open == requests.size
    for name, kind in (
        ("num_waiting", WAITING),
        ("num_prefilling", PREFILLING),
        ("num_decoding", DECODING),
        ("num_frozen", FROZEN),
    ):
        held = np.bincount(requests["replica"][requests["status"] == kind], minlength=replicas.size)
        np.testing.assert_array_equal(held, replicas[name], err_msg=name)
    assert (replicas["num_sequences"] + replicas["num_coming"] <= replicas["max_num_seqs"]).all()
    assert (replicas["free_pages"] >= 0).all()
    phases = fleet.arrays.page_phases.sum(axis=1)
    np.testing.assert_array_equal(phases, replicas["num_sequences"])
    if not replicas["num_cached_blocks"].any() and not counts[MOVING]:
        _assert_pages(fleet)


def _assert_pages(fleet: SimulatedFleet) -> None:
    requests, replicas = fleet.requests, fleet.arrays.replicas
    at = np.maximum(requests["replica"], 0)
    taken = replicas["decode_iteration"][at] - requests["joined_iteration"]
    prompt = requests["query"]["input_tokens"]
    tokens = np.select(
        [requests["status"] == s for s in (PREFILLING, DECODING, FROZEN)],
        [
            prompt + requests["generated_tokens"],
            requests["prefill_target_tokens"] + taken,
            requests["prefill_target_tokens"],
        ],
        0,
    )
    pages = -(-tokens // 16)
    own = np.where(tokens > 0, pages + requests["extra_sequences"] * (pages - prompt // 16), 0)
    held = np.bincount(at, own, minlength=replicas.size)
    coming = fleet.arrays.transfers[: fleet.arrays.fleet[0]["num_transfers"]]
    if not coming.size:
        np.testing.assert_array_equal(replicas["free_pages"] + held, replicas["total_pages"])


# Standing still: known answers.


def test_a_long_batch_request_stands_still_and_goes_on_where_it_was(make_cluster, make_workload):
    workload = make_workload([0.0, 0.001, 0.002], [1000, 1000, 100], [400] * 3, priority=[0, 1, 1])
    fleet, free = (begin(make_cluster(), workload, watched_request=1) for _ in range(2))
    for one in (fleet, free):
        one.run_until(1.0)
    assert freeze(fleet, 900) == 1
    assert set(fleet.requests["status"]) == {DECODING}
    fleet.run_until(1.1)
    assert list(fleet.requests["status"]) == [DECODING, FROZEN, DECODING]
    made, pages = fleet.requests["generated_tokens"][1], fleet.arrays.replicas["free_pages"][0]
    assert_conserved(fleet)
    assert fleet.num_open == 3
    fleet.run_until(2.0)
    assert fleet.requests["generated_tokens"][1] == made
    assert fleet.arrays.replicas["free_pages"][0] < pages
    fleet.undo(FREEZE, 0)
    fleet.run_until(2.1)
    assert set(fleet.requests["status"]) == {DECODING}
    assert_conserved(fleet)
    for one in (fleet, free):
        one.drain()
    assert list(fleet.requests["generated_tokens"]) == [400] * 3
    late_s = fleet.requests["finish_s"] - free.requests["finish_s"]
    # It lost the second that it stood still, but for what a smaller batch saved.
    assert late_s[1] == pytest.approx(1.0, abs=0.03)
    assert (late_s[[0, 2]] < 0.0).all()
    moments = [note.moment for note in read_life(fleet).notes]
    assert moments[-3:] == ["frozen", "thawed", "finished"]


def test_a_batch_request_stands_still_when_it_grows_beyond_the_limit(make_cluster, make_workload):
    workload = make_workload([0.0], [100], [200], priority=1)
    fleet = begin(make_cluster(), workload)
    assert freeze(fleet, 150) == 0
    fleet.run_until(20.0)
    # It holds the KV of 151 tokens; that of its last token is written when it decodes on.
    assert list(fleet.requests["status"]) == [FROZEN]
    assert fleet.requests["prefill_target_tokens"][0] == 151
    assert fleet.requests["generated_tokens"][0] == 52
    # A higher limit lets it go on to there.
    freeze(fleet, 180)
    fleet.run_until(40.0)
    assert fleet.requests["prefill_target_tokens"][0] == 181
    assert fleet.arrays.replicas["busy_s"][0] < 3.0
    fleet.undo(FREEZE, 0)
    fleet.drain()
    assert fleet.requests["generated_tokens"][0] == 200


def test_it_takes_effect_at_the_end_of_the_iteration_in_progress(make_cluster, make_workload):
    # One iteration of prefill lasts a good while; the batch request decodes beside it.
    workload = make_workload([0.0, 1.0], [500, 16000], [500, 2], priority=[1, 0])
    fleet = begin(make_cluster(max_batch_tokens=16384), workload)
    fleet.run_until(1.2)
    freeze(fleet, 100)
    fleet.run_until(1.25)
    assert fleet.requests["status"][0] == DECODING
    fleet.run_until(4.0)
    assert fleet.requests["status"][0] == FROZEN
    assert fleet.requests["status"][1] == FINISHED


def test_the_end_of_a_run_lets_all_go_on(make_cluster, make_workload):
    workload = make_workload([0.0, 0.0], [500, 500], [50, 50], priority=1)
    fleet = begin(make_cluster(), workload)
    fleet.run_until(0.2)
    assert freeze(fleet, 0) == 2
    fleet.drain()
    assert set(fleet.requests["status"]) == {FINISHED}
    assert fleet.now_s < 10.0


def test_a_replica_that_drains_lets_them_go_on_first(make_cluster, make_workload):
    workload = make_workload([0.0, 50.0], [500, 500], [50, 50], priority=1)
    fleet = begin(make_cluster(("H100-80G", "H100-80G")), workload)
    fleet.run_until(0.2)
    freeze(fleet, 0)
    fleet.run_until(5.0)
    assert fleet.requests["status"][0] == FROZEN
    fleet.stop(0)
    # One that is on its way out does not freeze.
    assert freeze(fleet, 0) == 0
    fleet.run_until(10.0)
    assert fleet.requests["status"][0] == FINISHED
    assert fleet.arrays.replicas["state"][0] == STOPPED
    assert freeze(fleet, 0) == 0


def test_a_crash_takes_them_and_the_limit_with_it(make_cluster, make_workload):
    workload = make_workload([0.0, 0.01, 300.0], [500, 500, 500], [5000, 5000, 20], priority=1)
    faults = FaultConfig(crashes_per_hour=60.0, restart_span_s=(0.1, 0.2))
    fleet = begin(make_cluster(), workload, faults=faults)
    fleet.run_until(0.3)
    assert freeze(fleet, 0) == 2
    fleet.run_until(299.0)
    assert fleet.arrays.replicas["num_crashes"][0] > 0
    assert fleet.arrays.replicas["state"][0] == READY
    assert list(fleet.requests["status"]) == [FAILED, FAILED]
    assert fleet.arrays.replicas["num_frozen"][0] == 0
    assert fleet.arrays.replicas["free_pages"][0] == fleet.arrays.replicas["total_pages"][0]
    fleet.run_until(400.0)
    assert fleet.requests["status"][2] == FINISHED


def test_who_stands_still_cannot_move(make_cluster, make_workload):
    workload = make_workload([0.0], [500], [5000], priority=1)
    fleet = begin(make_cluster(("H100-80G", "H100-80G")), workload)
    fleet.run_until(0.3)
    freeze(fleet, 0)
    fleet.run_until(0.5)
    with pytest.raises(ValueError, match="request 0 is not decoding"):
        fleet.migrate(0, 1)
    assert fleet.act(EmergencyAction(kind=Emergency.MOVE_KV, amount=4, replica=0)) == 0


@pytest.mark.parametrize("preemption", [Preemption.RECOMPUTE, Preemption.SWAP])
def test_pages_that_nobody_else_can_give_are_taken_from_who_stands_still(
    make_cluster, make_workload, preemption
):
    workload = make_workload(
        [0.0, 0.001, 0.002], [800, 800, 300], [200, 200, 900], priority=[1, 1, 0]
    )
    cluster = make_cluster(
        kv_pages=150, preemption=preemption, host_kv_bytes=10**9, kv_watermark_frac=0.0
    )
    fleet = begin(cluster, workload)
    fleet.run_until(0.3)
    assert freeze(fleet, 0) == 2
    fleet.run_until(30.0)
    # The interactive one has all that it needs; the latest of the others gave its pages.
    assert fleet.requests["status"][2] == FINISHED
    assert list(fleet.requests["num_preemptions"]) == [0, 1, 0]
    assert_conserved(fleet)
    fleet.drain()
    assert set(fleet.requests["status"]) == {FINISHED}
    assert list(fleet.requests["generated_tokens"]) == [200, 200, 900]


def test_what_waits_for_their_pages_waits_until_they_go_on(make_cluster, make_workload):
    workload = make_workload([0.0, 1.0], [1500, 1000], [20, 20], priority=[1, 0])
    fleet = begin(make_cluster(kv_pages=120), workload)
    fleet.run_until(0.15)
    freeze(fleet, 0)
    fleet.run_until(5.0)
    assert list(fleet.requests["status"]) == [FROZEN, WAITING]
    fleet.undo(FREEZE, 0)
    fleet.run_until(10.0)
    assert set(fleet.requests["status"]) == {FINISHED}


def test_an_undo_without_a_freeze_is_nothing(make_cluster, make_random_workload):
    workload = make_random_workload(50, rate_rps=20.0, seed=2)
    ends = []
    for is_undone in (False, True):
        fleet = begin(make_cluster(), workload)
        fleet.run_until(1.0)
        if is_undone:
            fleet.undo(FREEZE, 0)
        fleet.drain()
        ends.append(fleet.requests["finish_s"])
    assert np.array_equal(*ends)


def test_a_cpu_takes_short_requests_in_an_emergency(make_workload):
    servers = (
        ServerSpec(name="gpu", zone="z0", gpu="H100-80G", num_gpus=1),
        ServerSpec(name="cpu", zone="z0", gpu="XEON8480-256G", num_gpus=1),
    )
    replicas = tuple(
        ReplicaSpec(
            name=f"on-{server.name}",
            server=server.name,
            model="llama-3.2-1b",
            gpu_indices=(0,),
            is_spill=server.name == "cpu",
        )
        for server in servers
    )
    cluster = ClusterSpec(name="spill", servers=servers, replicas=replicas)
    workload = make_workload(np.arange(20) * 0.05, [50] * 20, [20] * 20, priority=1)
    fleet = begin(cluster, workload, Knobs.of(round_robin_weight=1.0))
    fleet.run_until(0.5)
    assert set(fleet.requests["replica"]) == {0}
    fleet.act(EmergencyAction(kind=Emergency.SPILL_SHORT, amount=300))
    fleet.drain()
    on_cpu = fleet.requests[fleet.requests["replica"] == 1]
    assert on_cpu.size > 2
    assert set(on_cpu["status"]) == {FINISHED}
    # 1.24 billion weights of 2 bytes at 307 GB/s: 8 ms a token at best.
    tpot_s = (on_cpu["finish_s"] - on_cpu["first_token_s"]) / 19
    assert (tpot_s > 0.008).all()
    assert (tpot_s < 0.05).all()


# All actions, at any moments.

AMOUNTS = {
    Emergency.SPILL_SHORT: [100.0, 600.0],
    FREEZE: [0.0, 200.0, 500.0],
    Emergency.MOVE_KV: [1.0, 5.0],
    Emergency.SHRINK_BEST_EFFORT: [1.0, 40.0],
    Emergency.SHED: [0.5, 3.0],
    Emergency.CAP_BATCH_TOKENS: [0.1, 0.6],
}
STEPS = st.lists(
    st.tuples(
        st.floats(0.01, 2.0),
        st.sampled_from(Emergency),
        st.booleans(),
        st.integers(0, 2),
        st.integers(0, 9),
    ),
    min_size=3,
    max_size=10,
)
TROUBLE = FaultConfig(
    replica_slowdowns_per_hour=400.0, crashes_per_hour=150.0, restart_span_s=(0.5, 3.0)
)


def take_step(fleet: SimulatedFleet, step) -> int:
    span_s, kind, is_on, amount, place = step
    fleet.run_until(fleet.now_s + span_s)
    num_replicas = len(fleet.cluster.replicas)
    replica = place % num_replicas if EMERGENCY_SPECS[kind].is_per_replica else None
    if not is_on:
        fleet.undo(kind, replica)
        return 0
    amounts = AMOUNTS[kind]
    action = EmergencyAction(kind=kind, amount=amounts[amount % len(amounts)], replica=replica)
    return fleet.act(action)


def assert_same(one: SimulatedFleet, other: SimulatedFleet, tolerance_s: float) -> None:
    for name in ("status", "replica", "generated_tokens", "num_preemptions", "shed_reason"):
        np.testing.assert_array_equal(one.requests[name], other.requests[name], err_msg=name)
    for name in ("first_token_s", "finish_s", "worth_frac"):
        np.testing.assert_allclose(
            one.requests[name], other.requests[name], rtol=0, atol=tolerance_s, err_msg=name
        )
    for name in ("free_pages", "num_iterations", "generated_tokens", "windowed_tokens"):
        np.testing.assert_array_equal(
            one.arrays.replicas[name], other.arrays.replicas[name], err_msg=name
        )


@settings(max_examples=40, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**20),
    steps=STEPS,
    kv_blocks=st.sampled_from([130, 250, 1000]),
    max_num_seqs=st.sampled_from([4, 64]),
    max_loras=st.integers(0, 2),
    is_swapping=st.booleans(),
    window_tokens=st.sampled_from([None, 300]),
    is_in_trouble=st.booleans(),
    branch_at=st.integers(0, 9),
)
def test_actions_at_any_moments(
    make_cluster,
    make_random_workload,
    sliding_window,
    seed,
    steps,
    kv_blocks,
    max_num_seqs,
    max_loras,
    is_swapping,
    window_tokens,
    is_in_trouble,
    branch_at,
):
    """All is conserved, jumps are single steps, copies are exact, and a run comes to its end."""
    workload = make_random_workload(
        100, rate_rps=15.0, seed=seed, mean_output_tokens=150.0, num_prompts=0, num_adapters=3,
        max_sequences=3,
    )  # fmt: skip
    cluster = make_cluster(
        ("H100-80G", "H100-80G", "L40S-48G"),
        kv_blocks=kv_blocks,
        max_num_seqs=max_num_seqs,
        max_loras=max_loras,
        host_kv_bytes=10**9,
        preemption=Preemption.SWAP if is_swapping else Preemption.RECOMPUTE,
    )
    faults = TROUBLE if is_in_trouble else FaultConfig()
    with sliding_window(window_tokens) if window_tokens else nullcontext():
        jumped, stepped = (
            begin(cluster, workload, LEAST, faults=faults, is_single_step=is_single_step)
            for is_single_step in (False, True)
        )
    copy = None
    for place, step in enumerate(steps):
        num_touched = take_step(jumped, step)
        assert take_step(stepped, step) == num_touched
        assert_conserved(jumped)
        if copy is not None:
            assert take_step(copy, step) == num_touched
        elif place == branch_at % len(steps):
            copy = jumped.branch()
    assert copy is not None
    for one in (jumped, stepped, copy):
        one.drain()
        assert one.num_open == 0
        assert_conserved(one)
    assert_same(jumped, stepped, 1e-9)
    assert_same(jumped, copy, 0.0)


def busy_steps(num_steps: int) -> list[tuple[float, Emergency, bool, int, int]]:
    rng = np.random.default_rng(8)
    kinds = list(Emergency)
    return [
        (
            float(rng.uniform(0.02, 0.4)),
            kinds[int(rng.integers(len(kinds)))],
            bool(rng.random() < 0.6),
            int(rng.integers(3)),
            int(rng.integers(10)),
        )
        for _ in range(num_steps)
    ]


def busy_run(cluster: ClusterSpec, workload: Workload) -> tuple[SimulatedFleet, set[int]]:
    fleet = begin(cluster, workload, LEAST, faults=TROUBLE)
    seen: set[int] = set()
    for step in busy_steps(100):
        take_step(fleet, step)
        seen |= set(fleet.requests["status"].tolist())
    fleet.drain()
    return fleet, seen


def test_runs_of_the_kind_above_have_all_that_the_property_is_about(
    make_cluster, make_random_workload
):
    workload = make_random_workload(500, rate_rps=25.0, seed=3, mean_output_tokens=150.0)
    cluster = make_cluster(("H100-80G", "H100-80G", "L40S-48G"), kv_blocks=250)
    fleet, seen = busy_run(cluster, workload)
    assert {FROZEN, SHED, FAILED} <= seen
    assert (fleet.requests["worth_frac"] < 1.0).any()
    assert (fleet.requests["num_moves"] > 0).any()
    replicas = fleet.arrays.replicas
    assert replicas["num_preemptions"].sum() > 0
    assert replicas["num_crashes"].sum() > 0
    again, _ = busy_run(cluster, workload)
    assert fleet.requests.tobytes() == again.requests.tobytes()

"""Over varied fleets, the simulator fills what the registry says it fills, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import (
    ClusterSpec,
    InitialState,
    Preemption,
    ReplicaSpec,
    Role,
    ServerSpec,
    Sharing,
)
from trimtab.env.hardware import Precision
from trimtab.env.knobs import Knobs
from trimtab.env.observation import ObservationLayout, observe
from trimtab.env.simulated_fleet import SimulatedFleet, states_of
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.faults.config import Drift, KvFailures, Links, Metrics, Stalls
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.start_up import StartUpConfig
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.edges import EDGE_TYPES, Edge
from trimtab.env.state.feature import Feature, Node
from trimtab.env.state.registry import FEATURES, FEATURES_BY_NODE
from trimtab.env.vector_env import observe_fleets

LEAST = Knobs.of(outstanding_requests_weight=1.0)
SHEDDING = Knobs.of(
    outstanding_requests_weight=1.0, shed_enabled=1.0, shed_interactive=0.3, shed_batch=0.3
)
LLAMA, MIXTRAL = "llama-3-8b", "mixtral-8x7b"
TROUBLE = FaultConfig(
    crashes_per_hour=200.0,
    restart_span_s=(2.0, 4.0),
    replica_slowdowns_per_hour=200.0,
    slowdown_factor=(1.3, 1.5),
    drift=Drift(sigma_log=0.1),
    links=Links(degradations_per_hour=2000.0),
    stalls=Stalls(per_hour=100.0),
    kv_failures=KvFailures(per_hour=100.0),
    metrics=Metrics(outages_per_hour=100.0, queue_lies_per_hour=100.0),
)


def make_server(name: str, gpu: str, num_gpus: int, zone: str = "z0", **more) -> ServerSpec:
    return ServerSpec(name=name, zone=zone, gpu=gpu, num_gpus=num_gpus, **more)


def make_replica(name: str, server: str, gpus: tuple[int, ...], **more) -> ReplicaSpec:
    return ReplicaSpec(
        name=name, server=server, gpu_indices=gpus, page_tokens=16, **({"model": LLAMA} | more)
    )


def mixed_fleet(make_random_workload) -> SimulatedFleet:
    """Mixed GPUs in two zones, small caches with a host tier and swapping, power caps, trouble."""
    tier = {
        "kv_blocks": 260,
        "host_kv_bytes": 4e9,
        "has_host_prefix_cache": True,
        "preemption": Preemption.SWAP,
    }
    cluster = ClusterSpec(
        name="mixed",
        servers=(
            make_server("h", "H100-80G", 3),
            make_server("a", "A100-80G", 2, "z1", network_bytes_per_s=12.5e9),
            make_server("l", "L40S-48G", 1),
        ),
        replicas=(
            make_replica("r0", "h", (0,), precision=Precision.FP8, power_cap_w=300.0),
            make_replica("r1", "h", (1,), precision=Precision.FP16, **tier),
            make_replica("r2", "a", (0,), precision=Precision.INT8),
            make_replica("r3", "a", (1,), power_cap_w=200.0, **tier),
            make_replica("r4", "l", (0,), **tier),
        ),
    )
    workload = make_random_workload(1500, rate_rps=40.0, seed=1, num_prompts=30)
    config = FleetConfig(faults=TROUBLE, num_gateways=2)
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=1, knobs=SHEDDING)
    return fleet


def parallel_fleet(make_random_workload) -> SimulatedFleet:
    """Experts over two GPUs, pipeline stages, a group without NVLink, idle GPUs, replicas off."""
    cluster = ClusterSpec(
        name="parallel",
        servers=(
            make_server("h", "H100-80G", 8, gpus_per_pcie_root=2),
            make_server("l", "L40S-48G", 4, "z1"),
        ),
        replicas=(
            make_replica("r0", "h", (0, 1), model=MIXTRAL, expert_parallel=2),
            make_replica("r1", "h", (2, 3), model=MIXTRAL, pipeline_parallel=2),
            make_replica("r2", "h", (4, 5), model=MIXTRAL, initial_state=InitialState.STOPPED),
            make_replica("r3", "l", (0, 1, 2, 3), model=MIXTRAL, engine_init_s=0.5),
            make_replica("r4", "h", (6,), model=MIXTRAL, precision=Precision.FP8, engine_init_s=1),
        ),
    )
    workload = make_random_workload(
        200, rate_rps=6.0, seed=2, mean_input_tokens=3000.0, max_tokens=12_000
    )
    fleet = SimulatedFleet(cluster, workload, FleetConfig(start_up=StartUpConfig()))
    fleet.reset(seed=2, knobs=LEAST)
    fleet.start(2)
    fleet.sleep(4)
    return fleet


def split_fleet(make_random_workload) -> SimulatedFleet:
    """Prefill here, decode there with little room: KV moves, and waits for it."""
    cluster = ClusterSpec(
        name="split",
        servers=(
            make_server("h", "H100-80G", 3),
            make_server("a", "A100-80G", 1, "z1"),
        ),
        replicas=(
            make_replica("r0", "h", (0,), role=Role.PREFILL),
            make_replica("r1", "h", (1,), role=Role.DECODE, kv_blocks=300),
            make_replica("r2", "a", (0,), role=Role.DECODE, kv_blocks=300),
        ),
        inter_zone_bytes_per_s=1e9,
    )
    workload = make_random_workload(600, rate_rps=25.0, seed=3, num_prompts=0)
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=3, knobs=LEAST)
    return fleet


def shared_fleet(make_random_workload) -> SimulatedFleet:
    """GPUs of several replicas, by fixed parts and by turns."""
    turns = {"gpu_frac": 0.5, "sharing": Sharing.TIME_SLICED}
    cluster = ClusterSpec(
        name="shared",
        servers=(make_server("h", "H100-80G", 2),),
        replicas=(
            make_replica("r0", "h", (0,), gpu_frac=0.5),
            make_replica("r1", "h", (0,), gpu_frac=0.5),
            make_replica("r2", "h", (1,), **turns),
            make_replica("r3", "h", (1,), **turns),
        ),
    )
    workload = make_random_workload(800, rate_rps=30.0, seed=4)
    fleet = SimulatedFleet(cluster, workload)
    fleet.reset(seed=4, knobs=LEAST)
    return fleet


MAKERS = {
    "mixed": mixed_fleet,
    "parallel": parallel_fleet,
    "split": split_fleet,
    "shared": shared_fleet,
}


@pytest.fixture(scope="module")
def histories(make_random_workload: Callable) -> dict[str, list[ClusterState]]:
    """States of each fleet at its start and after each of some windows."""
    histories = {}
    for name, make in MAKERS.items():
        fleet = make(make_random_workload)
        states = [fleet.state()]
        for _ in range(24):
            fleet.advance(1.0)
            states.append(fleet.state())
        histories[name] = states
    return histories


def seen_values(histories: dict[str, list[ClusterState]], feature: Feature) -> np.ndarray:
    """Every known value of a feature in all fleets at all moments."""
    place = FEATURES_BY_NODE[feature.node].index(feature)
    return np.concatenate(
        [
            state.values[feature.node][:, place][state.is_valid[feature.node][:, place]]
            for states in histories.values()
            for state in states
        ]
    )


# Settings of these fleets that are the same everywhere, or could differ only between clusters.
CONSTANT = {"usd_per_kwh", "carbon_g_per_kwh", "rtt_s"}


@pytest.mark.parametrize(
    "feature", [f for f in FEATURES if f.simulator], ids=lambda f: f"{f.node}-{f.name}"
)
def test_feature_is_filled_in_range_and_varies(histories, feature):
    values = seen_values(histories, feature)
    assert values.size > 0, "absent everywhere"
    assert np.isfinite(values).all()
    assert feature.scale.low <= values.min()
    assert values.max() <= feature.scale.high
    if feature.name not in CONSTANT:
        assert values.min() < values.max(), f"always {values[0]}"


@pytest.mark.parametrize(
    "feature", [f for f in FEATURES if not f.simulator], ids=lambda f: f"{f.node}-{f.name}"
)
def test_what_is_not_modelled_is_absent(histories, feature):
    assert seen_values(histories, feature).size == 0


def test_every_edge_kind_is_there_with_known_attributes(histories):
    for name, states in histories.items():
        for state in states:
            assert set(state.edges) == set(Edge)
            for edge, edges in state.edges.items():
                kind = EDGE_TYPES[edge]
                assert edges.values.shape == (edges.source.size, len(kind.features))
                assert np.isfinite(edges.values).all(), (name, edge)
                assert (edges.source >= 0).all()
                assert (edges.source < len(state.values[kind.source])).all()
                assert (edges.target >= 0).all()
                assert (edges.target < len(state.values[kind.target])).all()


def test_edges_of_tenants_add_up_to_what_is_open(histories):
    seen = 0.0
    for states in histories.values():
        for state in states:
            waits_on = state.edges[Edge.WAITS_ON]
            for i, name in enumerate(("waiting_requests", "outstanding_requests")):
                by_tenant = np.bincount(waits_on.source, waits_on.values[:, i])
                np.testing.assert_array_equal(by_tenant, state.feature(Node.TENANT, name))
            (outstanding,) = state.feature(Node.FLEET, "outstanding_requests")
            assert waits_on.values[:, 1].sum() == outstanding
            seen += outstanding
    assert seen > 0


def test_many_fleets_at_once_are_observed_as_one(make_random_workload):
    """Also where GPUs are shared or idle, and while replicas are off or down."""
    layout = ObservationLayout()
    for name, make in MAKERS.items():
        fleet = make(make_random_workload)
        action = np.zeros(layout.action_size, np.float32)
        for _ in range(8):
            fleet.advance(1.0)
            one = observe(fleet.state(), action, layout)
            many = observe_fleets([fleet, fleet], np.stack([action, action]), layout)
            for key, value in one.items():
                np.testing.assert_array_equal(many[key][1], value, err_msg=f"{name} {key}")
        num_pairs = states_of([fleet]).gpu_replica.size
        assert int(one["gpu_mask"].sum()) == num_pairs
        assert one["gpu_replica"].min() >= 0


def test_off_replica_shows_no_page_and_no_queue(histories):
    """Number 2 of the fleet is stopped at first; what its engine would say is not known."""
    (state, *_) = histories["parallel"]
    assert state.feature(Node.REPLICA, "is_starting")[2] == 1.0
    page = (
        *("running_requests", "waiting_requests", "kv_usage_frac", "active_kv_pages"),
        *("batch_frac", "output_tokens_per_s", "cache_hit_frac", "kv_fragmentation_frac"),
        *("kv_contiguity_frac", "pages_per_sequence", "page_table_entries", "moving_requests"),
    )
    for name in page:
        assert np.isnan(state.feature(Node.REPLICA, name)[2]), name
    assert state.feature(Node.REPLICA, "kv_pages")[2] > 0
    assert np.isnan(state.feature(Node.GPU, "hbm_used_frac")[4:6]).all()


def test_hidden_trouble_does_not_show_in_the_state_of_its_moment(make_random_workload):
    """Two fleets alike but for what is hidden: slow factors, lost pages, a network's bandwidth."""
    fleet = shared_fleet(make_random_workload)
    fleet.advance(4.0)
    troubled = fleet.branch()
    replicas, links = troubled.arrays.replicas, troubled.arrays.links
    replicas["slow_factor"] *= 2.0
    replicas["outer_factor"] *= 2.0
    replicas["lost_pages"] = 50
    links["factor"][:3] = 0.5
    calm, other = fleet.state(), troubled.state()
    for node in Node:
        np.testing.assert_array_equal(calm.values[node], other.values[node], err_msg=node)


def test_state_is_the_same_in_a_copy_and_after_a_return(make_random_workload):
    fleet = mixed_fleet(make_random_workload)
    for _ in range(3):
        fleet.advance(1.0)
    snapshot, copy = fleet.snapshot(), fleet.branch()
    before = fleet.state()
    fleet.advance(2.0)
    fleet.restore(snapshot)
    for state in (copy.state(), fleet.state()):
        for node in Node:
            np.testing.assert_array_equal(before.values[node], state.values[node], err_msg=node)
            np.testing.assert_array_equal(before.age_s[node], state.age_s[node])
    after = replace(fleet.advance(1.0)), replace(copy.advance(1.0))
    assert after[0] == after[1]
    np.testing.assert_array_equal(fleet.state().values[Node.GPU], copy.state().values[Node.GPU])

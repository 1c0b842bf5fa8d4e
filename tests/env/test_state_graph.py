"""The state graph of a cluster by hand: nodes in order, links with their ends, edges."""

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec, Sharing
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.state.edges import Edge, Edges
from trimtab.env.state.feature import Node
from trimtab.env.state.graph import edges_of, graph_of


def make_replica(name: str, server: str, gpus: tuple[int, ...], **more) -> ReplicaSpec:
    return ReplicaSpec(
        name=name, server=server, model="llama-3-8b", gpu_indices=gpus, page_tokens=16, **more
    )


@pytest.fixture(scope="module")
def cluster() -> ClusterSpec:
    """An NVLink server of four GPUs on two PCIe roots, one without NVLink, an idle third."""
    turns = {"gpu_frac": 0.5, "sharing": Sharing.TIME_SLICED}
    return ClusterSpec(
        name="graph",
        servers=(
            ServerSpec(name="h", zone="east", gpu="H100-80G", num_gpus=4, gpus_per_pcie_root=2),
            ServerSpec(name="l", zone="west", gpu="L40S-48G", num_gpus=2),
            ServerSpec(name="a", zone="north", gpu="A100-80G", num_gpus=1),
        ),
        replicas=(
            make_replica("r0", "h", (2, 3)),
            make_replica("r1", "l", (1,), **turns),
            make_replica("r2", "l", (1,), **turns),
            make_replica("r3", "h", (0,)),
        ),
        inter_zone_bytes_per_s=5e10,
        inter_zone_latency_s=2e-3,
    )


def pairs(edges: Edges) -> list[tuple[int, int]]:
    return list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))


def test_gpus_that_serve_come_first_each_once(cluster):
    graph = graph_of(cluster)
    assert graph.gpu_names == (
        *("h/gpu-2", "h/gpu-3", "l/gpu-1", "h/gpu-0"),
        *("h/gpu-1", "l/gpu-0", "a/gpu-0"),
    )
    assert graph.gpu_server.tolist() == [0, 0, 1, 0, 0, 1, 2]
    assert graph.gpu_replica.tolist() == [0, 0, 1, 3, -1, -1, -1]
    assert graph.num_hosting == 4
    assert graph.zones == ("east", "west", "north")
    assert graph.server_zone.tolist() == [0, 1, 2]


def test_links_are_fabrics_roots_adapters_and_paths_between_zones(cluster):
    graph = graph_of(cluster)
    assert [(link.name, link.kind) for link in graph.links] == [
        ("h/nvlink", "nvlink"),
        ("h/gpu-0/pcie", "pcie"),
        ("h/gpu-2/pcie", "pcie"),
        ("h/network", "network"),
        ("l/gpu-0/pcie", "pcie"),
        ("l/gpu-1/pcie", "pcie"),
        ("l/network", "network"),
        ("a/nvlink", "nvlink"),
        ("a/gpu-0/pcie", "pcie"),
        ("a/network", "network"),
        ("east<>west", "backbone"),
        ("east<>north", "backbone"),
        ("west<>north", "backbone"),
    ]
    assert [len(link.outward) for link in graph.links[:4]] == [4, 1, 1, 1]
    parts = [index for link in graph.links for index in (*link.outward, *link.inward)]
    assert len(set(parts)) == len(parts)


def test_edges_by_hand(cluster):
    edges = edges_of(cluster)
    assert pairs(edges[Edge.HOSTS]) == [(0, 0), (1, 0), (2, 1), (2, 2), (3, 3)]
    np.testing.assert_allclose(
        edges[Edge.HOSTS].values, [[1, 0.5], [1, 0.5], [0.5, 1], [0.5, 1], [1, 1]]
    )
    assert pairs(edges[Edge.ON_SERVER]) == [(0, 0), (1, 1), (2, 1), (3, 0)]
    assert pairs(edges[Edge.IN_SERVER]) == list(enumerate([0, 0, 1, 0, 0, 1, 2]))
    assert pairs(edges[Edge.IN_ZONE]) == [(0, 0), (1, 1), (2, 2)]
    assert pairs(edges[Edge.NVLINK]) == [(0, 0), (1, 0), (3, 0), (4, 0), (6, 7)]
    assert pairs(edges[Edge.PCIE]) == [(0, 2), (1, 2), (2, 5), (3, 1), (4, 1), (5, 4), (6, 8)]
    assert pairs(edges[Edge.RDMA]) == [(0, 3), (1, 6), (2, 9)]
    assert pairs(edges[Edge.BACKBONE]) == [(0, 10), (1, 10), (0, 11), (2, 11), (1, 12), (2, 12)]
    np.testing.assert_array_equal(edges[Edge.BACKBONE].values, [[5e10, 2e-3]] * 6)
    np.testing.assert_array_equal(edges[Edge.NVLINK].values[0], [450e9, 1])
    assert pairs(edges[Edge.WAITS_ON]) == [(k, r) for k in (0, 1) for r in range(4)]
    assert np.isnan(edges[Edge.WAITS_ON].values).all()
    assert edges_of(cluster) is edges


def test_idle_gpu_does_nothing_and_shared_one_what_both_do(cluster, make_random_workload):
    fleet = SimulatedFleet(cluster, make_random_workload(300, rate_rps=20.0, seed=0))
    fleet.reset(seed=0, knobs=Knobs.of(outstanding_requests_weight=1.0))
    fleet.advance(4.0)
    state = fleet.state()
    assert state.gpu_replica.tolist() == graph_of(cluster).gpu_replica.tolist()
    activity = state.feature(Node.GPU, "sm_activity_frac")
    busy = fleet.arrays.replicas["busy_s"] / 4.0
    assert activity[2] == pytest.approx(min(1.0, busy[1] + busy[2]))
    assert activity[[0, 3]] == pytest.approx(busy[[0, 3]])
    assert activity[4:].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(state.feature(Node.GPU, "power_frac")[4:]).all()
    assert state.feature(Node.GPU, "hbm_used_frac")[4:].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(state.feature(Node.SERVER, "available_frac")[2])
    assert np.isnan(state.feature(Node.ZONE, "power_frac")[2])
    servers = state.feature(Node.SERVER, "sm_activity_frac")
    np.testing.assert_allclose(servers, [activity[[0, 1, 3, 4]].mean(), activity[2] / 2, 0.0])

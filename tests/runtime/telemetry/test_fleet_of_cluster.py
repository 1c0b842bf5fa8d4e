"""A cluster's hub shows the graph that its simulation shows, and the encoder reads it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.env.cluster import ClusterSpec, ServerSpec
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.edges import EDGE_TYPES, Edge
from trimtab.env.state.feature import Node
from trimtab.env.state.graph import graph_of
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.runtime.telemetry.aggregator import Aggregator
from trimtab.runtime.telemetry.derivation import Derivation
from trimtab.runtime.telemetry.features.rack_constants import rack_constants
from trimtab.runtime.telemetry.features.server_facts import facts_of_cluster
from trimtab.runtime.telemetry.fleet_layout import (
    FleetLayout,
    fleet_of_cluster,
    fleet_of_racks,
)
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.rack_layout import RACK_NODES
from trimtab.runtime.telemetry.simulated.faults import NO_FAULTS
from trimtab.runtime.telemetry.simulated.layout import SimulatedLayout
from trimtab.runtime.telemetry.simulated_probes import FleetShape, SimulatedProbes

LAYOUT = SimulatedLayout(
    num_servers=4, num_gpus=4, num_replicas=2, servers_per_rack=3, model="llama-3-8b"
)
RACKS = {
    LAYOUT.rack_name(rack): [LAYOUT.server_name(s) for s in LAYOUT.servers_of(rack)]
    for rack in range(LAYOUT.num_racks)
}


@pytest.fixture(scope="module")
def cluster() -> ClusterSpec:
    """The probes' machines in an order of its own, in two zones."""
    replicas = [replica for s in (2, 0, 3, 1) for replica in LAYOUT.facts(s).replicas]
    return ClusterSpec(
        name="mixed",
        servers=tuple(
            ServerSpec(
                name=LAYOUT.server_name(s),
                zone="east" if s % 2 else "west",
                gpu=LAYOUT.gpu,
                num_gpus=LAYOUT.num_gpus,
                network_bytes_per_s=LAYOUT.network_bytes_per_s,
            )
            for s in (3, 1, 0, 2)
        ),
        replicas=tuple(replicas),
    )


def run_path(
    cluster: ClusterSpec, racks: Sequence[FleetLayout], num_ticks: int = 25
) -> list[ClusterState]:
    """Let probes, aggregators and a hub for each layout run at 10 Hz; return the hubs' states."""
    probes = SimulatedProbes(LAYOUT, FleetShape(faults=NO_FAULTS), seed=7)
    aggregators = {
        name: Aggregator(
            layout, Derivation(rack_constants(facts_of_cluster(cluster, servers))), epoch=1
        )
        for layout, (name, servers) in zip(racks[0].racks, RACKS.items(), strict=True)
    }
    hubs = [Hub(layout) for layout in racks]
    for t in range(1, num_ticks + 1):
        now_s = 0.1 * t
        for arrives_at_s, _, _, rack, body in probes.advance(now_s):
            aggregators[rack].ingest(body, arrives_at_s)
        for aggregator in aggregators.values():
            for probe, ping in aggregator.pings(now_s):
                probes.answer(probe, ping, now_s)
            for body in aggregator.tick(now_s):
                for hub in hubs:
                    hub.ingest(body, now_s)
    assert all(hub.counts.total == 0 for hub in hubs)
    return [hub.state(0.1 * num_ticks) for hub in hubs]


def test_nodes_and_edges_are_those_of_the_simulation(cluster, make_random_workload):
    fleet = SimulatedFleet(cluster, make_random_workload(5, rate_rps=20.0, seed=0))
    fleet.reset(seed=0, knobs=Knobs.of(outstanding_requests_weight=1.0))
    simulated = fleet.state()
    state = Hub(fleet_of_cluster(cluster, RACKS)).state(0.0)
    for node in Node:
        assert state.values[node].shape == simulated.values[node].shape, node
    assert state.gpu_replica.tolist() == simulated.gpu_replica.tolist()
    assert state.gpu_server.tolist() == simulated.gpu_server.tolist()
    assert set(state.edges) == set(simulated.edges) == set(EDGE_TYPES)
    for edge, edges in simulated.edges.items():
        assert state.edges[edge].source.tolist() == edges.source.tolist(), edge
        assert state.edges[edge].target.tolist() == edges.target.tolist(), edge
        if edge is not Edge.WAITS_ON:  # what tenants wait for is no matter of the topology
            np.testing.assert_array_equal(state.edges[edge].values, edges.values)


def test_frames_of_probes_become_vectors(cluster):
    by_cluster = fleet_of_cluster(cluster, RACKS)
    state, by_rack = run_path(cluster, [by_cluster, fleet_of_racks(by_cluster.racks)])
    for node in RACK_NODES:
        rows = np.concatenate([rows[node] for rows in by_cluster.rows])
        rows = rows[rows >= 0]  # those of the fleet, in the order of the racks
        assert state.is_valid[node][rows].any(axis=1).all()
        np.testing.assert_array_equal(state.is_valid[node][rows], by_rack.is_valid[node])
        np.testing.assert_array_equal(state.values[node][rows], by_rack.values[node])
    # the path between the zones is in no rack
    assert [link.kind for link in graph_of(cluster).links][-1] == "backbone"
    assert not state.is_valid[Node.LINK][-1].any()
    torch.manual_seed(0)
    encoder = DenseEncoder(AttentionEncoder(hidden_size=8))
    builder = GraphBuilder()
    with torch.no_grad():
        known, unknown = (
            encoder(builder.build(seen)) for seen in (state, Hub(by_cluster).state(0.0))
        )
    for node, number in by_cluster.num_rows.items():
        if node is not Node.FLEET:
            assert known.nodes[node].shape == (1, number, 8)
            assert torch.isfinite(known.nodes[node]).all()
    assert torch.isfinite(known.pooled).all()
    assert not torch.allclose(known.pooled, unknown.pooled)


def test_rows_of_a_server_follow_its_own_order(cluster):
    layout = fleet_of_cluster(cluster, RACKS)
    graph = graph_of(cluster)
    (first, second), names = layout.rows, list(RACKS.values())
    assert [cluster.servers[row].name for row in first[Node.SERVER]] == names[0]
    assert [cluster.servers[row].name for row in second[Node.SERVER]] == names[1]
    assert [graph.gpu_names[row] for row in second[Node.GPU]] == LAYOUT.gpu_names(3)
    assert [graph.links[row].name for row in second[Node.LINK]] == [
        "server-0003/nvlink",
        *(f"{name}/pcie" for name in LAYOUT.gpu_names(3)),
        "server-0003/network",
    ]
    assert [cluster.replicas[row].name for row in second[Node.REPLICA]] == LAYOUT.replica_names(3)


def test_without_racks_there_is_one_for_every_32_servers(cluster):
    servers = tuple(replace(cluster.servers[0], name=f"s{i}") for i in range(70))
    layout = fleet_of_cluster(ClusterSpec(name="wide", servers=servers, replicas=()))
    assert [(rack.rack, len(rack.servers)) for rack in layout.racks] == [
        ("rack-000", 32),
        ("rack-001", 32),
        ("rack-002", 6),
    ]
    assert layout.racks[2].servers[0].server == "s64"


def test_racks_that_do_not_fit_the_cluster_are_refused(cluster):
    with pytest.raises(ValueError, match="'mixed' has no server 'server-9999'; known: server-0003"):
        fleet_of_cluster(cluster, {"r": ["server-9999"]})
    with pytest.raises(ValueError, match="two racks claim one row"):
        fleet_of_cluster(cluster, {"a": ["server-0000"], "b": ["server-0000"]})
    with pytest.raises(ValueError, match="racks must be at least 1, got none"):
        fleet_of_cluster(cluster, {})


def test_a_server_in_no_rack_is_never_heard_of(cluster):
    layout = fleet_of_cluster(cluster, {"r": ["server-0000"]})
    assert np.isinf(Hub(layout).state(0.0).age_s[Node.SERVER]).all()
    assert layout.num_rows[Node.SERVER] == 4

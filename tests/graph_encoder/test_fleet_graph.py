"""States become tensors: scaled as in the registry, blind to what is masked, ages, topology."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.state.edges import EDGE_TYPES, Edge
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE, column, scaled, scaled_edges
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import AGE_LIMIT_S, GraphBuilder
from trimtab.graph_encoder.schema import FLEET_SCHEMA, backward_type, forward_type


def columns_of(graph, node: str, *names: str) -> torch.Tensor:
    rows = graph.fleet if node == "fleet" else graph.x[node]
    known = FLEET_SCHEMA.fleet_columns if node == "fleet" else FLEET_SCHEMA.columns[node]
    return rows[:, [known.index(name) for name in names]]


def assert_equal_graphs(found, expected):
    assert torch.equal(found.fleet, expected.fleet)
    for node in expected.x:
        assert torch.equal(found.x[node], expected.x[node]), node
    for edge_type in expected.attributes:
        assert torch.equal(found.attributes[edge_type], expected.attributes[edge_type])


@pytest.mark.parametrize("node", list(Node))
def test_values_are_scaled_as_in_the_registry(make_state, node):
    state = make_state(num_servers=30)
    names = [feature.name for feature in FEATURES_BY_NODE[node]]
    graph = GraphBuilder().build(state)
    is_valid = state.is_valid[node]
    expected = np.where(is_valid, scaled(node, state.values[node]), 0.0)
    found = columns_of(graph, node, *names).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    flags = columns_of(graph, node, *(f"is_known({name})" for name in names)).numpy()
    np.testing.assert_array_equal(flags, is_valid)


@pytest.mark.parametrize("content", [0.0, 1e30, -1e30, np.nan, np.inf])
def test_what_stands_under_a_mask_makes_no_difference(make_state, content):
    state = make_state()
    values = {
        node: np.where(state.is_valid[node], rows, content) for node, rows in state.values.items()
    }
    found = GraphBuilder().build(replace(state, values=values))
    assert_equal_graphs(found, GraphBuilder().build(state))


@pytest.mark.parametrize("content", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_absent_though_it_claims_to_be_valid(make_state, content):
    state = make_state()
    place = (1, column(Node.GPU, "power_frac"))
    values, is_valid = state.values[Node.GPU].copy(), state.is_valid[Node.GPU].copy()
    values[place], is_valid[place] = content, True
    wrong = replace(
        state,
        values={**state.values, Node.GPU: values},
        is_valid={**state.is_valid, Node.GPU: is_valid},
    )
    graph = GraphBuilder().build(wrong)
    found = columns_of(graph, "gpu", "power_frac", "is_known(power_frac)")
    assert found[1].tolist() == [0.0, 0.0]
    assert all(torch.isfinite(rows).all() for rows in graph.x.values())


def test_values_out_of_range_are_clipped(make_state):
    state = make_state()
    values = {node: np.full_like(rows, 1e30) for node, rows in state.values.items()}
    is_valid = {node: np.ones_like(mask) for node, mask in state.is_valid.items()}
    graph = GraphBuilder().build(replace(state, values=values, is_valid=is_valid))
    high = FEATURES_BY_NODE[Node.GPU][0].scale.high
    name = FEATURES_BY_NODE[Node.GPU][0].name
    expected = scaled(Node.GPU, np.full((1, 65), high))[0, 0]
    assert columns_of(graph, "gpu", name)[0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [
        (0.0, [0.0, 1.0]),
        (-0.01, [0.0, 1.0]),  # a clock that is a little ahead
        (0.1, [np.log(2) / np.log(601), 1.0]),
        (AGE_LIMIT_S, [1.0, 1.0]),
        (AGE_LIMIT_S * 1.001, [0.0, 0.0]),
        (np.inf, [0.0, 0.0]),
        (np.nan, [0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("node", ["gpu", "tenant", "fleet"])
def test_age_is_logarithmic_and_unknown_beyond_the_limit(make_state, node, age_s, expected):
    state = make_state()
    ages = {one: np.full_like(age, age_s) for one, age in state.age_s.items()}
    graph = GraphBuilder().build(replace(state, age_s=ages))
    found = columns_of(graph, node, "log_age", "is_age_known")
    np.testing.assert_allclose(found, [expected] * len(found), atol=1e-6)


def test_unknown_ages_look_all_the_same_to_the_encoder(make_state, make_encoder):
    state, encoder = make_state(), make_encoder()
    outputs = []
    for age_s in (61.0, 1e9, np.inf, 1.0):
        ages = {node: np.full_like(age, age_s) for node, age in state.age_s.items()}
        outputs.append(encoder(GraphBuilder().build(replace(state, age_s=ages))).pooled)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[3], atol=1e-3)


@pytest.mark.parametrize("edge", list(Edge))
def test_edges_are_read_both_ways_with_scaled_attributes(make_state, edge):
    state = make_state()
    graph = GraphBuilder().build(state)
    edges = state.edges[edge]
    forward, backward = forward_type(edge), backward_type(edge)
    pairs = np.stack([edges.source, edges.target])
    np.testing.assert_array_equal(graph.neighbours[forward].edge_index, pairs)
    np.testing.assert_array_equal(graph.neighbours[backward].edge_index, pairs[::-1])
    rows = graph.attributes[forward]
    assert torch.equal(graph.attributes[backward], rows)
    num = len(EDGE_TYPES[edge].features)
    known = np.isfinite(edges.values)
    expected = np.where(known, scaled_edges(edge, np.nan_to_num(edges.values)), 0.0)
    np.testing.assert_allclose(rows[:, :num], expected, atol=1e-5)
    np.testing.assert_array_equal(rows[:, num:], known)


def test_numbers_of_neighbours_are_columns(make_state):
    graph = GraphBuilder().build(make_state())  # 12 GPUs of 3 servers, 3 to a replica
    of_replicas = columns_of(graph, "replica", "number(gpu hosts)", "number(tenant waits_on)")
    np.testing.assert_allclose(np.expm1(4.0 * of_replicas.numpy()), [[3.0, 3.0]] * 4, rtol=1e-5)
    of_servers = columns_of(graph, "server", "number(gpu in_server)")
    np.testing.assert_allclose(np.expm1(4.0 * of_servers.numpy()), [[4.0]] * 3, rtol=1e-5)


def test_topology_is_kept_until_it_changes(make_state):
    builder = GraphBuilder()
    state = make_state()
    first, second = builder.build(state), builder.build(make_state(seed=1))
    hosts = ("gpu", "hosts", "replica")
    assert second.neighbours[hosts] is first.neighbours[hosts]
    # the same arrays, written over: GPU 0 now serves replica 3
    state.edges[Edge.HOSTS].target[0] = 3
    third = builder.build(state)
    assert third.neighbours[hosts].targets[0] == 3
    assert first.neighbours[hosts].targets[0] == 0
    pcie = ("gpu", "pcie", "link")
    assert third.neighbours[pcie] is first.neighbours[pcie]
    assert builder.build(make_state(num_servers=2)).x["server"].shape[0] == 2


def test_state_without_edges_has_a_graph(make_state, make_encoder):
    graph = GraphBuilder().build(replace(make_state(), edges={}))
    assert all(part.num_edges == 0 for part in graph.neighbours.values())
    assert torch.isfinite(make_encoder()(graph).pooled).all()


def test_edge_to_a_node_that_is_not_there_is_refused(make_state):
    state = make_state()
    edges = state.edges[Edge.HOSTS]
    wrong = replace(edges, target=edges.target + 1)
    with pytest.raises(
        ValueError, match=r"target indices of edges must be in \[0, 3\], got 1 to 4"
    ):
        GraphBuilder().build(replace(state, edges={**state.edges, Edge.HOSTS: wrong}))


@pytest.mark.parametrize("limit", [0.0, -1.0, np.inf, np.nan])
def test_age_limit_must_be_positive_and_finite(limit):
    with pytest.raises(ValueError, match=f"age_limit_s must be positive and finite, got {limit}"):
        GraphBuilder(age_limit_s=limit)


def test_state_of_a_simulated_fleet_is_encoded(make_cluster, make_workload, make_encoder):
    cluster = make_cluster(["H100-80G", "H100-80G", "L40S-48G"])
    fleet = SimulatedFleet(cluster, make_workload([0.0, 0.1, 0.2], [500, 700, 900], [20, 30, 40]))
    fleet.reset(seed=0)
    fleet.apply(Knobs.of())
    builder, encoder = GraphBuilder(), make_encoder()
    before = encoder(builder.build(fleet.state()))
    fleet.advance(0.3)
    graph = builder.build(fleet.state())
    after = encoder(graph)
    assert before.nodes["replica"].shape == (1, 3, 32)
    assert graph.neighbours["gpu", "hosts", "replica"].num_edges == 3
    assert torch.isfinite(after.pooled).all()
    assert not torch.allclose(after.pooled, before.pooled, atol=1e-2)
    torch.testing.assert_close(DenseEncoder(encoder)(graph).pooled, after.pooled, atol=1e-5, rtol=0)

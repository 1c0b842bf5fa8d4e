"""The encoder of whole fleets: its backends agree, and neither order nor padding matters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch_geometric.nn import GATv2Conv

from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.edges import EDGE_TYPES
from trimtab.env.state.feature import Node
from trimtab.graph_encoder.attention_encoder import AttentionEncoder, EncodedGraphs
from trimtab.graph_encoder.attention_weights import attention_weights
from trimtab.graph_encoder.backend import Backend
from trimtab.graph_encoder.compiled_attention import KERNELS
from trimtab.graph_encoder.dense_attention import TABLES
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.graph_batch import GraphBatch, batch_graphs
from trimtab.graph_encoder.neighbours import Neighbours
from trimtab.graph_encoder.relation_attention import PYG, RelationAttention

FLEETS = {
    "small": {},
    "replicas over two servers": {"gpus_per_replica": 5},
    "no tenants or zones": {"num_zones": 0, "num_tenants": 0},
    "no replicas": {"gpus_per_replica": 100},
    "no servers": {"num_servers": 0},
    "one node of a kind": {
        "num_servers": 1,
        "gpus_per_server": 1,
        "gpus_per_replica": 1,
        "num_zones": 1,
        "num_tenants": 1,
    },
    "many replicas and zones": {"num_servers": 20, "num_zones": 4, "gpus_per_replica": 1},
}
OTHERS = {backend.name: backend for backend in (TABLES, KERNELS)}
BACKENDS = {backend.name: backend for backend in (PYG, TABLES, KERNELS)}


def assert_same(found: EncodedGraphs, expected: EncodedGraphs) -> None:
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=0)
    for node, vectors in expected.nodes.items():
        torch.testing.assert_close(found.nodes[node], vectors, atol=1e-5, rtol=0)


def permuted(state: ClusterState, node: Node, order: np.ndarray) -> ClusterState:
    """Put node order[i] of a kind at place i."""
    place = np.argsort(order)
    edges = {}
    for edge, old in state.edges.items():
        kind = EDGE_TYPES[edge]
        edges[edge] = replace(
            old,
            source=place[old.source] if kind.source is node else old.source,
            target=place[old.target] if kind.target is node else old.target,
        )
    return replace(
        state,
        values={**state.values, node: state.values[node][order]},
        is_valid={**state.is_valid, node: state.is_valid[node][order]},
        age_s={**state.age_s, node: state.age_s[node][order]},
        edges=edges,
    )


@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("numbers", FLEETS.values(), ids=FLEETS)
def test_backends_give_what_pyg_gives(make_encoder, make_graph, numbers, num_heads):
    encoder, graph = make_encoder(num_heads=num_heads), make_graph(**numbers)
    expected = encoder(graph)
    assert torch.isfinite(expected.pooled).all()
    assert_same(DenseEncoder(encoder)(graph), expected)
    assert_same(DenseEncoder(encoder, TABLES)(graph), expected)


@pytest.mark.parametrize("backend", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("num_heads", [1, 4])
@pytest.mark.parametrize("numbers", [{}, {"gpus_per_replica": 1}, {"gpus_per_replica": 5}])
def test_gradients_are_those_of_pyg(make_encoder, make_graph, numbers, num_heads, backend):
    encoder, graph = make_encoder(num_heads=num_heads), make_graph(**numbers)
    inputs = {**graph.x, **graph.attributes, "fleet": graph.fleet}
    by_backend = {}
    for one in (PYG, backend):
        leaves = {key: rows.clone().requires_grad_() for key, rows in inputs.items()}
        leaf_graph = replace(
            graph,
            x={node: leaves[node] for node in graph.x},
            attributes={edge_type: leaves[edge_type] for edge_type in graph.attributes},
            fleet=leaves["fleet"],
        )
        encoder.zero_grad()
        encoded = encoder.run(leaf_graph, one)
        loss = encoded.pooled.square().sum() + encoded.nodes["replica"].pow(3).sum()
        loss.backward()
        by_backend[one.name] = {
            str(key): leaf.grad for key, leaf in leaves.items() if leaf.grad is not None
        } | {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    expected, found = by_backend[PYG.name], by_backend[backend.name]
    for name, gradient in expected.items():
        # PyG has zeros where a backend saw that there is nothing to weigh
        close = found.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(close, gradient, atol=2e-3, rtol=2e-4, msg=name)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("node", [node for node in Node if node is not Node.FLEET])
def test_order_of_nodes_only_orders_their_vectors(make_encoder, make_state, node, backend):
    encoder, state = make_encoder(), make_state()
    order = np.random.default_rng(1).permutation(len(state.values[node]))
    expected = encoder.run(GraphBuilder().build(state), backend)
    found = encoder.run(GraphBuilder().build(permuted(state, node, order)), backend)
    nodes = {**expected.nodes, node: expected.nodes[node][:, order]}
    assert_same(found, replace(expected, nodes=nodes))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_graphs_of_a_batch_are_padded_and_do_not_see_each_other(make_encoder, make_graph, backend):
    encoder = make_encoder()
    graphs = [make_graph(seed, **FLEETS[name]) for seed, name in enumerate(FLEETS)]
    batch = encoder.run(batch_graphs(graphs), backend)
    for i, graph in enumerate(graphs):
        alone = encoder.run(graph, backend)
        torch.testing.assert_close(batch.pooled[i], alone.pooled[0], atol=1e-5, rtol=0)
        for node, vectors in alone.nodes.items():
            num = vectors.shape[1]
            torch.testing.assert_close(batch.nodes[node][i, :num], vectors[0], atol=1e-5, rtol=0)
            assert not batch.nodes[node][i, num:].any()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_content_of_padding_makes_no_difference(make_encoder, make_graph, backend):
    encoder = make_encoder()
    batch = batch_graphs([make_graph(), make_graph(1, num_servers=1)])
    expected = encoder.run(batch, backend)
    x = {
        node: rows if batch.mask[node] is None else rows.masked_fill(~batch.mask[node][:, None], 7)
        for node, rows in batch.x.items()
    }
    found = encoder.run(replace(batch, x=x), backend)
    assert torch.equal(found.pooled, expected.pooled)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_same_graph_gives_the_same_numbers_to_the_bit(make_encoder, make_graph, backend):
    encoder, graph = make_encoder(), make_graph()
    assert torch.equal(encoder.run(graph, backend).pooled, encoder.run(graph, backend).pooled)


def test_output_has_512_numbers_and_vectors_of_replicas(make_encoder, make_graph):
    encoder = make_encoder()
    encoded = encoder(make_graph())
    assert encoded.pooled.shape == (1, encoder.pooled_size) == (1, 512)
    assert encoded.nodes["replica"].shape == (1, 4, 32)


def test_attention_of_a_target_sums_to_1(make_encoder, make_graph):
    graph = make_graph(gpus_per_replica=5)
    weights = attention_weights(make_encoder(num_heads=2), graph)
    assert {layer for layer, _ in weights} == {0, 1}
    for (_, edge_type), of_edges in weights.items():
        neighbours = graph.neighbours[edge_type]
        sums = torch.zeros(neighbours.num_targets, 2).index_add(0, neighbours.targets, of_edges)
        expected = (neighbours.degrees > 0).float()[:, None].expand(-1, 2)
        torch.testing.assert_close(sums, expected)
        assert (of_edges >= 0).all()


def test_without_attributes_a_relation_is_a_gatv2conv_of_pyg():
    torch.manual_seed(0)
    ours = RelationAttention(8, 2, 0)
    theirs = GATv2Conv((8, 8), 4, heads=2, add_self_loops=False, bias=True)
    with torch.no_grad():
        theirs.lin_l.weight.copy_(ours.send.weight)
        theirs.lin_l.bias.copy_(ours.send.bias)
        theirs.lin_r.bias.zero_()
        theirs.lin_r.weight.copy_(ours.receive.weight)
        theirs.att.copy_(ours.attention.unsqueeze(0))
    source, target = torch.randn(5, 8), torch.randn(4, 8)
    edges = Neighbours(
        torch.tensor([0, 1, 2, 4, 4]), torch.tensor([0, 0, 2, 2, 0]), num_sources=5, num_targets=4
    )
    found = ours(source, target, edges, torch.zeros(5, 0))
    torch.testing.assert_close(found, theirs((source, target), edges.edge_index))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_attributes_of_a_single_edge_reach_its_target(make_encoder, make_graph, backend):
    encoder, graph = make_encoder(), make_graph()
    edge_type = ("link", "rev_nvlink", "gpu")
    faster = graph.attributes[edge_type].clone()
    faster[0, 0] += 1.0
    changed = replace(graph, attributes={**graph.attributes, edge_type: faster})
    difference = (
        encoder.run(changed, backend).nodes["gpu"] - encoder.run(graph, backend).nodes["gpu"]
    )
    assert difference[0, 0].abs().max() > 1e-4


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_second_neighbour_over_a_single_edge_type_is_refused(make_encoder, make_graph, backend):
    graph = make_graph()
    edge_type = ("server", "rev_in_server", "gpu")
    old = graph.neighbours[edge_type]
    twice = Neighbours(old.sources, old.targets * 0, num_sources=3, num_targets=12)
    wrong = replace(graph, neighbours={**graph.neighbours, edge_type: twice})
    with pytest.raises(ValueError, match="target 0 has 12 neighbours"):
        make_encoder().run(wrong, backend)


def test_weights_are_one_and_the_same_in_the_twin(make_encoder, make_graph):
    encoder, graph = make_encoder(), make_graph()
    twin = DenseEncoder(encoder)
    before = twin(graph).pooled
    with torch.no_grad():
        encoder.embed["gpu"].weight.mul_(2.0)
    assert not torch.equal(twin(graph).pooled, before)
    assert {id(p) for p in twin.parameters()} == {id(p) for p in encoder.parameters()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 5}, "num_heads must divide hidden_size 32, got 5"),
    ],
)
def test_wrong_sizes_are_refused(arguments: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        AttentionEncoder(**arguments)


def test_batch_of_batches_is_refused(make_graph):
    graph: GraphBatch = make_graph()
    with pytest.raises(ValueError, match=r"got batches of \[2\]"):
        batch_graphs([batch_graphs([graph, graph])])


def test_backends_have_names_of_their_own():
    assert all(isinstance(backend, Backend) for backend in BACKENDS.values())
    assert sorted(BACKENDS) == ["kernels", "pyg", "tables"]

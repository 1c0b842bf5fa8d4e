"""Explanations: contributions that sum to the output, of the right signals; who looks at whom."""

from dataclasses import replace

import pytest
import torch

from trimtab.env.state.feature import Node
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.graph_encoder.attention_weights import attention_weights, most_attended
from trimtab.graph_encoder.explanations import explain
from trimtab.graph_encoder.graph_batch import batch_graphs
from trimtab.graph_encoder.relation_attention import PYG


def head_of(encoded):
    """A scalar as a head would compute it: one number of one replica, and some of the fleet."""
    return encoded.nodes["replica"][0, 1, 5] + encoded.pooled[0, :40].sum()


def vector_of(encoded):
    """One number of one replica's vector."""
    return encoded.nodes["replica"][0, 1, 5]


def test_contributions_sum_to_the_difference_from_knowing_nothing(make_encoder, make_graph):
    found = explain(make_encoder(), make_graph(), vector_of, error_frac=0.03)
    difference = found.output - found.baseline_output
    assert abs(difference) > 0.5
    assert abs(found.residual) <= 0.03 * abs(difference)
    assert sum(found.by_signal().values()) == pytest.approx(difference - found.residual, abs=1e-3)


def test_backends_explain_alike(make_encoder, make_graph):
    encoder, graph = make_encoder(), make_graph()
    ours = explain(encoder, graph, head_of, max_pieces=8).by_signal()
    theirs = explain(encoder, graph, head_of, max_pieces=8, backend=PYG).by_signal()
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_the_only_input_that_counts_gets_the_whole_difference(make_encoder, make_graph):
    """The output is the hyperbolic tangent of half of one fleet input, which is 2."""
    encoder, graph = make_encoder(), make_graph()
    names = encoder.schema.fleet_columns
    with torch.no_grad():
        encoder.embed_fleet.weight.zero_()
        encoder.embed_fleet.bias.zero_()
        encoder.embed_fleet.weight[0, names.index("load_frac")] = 0.5
    fleet = graph.fleet.clone()
    fleet[0, names.index("load_frac")] = 2.0
    found = explain(encoder, replace(graph, fleet=fleet), lambda e: e.pooled[0, -32])
    assert len(found.contributions) == 1
    only = found.contributions[0]
    assert (only.where, only.kind, only.signal) == ("fleet", "fleet", "load_frac")
    assert only.amount == pytest.approx(torch.tanh(torch.tensor(1.0)).item(), rel=0.01)


def test_what_is_unknown_contributes_nothing(make_encoder, make_graph):
    graph = make_graph()
    names = [feature.name for feature in FEATURES_BY_NODE[Node.GPU]]
    flags = graph.x["gpu"][:, len(names) : 2 * len(names)]
    unknown = {(f"gpu {row}", names[i]) for row, i in (flags == 0).nonzero().tolist()}
    found = explain(make_encoder(), graph, head_of, max_pieces=8)
    assert unknown
    assert unknown.isdisjoint((one.where, one.signal) for one in found.contributions)


def test_signals_are_those_of_the_registry_and_topology_is_not_among_them(make_encoder, make_graph):
    found = explain(make_encoder(), make_graph(), head_of, max_pieces=8)
    for node, features in FEATURES_BY_NODE.items():
        signals = {one.signal for one in found.contributions if one.kind == node}
        assert signals <= {feature.name for feature in features} | {"age"}
    assert any(one.kind == "serves" for one in found.contributions)


def test_text_names_the_nodes_and_adds_up(make_encoder, make_graph):
    names = {"server": ["rack-a", "rack-b", "rack-c"]}
    found = explain(make_encoder(), make_graph(), head_of, max_pieces=8, names=names)
    text = found.text(num_lines=5000)
    assert "rack-b: " in text
    assert "-rev_rdma-> rack-" in text
    assert "  tenant 2: " in text
    short = found.text(num_lines=3).splitlines()
    assert short[0].startswith(f"output {found.output:.4g}")
    assert len(short) == 1 + 3 + 2


def test_only_single_graphs_and_some_steps(make_encoder, make_graph):
    encoder, graph = make_encoder(), make_graph()
    with pytest.raises(ValueError, match="got a batch of 2; explain each alone"):
        explain(encoder, batch_graphs([graph, graph]), head_of)
    with pytest.raises(ValueError, match="max_pieces must be at least 8, got 0"):
        explain(encoder, graph, head_of, max_pieces=0)


def test_most_attended_edges_come_first_with_names(make_encoder, make_graph):
    encoder, graph = make_encoder(), make_graph()
    found = most_attended(encoder, graph, num_edges=2, names={"tenant": ["ann", "bob", "eve"]})
    serves = [one for one in found if one.layer == 0 and one.relation == "serves"]
    assert len(serves) == 2
    assert serves[0].lift >= serves[1].lift >= 1.0
    assert serves[0].target in ("ann", "bob", "eve")
    weights = attention_weights(encoder, graph)[0, ("replica", "serves", "tenant")]
    assert serves[0].weight == pytest.approx(weights.max().item())
    assert serves[0].lift == pytest.approx(4 * serves[0].weight)  # 4 replicas
    assert "x even" in str(serves[0])
    # a GPU has one server: nothing to say
    assert not [one for one in found if one.relation == "rev_in_server"]

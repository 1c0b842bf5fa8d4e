"""Who looks at whom: the attention that an encoder pays, edge by edge, with named nodes.

A weight is a share of what a target takes over one edge type; its lift says how many times the even
share that is. A single neighbour always has weight and lift 1, which says nothing.

Does not know: what the attention is paid for (`attribution.py` does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .attention_encoder import AttentionEncoder
from .graph_batch import GraphBatch
from .schema import EdgeType

NodeNames = Mapping[str, Sequence[str]]
"""Names of the nodes of each kind, in order; a kind that is absent is numbered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttendedEdge:
    """The attention of a target to one neighbour, mean over heads."""

    layer: int
    relation: str
    source: str
    target: str
    weight: float
    """Share of what the target takes over this edge type, in [0, 1]."""
    lift: float
    """The weight over the even share."""

    def __str__(self) -> str:
        return (
            f"layer {self.layer} {self.relation}: {self.target} <- {self.source} "
            f"{self.weight:.3f} ({self.lift:.1f} x even)"
        )


def node_name(names: NodeNames | None, node: str, index: int) -> str:
    """Return the name of a node, or its kind and number."""
    if names is None or node not in names:
        return f"{node} {index}"
    return names[node][index]


def attention_weights(
    encoder: AttentionEncoder, graph: GraphBatch
) -> dict[tuple[int, EdgeType], torch.Tensor]:
    """Return the weights of each layer and edge type, [E, heads]; those of a target sum to 1."""
    with torch.no_grad():
        by_layer = encoder.hidden_by_layer(graph)
        return {
            (number, edge_type): layer.relation(edge_type).weights(
                hidden[edge_type[0]],
                hidden[edge_type[2]],
                graph.neighbours[edge_type],
                graph.attributes[edge_type],
            )
            # the last vectors are those after the last layer
            for number, (layer, hidden) in enumerate(
                zip(encoder.attention_layers(), by_layer[:-1], strict=True)
            )
            for edge_type in layer.edge_types
        }


def most_attended(
    encoder: AttentionEncoder,
    graph: GraphBatch,
    *,
    num_edges: int = 5,
    names: NodeNames | None = None,
) -> tuple[AttendedEdge, ...]:
    """Return the edges of highest lift of each layer and edge type, highest first.

    Edges of targets with a single neighbour are left out.
    """
    found = []
    for (layer, edge_type), by_head in attention_weights(encoder, graph).items():
        source, relation, target = edge_type
        neighbours = graph.neighbours[edge_type]
        weights = by_head.mean(dim=1)
        degrees = neighbours.degrees[neighbours.targets]
        lifts = (weights * degrees).masked_fill(degrees < 2, 0.0)
        order = lifts.argsort(descending=True)[:num_edges]
        for edge in order[lifts[order] > 0].tolist():
            found.append(
                AttendedEdge(
                    layer=layer,
                    relation=relation,
                    source=node_name(names, source, int(neighbours.sources[edge])),
                    target=node_name(names, target, int(neighbours.targets[edge])),
                    weight=float(weights[edge]),
                    lift=float(lifts[edge]),
                )
            )
    return tuple(found)

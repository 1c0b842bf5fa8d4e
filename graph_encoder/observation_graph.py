"""A batch of padded observations as one batch of graphs.

Nodes are replicas, GPUs, servers and tenants; edges say which GPU hosts which replica, which
server a GPU sits in, and that every tenant may use every replica; each is read both ways.

Does not know: what the features mean, or which network reads the graph.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..env.knobs import TUNABLE_KNOBS
from ..env.observation import OBSERVED
from ..env.state.edges import Edge
from ..env.state.feature import Node
from .graph_batch import GraphBatch
from .neighbours import Neighbours
from .schema import EdgeType, GraphSchema, backward_type, forward_type, single_types

OBSERVED_EDGES = (Edge.HOSTS, Edge.IN_SERVER, Edge.WAITS_ON)


def _observation_schema() -> GraphSchema:
    columns = {
        str(node): tuple(feature.name for feature in features)
        for node, features in OBSERVED.items()
    }
    fleet_columns = columns.pop(str(Node.FLEET))
    columns[str(Node.REPLICA)] += ("last_bias",)
    edge_types = [read(edge) for edge in OBSERVED_EDGES for read in (forward_type, backward_type)]
    return GraphSchema(
        columns=columns,
        attributes=dict.fromkeys(edge_types, ()),
        single=single_types(edge_types) | {backward_type(Edge.HOSTS)},
        fleet_columns=(*fleet_columns, *(f"last_{knob}" for knob in TUNABLE_KNOBS)),
    )


OBSERVATION_SCHEMA = _observation_schema()
"""What the short-term policy sees. The last action travels with what it acted on."""


def observation_graphs(observations: Mapping[str, Tensor]) -> GraphBatch:
    """Return the graphs of a batch of observations.

    Shapes (B batch, N padded nodes of a kind, F columns of the kind): tensors of
    `observation_space`, [B, ...] -> B graphs of `OBSERVATION_SCHEMA`, `x[node]` [B * N, F].
    """
    num_replicas = observations["replica_mask"].shape[1]
    last_residuals = observations["action"][:, :-num_replicas]  # [B, K]
    last_biases = observations["action"][:, -num_replicas:]  # [B, N]
    masks = {node: observations[f"{node}_mask"] > 0.5 for node in OBSERVATION_SCHEMA.nodes}
    x = {}
    for node, mask in masks.items():
        rows = observations[node].reshape(*mask.shape, -1)  # [B, N, F]
        if node == Node.REPLICA:
            rows = torch.cat([rows, last_biases.unsqueeze(2)], dim=2)
        x[node] = rows.masked_fill(~mask.unsqueeze(2), 0.0).flatten(0, 1)
    neighbours: dict[EdgeType, Neighbours] = {}
    for edge in OBSERVED_EDGES:
        forward = forward_type(edge)
        neighbours[forward] = _neighbours(forward, observations, masks)
        neighbours[backward_type(edge)] = neighbours[forward].reverse
    return GraphBatch(
        x=x,
        mask={node: mask.flatten() for node, mask in masks.items()},
        fleet=torch.cat([observations["fleet"], last_residuals], dim=1),
        neighbours=neighbours,
        attributes={
            edge_type: last_biases.new_zeros(part.num_edges, 0)
            for edge_type, part in neighbours.items()
        },
    )


def _neighbours(
    edge_type: EdgeType, observations: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> Neighbours:
    """Return the edges between real nodes of one forward edge type."""
    source, _, target = edge_type
    source_mask, target_mask = masks[source], masks[target]
    if source == Node.GPU:
        parents = observations[f"gpu_{target}"].round().long()  # [B, N]
        is_edge = source_mask & target_mask.gather(1, parents)
        graph, source_index = is_edge.nonzero(as_tuple=True)
        target_index = parents[graph, source_index]
    else:
        is_edge = source_mask.unsqueeze(2) & target_mask.unsqueeze(1)  # [B, N, N]
        graph, source_index, target_index = is_edge.nonzero(as_tuple=True)
    return Neighbours(
        graph * source_mask.shape[1] + source_index,
        graph * target_mask.shape[1] + target_index,
        num_sources=source_mask.numel(),
        num_targets=target_mask.numel(),
    )

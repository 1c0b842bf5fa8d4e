"""A batch of padded observations as one batch of heterogeneous graphs.

Nodes are replicas, GPUs, servers and tenants; edges say which GPU hosts which replica, which
server a GPU sits in, and that every tenant sends to every replica; each has its reverse.
Padded nodes stay, so that node `b * size + i` is node `i` of graph `b` and no result has to be
scattered back; they are 0 and have no edges, so no real node can see them.

Does not know: what the features mean, or which network reads the graph.
"""

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

NODE_TYPES = ("replica", "gpu", "server", "tenant")
EdgeType = tuple[str, str, str]
FORWARD_EDGE_TYPES: tuple[EdgeType, ...] = (
    ("gpu", "hosts", "replica"),
    ("gpu", "in", "server"),
    ("tenant", "sends", "replica"),
)


def reverse_of(edge_type: EdgeType) -> EdgeType:
    """Return the edge type that points the other way, named as PyG names it."""
    source, relation, target = edge_type
    return target, f"rev_{relation}", source


EDGE_TYPES: tuple[EdgeType, ...] = FORWARD_EDGE_TYPES + tuple(map(reverse_of, FORWARD_EDGE_TYPES))


def to_hetero(observations: dict[str, Tensor]) -> HeteroData:
    """Return the graphs of a batch of observations.

    Each node type has `x`, `mask` (False at padding) and `batch` (the graph of each node). The
    last action travels with what it acted on: its bias is the last column of the replicas' `x`,
    its knob residuals are the last columns of `fleet`.

    Shapes (B batch, N padded nodes of a type, F features, E edges, K tunable knobs): tensors of
    `observation_space`, [B, ...] -> `x` [B * N, F] (replicas F + 1), `mask` and `batch` [B * N],
    `edge_index` [2, E], `fleet` [B, F + K].
    """
    data = HeteroData()
    num_replicas = observations["replica_mask"].shape[1]
    last_residuals = observations["action"][:, :-num_replicas]  # [B, K]
    last_biases = observations["action"][:, -num_replicas:]  # [B, N]
    data.fleet = torch.cat([observations["fleet"], last_residuals], dim=1)
    masks = {node: observations[f"{node}_mask"] > 0.5 for node in NODE_TYPES}
    for node, mask in masks.items():
        x = observations[node].reshape(*mask.shape, -1)  # [B, N, F]
        if node == "replica":
            x = torch.cat([x, last_biases.unsqueeze(2)], dim=2)
        data[node].x = x.masked_fill(~mask.unsqueeze(2), 0.0).flatten(0, 1)
        data[node].mask = mask.flatten()
        graphs = torch.arange(mask.shape[0], device=mask.device)
        data[node].batch = graphs.repeat_interleave(mask.shape[1])
    for edge_type in FORWARD_EDGE_TYPES:
        edge_index = _edge_index(edge_type, observations, masks)
        data[edge_type].edge_index = edge_index
        data[reverse_of(edge_type)].edge_index = edge_index.flip(0)
    return data


def _edge_index(
    edge_type: EdgeType, observations: dict[str, Tensor], masks: dict[str, Tensor]
) -> Tensor:
    """Return the edges between real nodes of one forward edge type, [2, E]."""
    source, _, target = edge_type
    source_mask, target_mask = masks[source], masks[target]
    if source == "gpu":
        parents = observations[f"gpu_{target}"].round().long()  # [B, N]
        is_edge = source_mask & target_mask.gather(1, parents)
        graph, source_index = is_edge.nonzero(as_tuple=True)
        target_index = parents[graph, source_index]
    else:
        is_edge = source_mask.unsqueeze(2) & target_mask.unsqueeze(1)  # [B, N, N]
        graph, source_index, target_index = is_edge.nonzero(as_tuple=True)
    return torch.stack(
        [graph * source_mask.shape[1] + source_index, graph * target_mask.shape[1] + target_index]
    )

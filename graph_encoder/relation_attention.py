"""Attention over the edges of one type: GATv2, whose neighbours' vectors hold their edge too.

What an edge sends is a linear map of its source's vector and of its own attributes. A target scores
what it is sent by `attention . leaky_relu(sent + receives)`, and takes the mean weighted by the
softmax of the scores. In PyG's `GATv2Conv` attributes only move the scores, so that where a node
has a single neighbour nobody would see them.

Does not know: the other edge types; the dense and the compiled path read the weights from here.
Source: Brody, Alon, Yahav 2022, "How attentive are graph attention networks?".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from .backend import Backend, settle
from .neighbours import Neighbours

NEGATIVE_SLOPE = 0.2
"""Of the leaky ReLU in the scores. Source: the paper, and PyG's default."""


class RelationAttention(MessagePassing):
    """One edge type's weights, and the way of PyG to use them.

    Shapes (S sources, T targets, E edges, H hidden, A attributes): `source` [S, H] and `target`
    [T, H] -> [T, H], 0 where a target has no neighbour. Where `is_single`, no target has two, so
    there is nothing to score.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, num_attributes: int, *, is_single: bool = False
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.num_heads = num_heads
        self.is_single = is_single
        self.send = nn.Linear(hidden_size, hidden_size)
        self.carry = nn.Linear(num_attributes, hidden_size, bias=False) if num_attributes else None
        if not is_single:
            self.receive = nn.Linear(hidden_size, hidden_size, bias=False)
            self.attention = nn.Parameter(torch.empty(num_heads, hidden_size // num_heads))
            nn.init.xavier_uniform_(self.attention)

    def forward(
        self, source: Tensor, target: Tensor, neighbours: Neighbours, attributes: Tensor
    ) -> Tensor:
        """Return what the targets take from their neighbours."""
        sent = self._sent(source, neighbours, attributes)  # [E, H]
        weights = self._weights(sent, target, neighbours)  # [E, heads]
        size = (neighbours.num_sources, neighbours.num_targets)
        taken: Tensor = self.propagate(
            neighbours.edge_index, sent=self.by_head(sent), weights=weights, size=size
        )
        return taken.flatten(1)

    def weights(
        self, source: Tensor, target: Tensor, neighbours: Neighbours, attributes: Tensor
    ) -> Tensor:
        """Return the attention that each edge gets from its target, [E, heads]."""
        return self._weights(self._sent(source, neighbours, attributes), target, neighbours)

    def message(self, sent: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted vectors of the edges, [E, heads, H / heads]."""
        return weights.unsqueeze(-1) * sent

    def by_head(self, x: Tensor) -> Tensor:
        """Split the last dimension, [..., H] -> [..., heads, H / heads]."""
        return x.view(*x.shape[:-1], self.num_heads, -1)

    def scores(self, sent: Tensor, received: Tensor) -> Tensor:
        """Return how much a target wants what it is sent, [..., H] -> [..., heads]."""
        heard = self.by_head(functional.leaky_relu(sent + received, NEGATIVE_SLOPE))
        return (heard * self.attention).sum(dim=-1)

    def _sent(self, source: Tensor, neighbours: Neighbours, attributes: Tensor) -> Tensor:
        sent: Tensor = self.send(source).index_select(0, neighbours.sources)
        return sent if self.carry is None else sent + self.carry(attributes)

    def _weights(self, sent: Tensor, target: Tensor, neighbours: Neighbours) -> Tensor:
        if self.is_single:
            neighbours.check_single()
            return sent.new_ones(neighbours.num_edges, self.num_heads)
        received = self.receive(target).index_select(0, neighbours.targets)
        weights: Tensor = softmax(
            self.scores(sent, received), neighbours.targets, num_nodes=neighbours.num_targets
        )
        return weights


def _attend(
    relation: RelationAttention,
    nodes: tuple[Tensor, Tensor],
    neighbours: Neighbours,
    attributes: Tensor,
    taken: Tensor | None,
) -> Tensor:
    part: Tensor = relation(*nodes, neighbours, attributes)
    return part if taken is None else taken + part


PYG = Backend("pyg", _attend, settle)
"""PyG's passes over all edges; runs wherever torch does."""

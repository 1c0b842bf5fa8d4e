"""The encoder's dense twin: the same weights over padded tables of neighbours, without PyG.

It holds no weights of its own: it runs the module that it is given, and differs only in how the
edges of a type are attended to. Gradients flow as in the original.

Does not know: how tables are made (`neighbours.py`).
"""

import torch
from torch import Tensor, nn

from .attention_encoder import AttentionEncoder, EncodedGraphs
from .graph_batch import GraphBatch
from .neighbours import Neighbours, NeighbourTable
from .relation_attention import RelationAttention


class DenseEncoder(nn.Module):
    """Run an encoder over tables of neighbours."""

    def __init__(self, encoder: AttentionEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, graphs: GraphBatch) -> EncodedGraphs:
        """Return vectors of nodes and fleets."""
        return self.encoder.run(graphs, attend_densely)


def attend_densely(
    relation: RelationAttention,
    source: Tensor,
    target: Tensor,
    neighbours: Neighbours,
    attributes: Tensor,
) -> Tensor:
    """Return what the targets take from their neighbours, as `RelationAttention.forward` does."""
    sent = relation.send(source)  # [S, H]
    taken = target.new_zeros(neighbours.num_targets, sent.shape[1])
    for table in neighbours.tables:
        part = _take(relation, table, sent, target, attributes)
        if table.targets is None:
            return part
        taken = taken.index_copy(0, table.targets, part)
    return taken


def _take(
    relation: RelationAttention,
    table: NeighbourTable,
    sent: Tensor,
    target: Tensor,
    attributes: Tensor,
) -> Tensor:
    """Return what the targets of one table take, [T, H]."""
    reached = sent[table.sources]  # [T, K, H]
    if relation.carry is not None:
        reached = reached + relation.carry(attributes[table.edges])
    if table.num_slots == 1:
        return reached.squeeze(1)  # a single neighbour gets all attention
    rows = target if table.targets is None else target[table.targets]
    scores = relation.scores(reached, relation.receive(rows).unsqueeze(1))  # [T, K, heads]
    if table.is_padding is not None:
        scores = scores.masked_fill(table.is_padding.unsqueeze(2), -torch.inf)
    weights = scores.softmax(dim=1)
    return torch.einsum("tkh,tkhc->thc", weights, relation.by_head(reached)).flatten(1)

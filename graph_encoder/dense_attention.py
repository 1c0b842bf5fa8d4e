"""Attention over padded tables of neighbours, in nothing but dense operations of torch.

Does not know: how tables are made (`neighbours.py`).
"""

import torch
from torch import Tensor

from .backend import Backend, settle
from .neighbours import Neighbours, NeighbourTable
from .relation_attention import RelationAttention


def _attend(
    relation: RelationAttention,
    nodes: tuple[Tensor, Tensor],
    neighbours: Neighbours,
    attributes: Tensor,
    taken: Tensor | None,
) -> Tensor:
    if relation.is_single:
        neighbours.check_single()
    source, target = nodes
    sent: Tensor = relation.send(source)  # [S, H]
    if taken is None:
        taken = sent.new_zeros(neighbours.num_targets, sent.shape[1])
    for table in neighbours.tables:
        part = _take(relation, table, sent, target, attributes)
        # not in place: gradients of the other edge types may need what was taken before
        taken = taken + part if table.targets is None else taken.index_add(0, table.targets, part)
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


TABLES = Backend("tables", _attend, settle)
"""Padded tables; runs wherever torch does."""

"""A batch of graphs as tensors: what every way to run the encoder reads.

Graphs are padded to the same number of nodes of each kind, so that node `b * N + i` is node `i` of
graph `b` and nothing has to be scattered back. Padded nodes have no edges, so no real node can see
them, and what stands in their rows makes no difference.

Does not know: what the columns mean (`schema.py`), or where they come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .neighbours import Neighbours
from .schema import EdgeType


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphBatch:
    """B graphs.

    Shapes (N padded nodes of a kind, F columns of the kind, E edges of a type in the whole batch,
    A attributes of the type): `x[node]` [B * N, F]; `mask[node]` [B * N], False at padding, None
    where nothing is padded; `fleet` [B, columns of the fleet]; `attributes[edge type]` [E, A].
    """

    x: Mapping[str, Tensor]
    mask: Mapping[str, Tensor | None]
    fleet: Tensor
    neighbours: Mapping[EdgeType, Neighbours]
    attributes: Mapping[EdgeType, Tensor]

    @property
    def num_graphs(self) -> int:
        """Return B."""
        return self.fleet.shape[0]


def batch_graphs(graphs: Sequence[GraphBatch]) -> GraphBatch:
    """Return graphs of any sizes as one batch, padded to the largest of each node kind.

    Raises:
        ValueError: there is no graph, or one is a batch already.
    """
    if not graphs or any(graph.num_graphs != 1 for graph in graphs):
        found = [graph.num_graphs for graph in graphs]
        msg = f"batch_graphs takes one or more single graphs, got batches of {found}"
        raise ValueError(msg)
    sizes = {node: [graph.x[node].shape[0] for graph in graphs] for node in graphs[0].x}
    width = {node: max(of_graphs) for node, of_graphs in sizes.items()}
    x = {node: torch.cat([_padded(g.x[node], width[node]) for g in graphs]) for node in width}
    mask = {
        node: torch.cat([_padded(_mask(g, node), width[node]) for g in graphs]) for node in width
    }
    return GraphBatch(
        x=x,
        mask=mask,
        fleet=torch.cat([graph.fleet for graph in graphs]),
        neighbours={
            edge_type: _joined(graphs, edge_type, width) for edge_type in graphs[0].neighbours
        },
        attributes={
            edge_type: torch.cat([graph.attributes[edge_type] for graph in graphs])
            for edge_type in graphs[0].attributes
        },
    )


def squeezed(graphs: GraphBatch) -> GraphBatch:
    """Return the same nodes and edges without the rows of padding, for rounds of messages.

    Nodes keep their order, but are no longer `b * N + i`; nothing is masked. Three quarters of the
    rows of a batch of fleets of many sizes are padding.
    """
    x, places = dict(graphs.x), {}
    for node, mask in graphs.mask.items():
        if mask is not None:
            x[node] = graphs.x[node][mask]
            places[node] = mask.cumsum(0) - 1
    neighbours = {
        edge_type: Neighbours(
            _moved(places.get(edge_type[0]), one.sources),
            _moved(places.get(edge_type[2]), one.targets),
            num_sources=len(x[edge_type[0]]),
            num_targets=len(x[edge_type[2]]),
        )
        for edge_type, one in graphs.neighbours.items()
    }
    nothing = dict.fromkeys(graphs.mask)
    return replace(graphs, x=x, mask=nothing, neighbours=neighbours)


def _moved(places: Tensor | None, index: Tensor) -> Tensor:
    return index if places is None else places[index]


def _padded(rows: Tensor, width: int) -> Tensor:
    padded = rows.new_zeros((width, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded


def _mask(graph: GraphBatch, node: str) -> Tensor:
    mask = graph.mask[node]
    return torch.ones(len(graph.x[node]), dtype=torch.bool) if mask is None else mask


def _joined(
    graphs: Sequence[GraphBatch], edge_type: EdgeType, width: Mapping[str, int]
) -> Neighbours:
    source, _, target = edge_type
    parts = [graph.neighbours[edge_type] for graph in graphs]
    return Neighbours(
        torch.cat([part.sources + i * width[source] for i, part in enumerate(parts)]),
        torch.cat([part.targets + i * width[target] for i, part in enumerate(parts)]),
        num_sources=len(graphs) * width[source],
        num_targets=len(graphs) * width[target],
    )

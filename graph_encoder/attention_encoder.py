"""The graph encoder: rounds of attention over every edge type, then one vector of the fleet.

Each node kind is embedded by a map of its own. In a round a node takes an attention-weighted mean
of its neighbours over each edge type; their sum goes through a ReLU onto its own vector and is
normalised. No parameter depends on how many nodes there are.

`AttentionEncoder` runs over PyG. `dense_encoder.py` runs the very same module another way, and
`backend.py` says what ways there are.

Does not know: where graphs come from, or what the vectors are used for.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..env.state.feature import Node
from .backend import Backend
from .graph_batch import GraphBatch, squeezed
from .readout import Pool, Pools, Readout
from .relation_attention import PYG, RelationAttention
from .schema import FLEET_SCHEMA, EdgeType, GraphSchema

FLEET_POOLS: Pools = {
    str(Node.REPLICA): (Pool.MEAN, Pool.SPREAD, Pool.MAXIMUM, Pool.ATTENTION),
    str(Node.GPU): (Pool.MEAN, Pool.SPREAD, Pool.MAXIMUM),
    str(Node.SERVER): (Pool.MEAN, Pool.SPREAD, Pool.MAXIMUM),
    str(Node.LINK): (Pool.MEAN, Pool.MAXIMUM),
    str(Node.TENANT): (Pool.MEAN, Pool.MAXIMUM),
    str(Node.ZONE): (Pool.MEAN,),
}
"""With the fleet's own part, 16 parts: 512 numbers at hidden size 32."""

Hidden = Mapping[str, Tensor]
"""Vectors of the nodes of each kind, [B * N, H]."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedGraphs:
    """What the encoder returns.

    Shapes (B graphs, N padded nodes of a kind, H hidden, P parts): `nodes[kind]` [B, N, H] for
    every kind that is pooled, 0 at padding; `masks[kind]` [B, N], None where nothing is padded;
    `pooled` [B, P * H].
    """

    nodes: Hidden
    masks: Mapping[str, Tensor | None]
    pooled: Tensor


class AttentionEncoder(nn.Module):
    """Encode batches of graphs of one schema; any number of nodes of each kind.

    Raises:
        ValueError: a size is below 1, or the hidden size is no multiple of the heads.
    """

    def __init__(
        self,
        schema: GraphSchema = FLEET_SCHEMA,
        *,
        pools: Pools = FLEET_POOLS,
        hidden_size: int = 32,
        num_layers: int = 2,
        num_heads: int = 1,
    ) -> None:
        for name, value in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            if value < 1:
                msg = f"{name} must be at least 1, got {value}"
                raise ValueError(msg)
        if num_heads < 1 or hidden_size % num_heads:
            msg = f"num_heads must divide hidden_size {hidden_size}, got {num_heads}"
            raise ValueError(msg)
        super().__init__()
        self.schema = schema
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.pooled_size = hidden_size * (sum(map(len, pools.values())) + 1)
        self.embed = nn.ModuleDict(
            {node: nn.Linear(len(names), hidden_size) for node, names in schema.columns.items()}
        )
        self.embed_fleet = nn.Linear(len(schema.fleet_columns), hidden_size)
        self.layers = nn.ModuleList(
            AttentionLayer(schema, targets, hidden_size, num_heads)
            for targets in _targets(schema, pools, num_layers)
        )
        self.readout = Readout(hidden_size, pools)

    def attention_layers(self) -> list["AttentionLayer"]:
        """Return the rounds of attention, first to last."""
        return [layer for layer in self.layers if isinstance(layer, AttentionLayer)]

    def forward(self, graphs: GraphBatch) -> EncodedGraphs:
        """Return vectors of nodes and fleets, computed by PyG."""
        return self.run(graphs, PYG)

    def run(self, graphs: GraphBatch, backend: Backend) -> EncodedGraphs:
        """Return vectors of nodes and fleets, computed by a backend."""
        hidden = self.hidden_by_layer(squeezed(graphs), backend)[-1]
        nodes, masks = {}, {}
        for node in self.readout.pools:
            mask, x = graphs.mask[node], hidden[node]
            if mask is not None:
                x = x.new_zeros(len(mask), self.hidden_size).masked_scatter(mask.unsqueeze(1), x)
            nodes[node] = x.view(graphs.num_graphs, -1, self.hidden_size)
            masks[node] = None if mask is None else mask.view(graphs.num_graphs, -1)
        fleet = torch.tanh(self.embed_fleet(graphs.fleet))
        pooled = torch.cat([self.readout(nodes, masks), fleet], dim=1)
        return EncodedGraphs(nodes=nodes, masks=masks, pooled=pooled)

    def hidden_by_layer(self, graphs: GraphBatch, backend: Backend = PYG) -> list[Hidden]:
        """Return the vectors before the first layer and after each, at last of pooled kinds."""
        hidden: Hidden = {
            node: torch.tanh(embed(graphs.x[node])) for node, embed in self.embed.items()
        }
        by_layer = [hidden]
        for layer in self.attention_layers():
            hidden = layer(hidden, graphs, backend)
            by_layer.append(hidden)
        return by_layer


class AttentionLayer(nn.Module):
    """One round of attention to some node kinds, with residual and LayerNorm."""

    def __init__(
        self, schema: GraphSchema, targets: tuple[str, ...], hidden_size: int, num_heads: int
    ) -> None:
        super().__init__()
        self.edge_types = tuple(kind for kind in schema.edge_types if kind[2] in targets)
        self.relations = nn.ModuleDict(
            {
                _key(edge_type): RelationAttention(
                    hidden_size,
                    num_heads,
                    len(schema.attributes[edge_type]),
                    is_single=edge_type in schema.single,
                )
                for edge_type in self.edge_types
            }
        )
        self.norm = nn.ModuleDict({node: nn.LayerNorm(hidden_size) for node in targets})

    def relation(self, edge_type: EdgeType) -> RelationAttention:
        """Return the weights of an edge type."""
        relation = self.relations[_key(edge_type)]
        assert isinstance(relation, RelationAttention), f"{edge_type} is {relation}"
        return relation

    def forward(self, hidden: Hidden, graphs: GraphBatch, backend: Backend) -> Hidden:
        """Return new vectors of the targets."""
        taken: dict[str, Tensor] = {}
        for edge_type in self.edge_types:
            source, _, target = edge_type
            neighbours = graphs.neighbours[edge_type]
            if not neighbours.num_edges:
                continue
            taken[target] = backend.attend(
                self.relation(edge_type),
                (hidden[source], hidden[target]),
                neighbours,
                graphs.attributes[edge_type],
                taken.get(target),
            )
        return {
            node: self._settle(node, hidden[node], taken.get(node), backend) for node in self.norm
        }

    def _settle(self, node: str, hidden: Tensor, taken: Tensor | None, backend: Backend) -> Tensor:
        norm = self.norm[node]
        assert isinstance(norm, nn.LayerNorm), f"norm of {node} is {norm}"
        if taken is None:
            taken = torch.zeros_like(hidden)
        return backend.settle(norm, hidden, taken)


def _key(edge_type: EdgeType) -> str:
    return "__".join(edge_type)


def _targets(schema: GraphSchema, pools: Pools, num_layers: int) -> list[tuple[str, ...]]:
    """Return the node kinds that each round must update for the pooled ones to be right."""
    targets = [tuple(node for node in schema.nodes if node in pools)]
    for _ in range(num_layers - 1):
        sources = {source for source, _, target in schema.edge_types if target in targets[0]}
        needed = sources.union(targets[0])
        targets.insert(0, tuple(node for node in schema.nodes if node in needed))
    return targets

"""The encoder in the form that Stable-Baselines3 wants: observations to one flat vector.

On a CPU it runs on compiled kernels, in training as in serving. Attention is not dearer there than
means: CPU time of forward and backward over 512 graphs of 16 replicas, 16 GPUs, 4 servers and 2
tenants, hidden size 32, one thread, minimum - median of 25 runs in turns, building of the graphs
included: 30-36 ms; two rounds of GraphSAGE means over PyG, which these took the place of, 44-50 ms.

Does not know: the policy; `split_features` gives its heads the parts back.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from ..env.state.feature import Node
from .attention_encoder import AttentionEncoder
from .compiled_attention import KERNELS
from .dense_attention import TABLES
from .graph_batch import GraphBatch
from .neighbours import Neighbours
from .observation_graph import OBSERVATION_SCHEMA, observation_graphs
from .readout import Pool, Pools

POLICY_POOLS: Pools = {
    str(Node.REPLICA): (Pool.MEAN, Pool.MAXIMUM),
    str(Node.TENANT): (Pool.MEAN,),
}
"""What the heads read of the fleet, beside its own part."""

NUM_POOLED_PARTS = sum(map(len, POLICY_POOLS.values())) + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedFleet:
    """The parts of the flat features.

    Shapes (B batch, N padded replicas, H hidden, P = 4 H): `replicas` [B, N, H], 0 at padding;
    `replica_mask` [B, N]; `pooled` [B, P].
    """

    replicas: Tensor
    replica_mask: Tensor
    pooled: Tensor


class Reads(StrEnum):
    """What of the graph an encoder reads; less than all only to measure what the rest is worth."""

    GRAPH = "graph"
    NODES = "nodes"  # no messages along edges: every node by itself, then pools
    REPLICAS = "replicas"  # of these, replicas alone


def seen_of(graphs: GraphBatch, reads: Reads) -> GraphBatch:
    """Return the part of a batch of graphs that is read."""
    if reads is Reads.GRAPH:
        return graphs
    neighbours = {
        edge_type: Neighbours(
            one.sources[:0],
            one.targets[:0],
            num_sources=one.num_sources,
            num_targets=one.num_targets,
        )
        for edge_type, one in graphs.neighbours.items()
    }
    attributes = {edge_type: rows[:0] for edge_type, rows in graphs.attributes.items()}
    graphs = replace(graphs, neighbours=neighbours, attributes=attributes)
    if reads is Reads.NODES:
        return graphs
    x = {
        node: rows if node == Node.REPLICA else torch.zeros_like(rows)
        for node, rows in graphs.x.items()
    }
    return replace(graphs, x=x, fleet=torch.zeros_like(graphs.fleet))


class GraphExtractor(BaseFeaturesExtractor):
    """Encode observations; each replica's part is its vector and its mask, then comes the pool.

    Shapes (B batch, N padded replicas, H hidden, P = 4 H): tensors of `observation_space` ->
    [B, N * (H + 1) + P], that is `num_replicas` x `replica_size`, then `pooled_size`.

    Raises:
        ValueError: the hidden size is below 1.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        hidden_size: int = 32,
        reads: Reads = Reads.GRAPH,
    ) -> None:
        if hidden_size < 1:
            msg = f"hidden_size must be at least 1, got {hidden_size}"
            raise ValueError(msg)
        num_replicas = spaces.flatdim(observation_space["replica_mask"])
        replica_size = hidden_size + 1
        pooled_size = NUM_POOLED_PARTS * hidden_size
        super().__init__(observation_space, num_replicas * replica_size + pooled_size)
        self.hidden_size = hidden_size
        self.reads = reads
        self.num_replicas = num_replicas
        self.replica_size = replica_size
        self.pooled_size = pooled_size
        self.encoder = AttentionEncoder(
            OBSERVATION_SCHEMA, pools=POLICY_POOLS, hidden_size=hidden_size
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the flat features."""
        graphs = seen_of(observation_graphs(observations), self.reads)
        backend = KERNELS if graphs.fleet.device.type == "cpu" else TABLES
        encoded = self.encoder.run(graphs, backend)
        replicas, mask = encoded.nodes[Node.REPLICA], encoded.masks[Node.REPLICA]
        assert mask is not None, "observations are padded"
        per_replica = torch.cat([replicas, mask.unsqueeze(2)], dim=2)  # [B, N, H + 1]
        return torch.cat([per_replica.flatten(1), encoded.pooled], dim=1)


def split_features(features: Tensor, hidden_size: int) -> EncodedFleet:
    """Return the parts of the flat features that a `GraphExtractor` of this hidden size made."""
    pooled_size = NUM_POOLED_PARTS * hidden_size
    per_replica = features[:, :-pooled_size].view(features.shape[0], -1, hidden_size + 1)
    return EncodedFleet(
        replicas=per_replica[:, :, :-1],
        replica_mask=per_replica[:, :, -1] > 0.5,
        pooled=features[:, -pooled_size:],
    )

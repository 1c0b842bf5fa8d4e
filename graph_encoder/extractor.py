"""The encoder in the form that Stable-Baselines3 wants: observations to one flat vector.

Does not know: the policy; `split_features` gives its heads the parts back.
"""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from .encoder import NUM_POOLED_PARTS, EncodedFleet, HeteroEncoder
from .graph import NODE_TYPES, to_hetero


class GraphExtractor(BaseFeaturesExtractor):
    """Encode observations; each replica's part is its vector and its mask, then comes the pool.

    Shapes (B batch, N padded replicas, H hidden, P = 4 H): tensors of `observation_space` ->
    [B, N * (H + 1) + P], that is `num_replicas` x `replica_size`, then `pooled_size`.
    """

    def __init__(self, observation_space: spaces.Dict, hidden_size: int = 32) -> None:
        if hidden_size < 1:
            msg = f"hidden_size must be at least 1, got {hidden_size}"
            raise ValueError(msg)
        shapes = {key: _shape(box) for key, box in observation_space.spaces.items()}
        num_replicas = shapes["replica_mask"][0]
        replica_size = hidden_size + 1
        pooled_size = NUM_POOLED_PARTS * hidden_size
        super().__init__(observation_space, num_replicas * replica_size + pooled_size)
        self.hidden_size = hidden_size
        self.num_replicas = num_replicas
        self.replica_size = replica_size
        self.pooled_size = pooled_size
        input_sizes = {node: shapes[node][0] // shapes[f"{node}_mask"][0] for node in NODE_TYPES}
        # the last action: one bias for each replica, the residuals with the fleet vector
        input_sizes["replica"] += 1
        num_residuals = shapes["action"][0] - num_replicas
        self.encoder = HeteroEncoder(
            input_sizes,
            shapes["fleet"][0] + num_residuals,
            hidden_size=hidden_size,
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the flat features."""
        encoded = self.encoder(to_hetero(observations))
        mask = encoded.replica_mask.unsqueeze(2).to(encoded.replicas.dtype)
        per_replica = torch.cat([encoded.replicas, mask], dim=2)  # [B, N, H + 1]
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


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    shape = space.shape
    assert shape is not None, f"{space} has no shape"
    return shape

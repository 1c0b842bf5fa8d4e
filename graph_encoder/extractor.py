"""The encoder in the form that Stable-Baselines3 wants: observations to one flat vector.

Does not know: the policy; `split` gives its heads the parts back.
"""

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
        num_replicas = observation_space["replica_mask"].shape[0]
        replica_size = hidden_size + 1
        pooled_size = NUM_POOLED_PARTS * hidden_size
        super().__init__(observation_space, num_replicas * replica_size + pooled_size)
        self.hidden_size = hidden_size
        self.num_replicas = num_replicas
        self.replica_size = replica_size
        self.pooled_size = pooled_size
        input_sizes = {node: observation_space[node].shape[1] for node in NODE_TYPES}
        # the last action: one bias for each replica, the residuals with the fleet vector
        input_sizes["replica"] += 1
        num_residuals = observation_space["action"].shape[0] - num_replicas
        self.encoder = HeteroEncoder(
            input_sizes,
            observation_space["fleet"].shape[0] + num_residuals,
            hidden_size=hidden_size,
        )

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the flat features."""
        encoded = self.encoder(to_hetero(observations))
        mask = encoded.replica_mask.unsqueeze(2).to(encoded.replicas.dtype)
        per_replica = torch.cat([encoded.replicas, mask], dim=2)  # [B, N, H + 1]
        return torch.cat([per_replica.flatten(1), encoded.pooled], dim=1)

    def split(self, features: Tensor) -> EncodedFleet:
        """Return the parts of flat features from `forward`."""
        flat, pooled = features.split(
            [self.num_replicas * self.replica_size, self.pooled_size], dim=1
        )
        per_replica = flat.view(-1, self.num_replicas, self.replica_size)
        return EncodedFleet(
            replicas=per_replica[:, :, :-1], replica_mask=per_replica[:, :, -1] > 0.5, pooled=pooled
        )

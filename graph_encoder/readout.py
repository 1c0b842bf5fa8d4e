"""From vectors of nodes to one vector of the fleet: pooled parts of each node kind.

Means keep totals, spreads how unequal the nodes are, maxima the worst and the best, and attention
what training finds worth a look.

Does not know: which kinds and pools are wanted (the encoder is told), or padding rules.
"""

import math
from collections.abc import Mapping
from enum import StrEnum

import torch
from torch import Tensor, nn

SPREAD_FLOOR = 1e-4
"""Variances below this count as none, so that the root has a gradient."""


class Pool(StrEnum):
    """Ways to pool nodes."""

    MEAN = "mean"
    SPREAD = "spread"
    MAXIMUM = "maximum"
    ATTENTION = "attention"


Pools = Mapping[str, tuple[Pool, ...]]
"""Pools of each node kind that is read."""


class Readout(nn.Module):
    """Pool the vectors of some node kinds; a graph without nodes of a kind gets zeros for it.

    Shapes (B graphs, N padded nodes of a kind, H hidden): vectors [B, N, H] and masks [B, N] or
    None -> [B, H * number of pools].
    """

    def __init__(self, hidden_size: int, pools: Pools) -> None:
        super().__init__()
        self.pools = pools
        self.attention = nn.ModuleDict(
            {
                node: nn.Linear(hidden_size, 1, bias=False)
                for node, of_node in pools.items()
                if Pool.ATTENTION in of_node
            }
        )

    def forward(self, hidden: Mapping[str, Tensor], masks: Mapping[str, Tensor | None]) -> Tensor:
        """Return the pooled parts, node kind by node kind."""
        return torch.cat(
            [
                self._pooled(pool, node, hidden[node], masks[node])
                for node, pools in self.pools.items()
                for pool in pools
            ],
            dim=1,
        )

    def _pooled(self, pool: Pool, node: str, x: Tensor, mask: Tensor | None) -> Tensor:
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], x.shape[2])
        match pool:
            case Pool.MEAN:
                return _mean(x, mask)
            case Pool.SPREAD:
                return _spread(x, mask)
            case Pool.MAXIMUM:
                return _maximum(x, mask)
            case Pool.ATTENTION:
                return _attended(x, self.attention[node](x), mask)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean(dim=1)
    real = x.masked_fill(~mask.unsqueeze(2), 0.0)
    return real.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _spread(x: Tensor, mask: Tensor | None) -> Tensor:
    variance: Tensor = _mean((x - _mean(x, mask).unsqueeze(1)).square(), mask)
    return torch.sqrt(variance + SPREAD_FLOOR) - math.sqrt(SPREAD_FLOOR)


def _maximum(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.amax(dim=1)
    maximum = x.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(dim=1)
    return maximum.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


def _attended(x: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return (scores.softmax(dim=1) * x).sum(dim=1)
    is_padding = ~mask.unsqueeze(2)
    # a finite floor, so that a graph of padding alone gives no NaN
    floor = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(is_padding, floor).softmax(dim=1)
    return (weights * x.masked_fill(is_padding, 0.0)).sum(dim=1)

"""What an encoder leaves to a backend: the weights are the same, the arithmetic is done otherwise.

Three backends: `PYG` (`relation_attention.py`), `TABLES` (`dense_attention.py`) and `KERNELS`
(`compiled_attention.py`). All give gradients, and are tested to agree.

Does not know: any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .neighbours import Neighbours

if TYPE_CHECKING:
    from .relation_attention import RelationAttention


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute a round.

    Shapes (S sources, T targets, E edges, A attributes, H hidden): `attend(relation, (source
    [S, H], target [T, H]), neighbours, attributes [E, A], taken [T, H] or None)` -> [T, H], what
    targets take, added to what they took over other edge types; it may write over `taken`.
    `settle(norm, hidden [T, H], taken [T, H])` -> [T, H].
    """

    name: str
    attend: Callable[
        ["RelationAttention", tuple[Tensor, Tensor], Neighbours, Tensor, Tensor | None], Tensor
    ]
    settle: Callable[[nn.LayerNorm, Tensor, Tensor], Tensor]


def settle(norm: nn.LayerNorm, hidden: Tensor, taken: Tensor) -> Tensor:
    """Return a node's new vector: its own plus what it took, where positive, normalised."""
    settled: Tensor = norm(hidden + torch.relu(taken))
    return settled

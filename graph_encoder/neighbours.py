"""The edges of one type, in the forms that the three ways to attend want.

PyG reads pairs of indices. The dense path reads padded tables of neighbours, one for each class of
degrees, so that a zone of hundreds of servers does not pad every other. The forms are made once,
when they are first asked for; a topology that stays keeps them.

Does not know: attributes, which change while the edges stay, or weights.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..env.state.feature import COUNT

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeighbourTable:
    """The neighbours of those targets that have about as many, padded to K.

    Shapes (T targets): `targets` [T] or None for all in order; `sources`, `edges` [T, K], 0 where
    padded; `is_padding` [T, K], or None where nothing is.
    """

    targets: Tensor | None
    sources: Tensor
    edges: Tensor
    is_padding: Tensor | None

    @property
    def num_slots(self) -> int:
        """Return K."""
        return self.sources.shape[1]


class Neighbours:
    """Edges of one type between the nodes of one graph or one batch."""

    def __init__(
        self, sources: Tensor, targets: Tensor, *, num_sources: int, num_targets: int
    ) -> None:
        """Take the nodes that each edge joins, both [E].

        Raises:
            ValueError: an index is not that of a node.
        """
        for name, index, size in (
            ("source", sources, num_sources),
            ("target", targets, num_targets),
        ):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                msg = (
                    f"{name} indices of edges must be in [0, {size - 1}], "
                    f"got {int(index.min())} to {int(index.max())}"
                )
                raise ValueError(msg)
        self.sources, self.targets = sources, targets
        self.num_sources, self.num_targets = num_sources, num_targets

    @property
    def num_edges(self) -> int:
        """Return the number of edges."""
        return self.sources.shape[0]

    @cached_property
    def edge_index(self) -> Tensor:
        """Return source and target of each edge as PyG wants them, [2, E]."""
        return torch.stack([self.sources, self.targets])

    @cached_property
    def reverse(self) -> "Neighbours":
        """Return the same edges read the other way."""
        return Neighbours(
            self.targets,
            self.sources,
            num_sources=self.num_targets,
            num_targets=self.num_sources,
        )

    @cached_property
    def degrees(self) -> Tensor:
        """Return how many neighbours each target has, [targets]."""
        return torch.bincount(self.targets, minlength=self.num_targets)

    @cached_property
    def log_counts(self) -> Tensor:
        """Return the logarithm of 1 + degree, scaled as counts in the registry, [targets]."""
        return torch.log1p(self.degrees.float()) / COUNT.scale

    @cached_property
    def order(self) -> Tensor:
        """Return the edges ordered by target, [E]."""
        return torch.argsort(self.targets, stable=True)

    @cached_property
    def starts(self) -> Tensor:
        """Return where each target's edges begin in `order`, and where all end, [targets + 1]."""
        return torch.cat([self.degrees.new_zeros(1), self.degrees.cumsum(0)])

    @cached_property
    def is_single(self) -> bool:
        """Whether no target has two neighbours."""
        return self.num_targets == 0 or int(self.degrees.max()) <= 1

    def check_single(self) -> None:
        """Check that no target has two neighbours.

        Raises:
            ValueError: one has, over an edge type that its schema says is single.
        """
        if not self.is_single:
            target = int(self.degrees.argmax())
            msg = (
                f"target {target} has {int(self.degrees[target])} neighbours over an edge type "
                "whose targets have at most 1; correct the edges, or the schema"
            )
            raise ValueError(msg)

    @cached_property
    def used_sources(self) -> Tensor | None:
        """Return the sources that have an edge, [U], or None if that is more than half of all.

        Of links, each edge type has but a few: what the others would send need not be computed.
        """
        used = torch.bincount(self.sources, minlength=self.num_sources).nonzero().squeeze(1)
        return used if 2 * len(used) <= self.num_sources else None

    @cached_property
    def arrays(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Return order, sources and starts as the kernels want them; sources among the used."""
        sources = self.sources
        if self.used_sources is not None:
            sources = torch.searchsorted(self.used_sources, sources)
        return self.order.numpy(), sources.numpy(), self.starts.numpy()

    @cached_property
    def tables(self) -> tuple[NeighbourTable, ...]:
        """Return one table for each class of degrees: 1, 2, 3 to 4, 5 to 8 and so on."""
        classes = torch.ceil(torch.log2(self.degrees.clamp(min=1).double())).long()
        classes[self.degrees == 0] = -1
        return tuple(
            self._table(classes == one) for one in sorted(set(classes.tolist())) if one >= 0
        )

    def _table(self, is_member: Tensor) -> NeighbourTable:
        targets = is_member.nonzero().squeeze(1)
        degrees = self.degrees[targets].unsqueeze(1)  # [T, 1]
        slots = torch.arange(int(degrees.max()), device=degrees.device)  # [K]
        is_padding = slots >= degrees
        places = (self.starts[targets].unsqueeze(1) + slots).masked_fill(is_padding, 0)
        edges = self.order[places].masked_fill(is_padding, 0)
        return NeighbourTable(
            targets=None if len(targets) == self.num_targets else targets,
            sources=self.sources[edges],
            edges=edges,
            is_padding=is_padding if bool(is_padding.any()) else None,
        )

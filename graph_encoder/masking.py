"""Hides parts of a state from the encoder, as if nobody had been able to ask for them.

A hidden value is what an absent one is: 0 with flag 0. So whoever restores it has only its
neighbours in the graph and the node's other values to go by.

Does not know: what is to be restored from what is left (`pretraining.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..env.state.feature import Node
from ..env.state.registry import FEATURES_BY_NODE
from .graph_batch import GraphBatch

NUM_FEATURES = {str(node): len(features) for node, features in FEATURES_BY_NODE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskConfig:
    """How much is hidden."""

    value_frac: float = 0.3
    """Single values, of those that are known."""
    node_frac: float = 0.1
    """Nodes of which all values are hidden."""

    def __post_init__(self) -> None:
        for name in ("value_frac", "node_frac"):
            if not 0.0 <= getattr(self, name) < 1.0:
                msg = f"{name} must be in [0, 1), got {getattr(self, name)}"
                raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedGraphs:
    """Graphs with values hidden.

    Shapes (N nodes of the batch, F features of a kind): `is_hidden[kind]` [N, F], with the fleet's
    own under `fleet`; True for values that were known and are hidden.
    """

    graphs: GraphBatch
    is_hidden: Mapping[str, Tensor]


def values_of(graphs: GraphBatch, kind: str) -> tuple[Tensor, Tensor]:
    """Return the scaled values of a node kind, or of `fleet`, and which are known; both [N, F]."""
    rows = graphs.fleet if kind == Node.FLEET else graphs.x[kind]
    num = NUM_FEATURES[kind]
    return rows[:, :num], rows[:, num : 2 * num] > 0.5


def hide(graphs: GraphBatch, config: MaskConfig, generator: torch.Generator) -> MaskedGraphs:
    """Return the graphs with random values and nodes hidden; the originals stay as they are."""
    is_hidden: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for kind in (*graphs.x, str(Node.FLEET)):
        _, is_known = values_of(graphs, kind)
        draws = torch.rand(is_known.shape, generator=generator)
        whole = torch.rand((len(is_known), 1), generator=generator) < config.node_frac
        hidden = is_known & ((draws < config.value_frac) | whole)
        row = (graphs.fleet if kind == Node.FLEET else graphs.x[kind]).clone()
        num = NUM_FEATURES[kind]
        row[:, :num].masked_fill_(hidden, 0.0)
        row[:, num : 2 * num].masked_fill_(hidden, 0.0)
        is_hidden[kind], rows[kind] = hidden, row
    fleet = rows.pop(str(Node.FLEET))
    return MaskedGraphs(graphs=replace(graphs, x=rows, fleet=fleet), is_hidden=is_hidden)

"""Why an output is what it is: each feature's share of the difference from a baseline.

The shares are integrated gradients, and sum to the difference of the outputs up to `residual`. The
baseline is the same fleet of which nothing is known. Who attends to whom: `attention_weights.py`.

Does not know: what the output means; any scalar of the encoded graph will do, a head's as well.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attention_encoder import AttentionEncoder, EncodedGraphs
from .attention_weights import NodeNames, node_name
from .backend import Backend
from .compiled_attention import KERNELS
from .graph_batch import GraphBatch
from .integrated_gradients import NUM_PIECES, Inputs, Line, integrated_gradients
from .schema import GraphSchema, is_count_column, signal_of

FLEET = "fleet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What one signal of one node (or edge) adds to the output."""

    where: str
    kind: str
    """Node kind, `fleet`, or relation of the edge."""
    signal: str
    """Feature of the registry, with its flag; `age`; or an attribute of the edge."""
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """An output as a sum of contributions, largest first."""

    output: float
    baseline_output: float
    contributions: tuple[Contribution, ...]

    @property
    def residual(self) -> float:
        """Return what the contributions leave unexplained."""
        explained = sum(one.amount for one in self.contributions)
        return self.output - self.baseline_output - explained

    def by_signal(self) -> dict[tuple[str, str], float]:
        """Return the sum over all nodes of each kind and signal, largest first."""
        sums: dict[tuple[str, str], float] = defaultdict(float)
        for one in self.contributions:
            sums[one.kind, one.signal] += one.amount
        return dict(sorted(sums.items(), key=lambda item: -abs(item[1])))

    def text(self, num_lines: int = 10) -> str:
        """Return the largest contributions as lines to read."""
        head = f"output {self.output:.4g}, {self.baseline_output:.4g} if nothing were known"
        lines = [
            f"{one.amount:+.4g}  {one.where}: {one.signal}"
            for one in self.contributions[:num_lines]
        ]
        rest = sum(one.amount for one in self.contributions[num_lines:])
        return "\n".join([head, *lines, f"{rest:+.4g}  all others", f"{self.residual:+.2g}  error"])


def explain(
    encoder: AttentionEncoder,
    graph: GraphBatch,
    output: Callable[[EncodedGraphs], Tensor],
    *,
    error_frac: float = 0.01,
    max_pieces: int = 128,
    names: NodeNames | None = None,
    backend: Backend = KERNELS,
) -> Explanation:
    """Return what each signal contributes to a scalar of the encoded graph.

    `error_frac` is the residual that is accepted, as a share of the difference from the baseline;
    it holds as long as `max_pieces` pieces of the way are enough.

    Raises:
        ValueError: the graph is a batch of several, or there are too few pieces.
    """
    if graph.num_graphs != 1:
        msg = f"graph must be a single one, got a batch of {graph.num_graphs}; explain each alone"
        raise ValueError(msg)
    if max_pieces < NUM_PIECES:
        msg = f"max_pieces must be at least {NUM_PIECES}, got {max_pieces}"
        raise ValueError(msg)

    def run(inputs: Inputs) -> Tensor:
        return output(encoder.run(_with_inputs(graph, inputs), backend))

    inputs = _inputs(graph)
    baseline = {key: _unknown(encoder.schema, key, rows) for key, rows in inputs.items()}
    shares = integrated_gradients(
        Line(run=run, start=baseline, end=inputs), error_frac=error_frac, max_pieces=max_pieces
    )
    found = [
        one
        for key, rows in shares.items()
        for one in _named(encoder.schema, graph, key, rows, names)
    ]
    with torch.no_grad():
        now, before = float(run(inputs)), float(run(baseline))
    return Explanation(
        output=now,
        baseline_output=before,
        contributions=tuple(sorted(found, key=lambda one: -abs(one.amount))),
    )


def _inputs(graph: GraphBatch) -> Inputs:
    """Return the tensors that shares go to, by node kind, `("fleet",)` or edge type."""
    inputs: dict[tuple[str, ...], Tensor] = {(node,): rows for node, rows in graph.x.items()}
    inputs[FLEET,] = graph.fleet
    for edge_type, rows in graph.attributes.items():
        inputs[edge_type] = rows
    return inputs


def _with_inputs(graph: GraphBatch, inputs: Inputs) -> GraphBatch:
    return replace(
        graph,
        x={node: inputs[node,] for node in graph.x},
        fleet=inputs[FLEET,],
        attributes={edge_type: inputs[edge_type] for edge_type in graph.attributes},
    )


def _columns(schema: GraphSchema, key: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of an input's columns."""
    if key == (FLEET,):
        return schema.fleet_columns
    if len(key) == 1:
        return schema.columns[key[0]]
    source, relation, target = key
    return schema.attributes[source, relation, target]


def _unknown(schema: GraphSchema, key: tuple[str, ...], rows: Tensor) -> Tensor:
    """Return an input of which nothing is known but the topology."""
    keep = [is_count_column(name) for name in _columns(schema, key)]
    return rows * torch.tensor(keep, dtype=rows.dtype)


def _named(
    schema: GraphSchema,
    graph: GraphBatch,
    key: tuple[str, ...],
    shares: Tensor,
    names: NodeNames | None,
) -> list[Contribution]:
    """Return the contributions of an input that are not 0, those of a signal's columns summed."""
    of_columns = list(map(signal_of, _columns(schema, key)))
    signals = list(dict.fromkeys(of_columns))
    signal = torch.tensor(list(map(signals.index, of_columns)), dtype=torch.long)
    sums = shares.new_zeros(len(shares), len(signals)).index_add(1, signal, shares)
    return [
        Contribution(
            where=_place(graph, key, row, names),
            kind=key[0] if len(key) == 1 else key[1],
            signal=signals[column],
            amount=float(sums[row, column]),
        )
        for row, column in sums.nonzero().tolist()
    ]


def _place(graph: GraphBatch, key: tuple[str, ...], row: int, names: NodeNames | None) -> str:
    if key == (FLEET,):
        return FLEET
    if len(key) == 1:
        return node_name(names, key[0], row)
    source, relation, target = key
    neighbours = graph.neighbours[source, relation, target]
    ends = (
        node_name(names, source, int(neighbours.sources[row])),
        node_name(names, target, int(neighbours.targets[row])),
    )
    return f"{ends[0]} -{relation}-> {ends[1]}"

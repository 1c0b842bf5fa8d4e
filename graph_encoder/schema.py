"""What the encoder's graphs look like: node kinds, edge types and the columns that each carries.

An edge type is (source kind, relation, target kind), as in PyG. Every edge kind of the state is
read both ways; backwards its relation is called `rev_*`, and `serves` for `waits_on`.

Does not know: values (`fleet_graph.py`, `observation_graph.py`), or the network.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..env.state.edges import EDGE_TYPES, Edge
from ..env.state.feature import Node
from ..env.state.registry import FEATURES_BY_NODE

EdgeType = tuple[str, str, str]

AGE_COLUMNS = ("log_age", "is_age_known")
"""Columns that say how old a node's values are."""

_KNOWN = "is_known"
_NUMBER = "number"
_BACKWARDS = {Edge.WAITS_ON: "serves"}

_HAVE_ONE_TARGET = {Edge.IN_SERVER, Edge.IN_ZONE, Edge.NVLINK, Edge.PCIE}
"""Edge kinds of which a source has one at most: one server, one zone, one fabric, one root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSchema:
    """Names of all columns of a graph's tensors, in their order."""

    columns: Mapping[str, tuple[str, ...]]
    """Inputs of each node kind."""
    attributes: Mapping[EdgeType, tuple[str, ...]]
    """Attributes of each edge type; every edge type is a key."""
    fleet_columns: tuple[str, ...]
    """Inputs of the graph as a whole."""
    single: frozenset[EdgeType]
    """Edge types over which no target has two neighbours, so that there is nothing to weigh."""

    def __post_init__(self) -> None:
        for source, relation, target in self.attributes:
            for node in (source, target):
                if node not in self.columns:
                    known = ", ".join(self.columns)
                    msg = f"edge type '{relation}' joins unknown node kind '{node}'; known: {known}"
                    raise ValueError(msg)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Return the node kinds."""
        return tuple(self.columns)

    @property
    def edge_types(self) -> tuple[EdgeType, ...]:
        """Return the edge types."""
        return tuple(self.attributes)


def forward_type(edge: Edge) -> EdgeType:
    """Return the edge type of an edge kind read from source to target."""
    kind = EDGE_TYPES[edge]
    return str(kind.source), str(edge), str(kind.target)


def backward_type(edge: Edge) -> EdgeType:
    """Return the edge type of an edge kind read from target to source."""
    kind = EDGE_TYPES[edge]
    return str(kind.target), _BACKWARDS.get(edge, f"rev_{edge}"), str(kind.source)


def single_types(edge_types: Iterable[EdgeType]) -> frozenset[EdgeType]:
    """Return those of the edge types over which a target can only have one neighbour."""
    return frozenset(map(backward_type, _HAVE_ONE_TARGET)).intersection(edge_types)


def known_columns(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns of values, then of the flags that say which of them are known."""
    return (*names, *(f"{_KNOWN}({name})" for name in names))


def signal_of(column: str) -> str:
    """Return the feature that a column or its flag belongs to; `age` for both columns of age."""
    if column in AGE_COLUMNS:
        return "age"
    return column.removeprefix(f"{_KNOWN}(").removesuffix(")") if _KNOWN in column else column


def count_column(edge_type: EdgeType) -> str:
    """Return the name of the column with a target's number of neighbours over an edge type."""
    source, relation, _ = edge_type
    return f"{_NUMBER}({source} {relation})"


def is_count_column(column: str) -> bool:
    """Whether a column is a number of neighbours."""
    return column.startswith(f"{_NUMBER}(")


def _fleet_schema() -> GraphSchema:
    attributes: dict[EdgeType, tuple[str, ...]] = {}
    for edge, kind in EDGE_TYPES.items():
        names = known_columns(tuple(feature.name for feature in kind.features))
        attributes[forward_type(edge)] = attributes[backward_type(edge)] = names
    columns = {}
    for node, features in FEATURES_BY_NODE.items():
        values = known_columns(tuple(feature.name for feature in features))
        counts = (count_column(edge_type) for edge_type in attributes if edge_type[2] == node)
        columns[str(node)] = (*values, *AGE_COLUMNS, *counts)
    fleet_columns = columns.pop(str(Node.FLEET))
    return GraphSchema(
        columns=columns,
        attributes=attributes,
        fleet_columns=fleet_columns,
        single=single_types(attributes),
    )


FLEET_SCHEMA = _fleet_schema()
"""The whole registry: scaled values, flags of what is known, age, numbers of neighbours."""

"""The state as plain vectors, without an encoder: what an embedding is measured against.

`flat_vector` is everything that the encoder sees, end to end. `summary_vector` is what does not
depend on the order of the nodes: of each feature its mean, spread, extremes and quantiles over the
nodes of its kind, and the share of nodes that know it.

Does not know: probes, or the encoder.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from ..env.state.feature import FloatArray, Node
from ..env.state.registry import FEATURES_BY_NODE
from .graph_batch import GraphBatch

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
SUMMARIES = ("mean", "spread", "least", "most", *(f"q{round(100 * q)}" for q in QUANTILES), "known")
"""Statistics of a feature over the nodes of its kind, in their order."""


def flat_vector(graph: GraphBatch) -> NDArray[np.float16]:
    """Return all inputs of the nodes, the fleet and the edges of one graph, [numbers]."""
    rows = [*graph.x.values(), graph.fleet]
    # each edge is read both ways with the same attributes
    rows += [graph.attributes[kind] for kind in graph.attributes if not _is_reverse(kind[1])]
    flat: NDArray[np.float16] = (
        torch.cat([one.flatten() for one in rows]).numpy().astype(np.float16)
    )
    return flat


def _is_reverse(relation: str) -> bool:
    return relation.startswith("rev_") or relation == "serves"


def summary_names() -> list[str]:
    """Return the names of the numbers of a summary, as `kind.feature.statistic`."""
    return [
        f"{node}.{feature.name}.{statistic}"
        for node, features in FEATURES_BY_NODE.items()
        for statistic in SUMMARIES
        for feature in features
    ]


def summary_vector(graph: GraphBatch) -> FloatArray:
    """Return the summary of one graph, [numbers]; a statistic of nothing known is 0."""
    parts = []
    for node, features in FEATURES_BY_NODE.items():
        rows = (graph.fleet if node is Node.FLEET else graph.x[str(node)]).numpy()
        values, is_known = np.split(rows[:, : 2 * len(features)], 2, axis=1)
        parts.append(_statistics(values, is_known > 0.5))
    return np.concatenate(parts)


def _statistics(values: NDArray[np.float32], is_known: NDArray[np.bool_]) -> FloatArray:
    """Return the statistics of each column's known values, [statistics x columns]."""
    num_nodes, num_columns = values.shape
    if not num_nodes:
        return np.zeros(len(SUMMARIES) * num_columns)
    count = is_known.sum(axis=0)
    mean = (values * is_known).sum(axis=0) / np.maximum(count, 1)
    squares = ((values - mean) ** 2 * is_known).sum(axis=0) / np.maximum(count, 1)
    ordered = np.sort(np.where(is_known, values, np.inf), axis=0)  # what is unknown comes last
    places = [np.rint(q * np.maximum(count - 1, 0)).astype(int) for q in (0.0, 1.0, *QUANTILES)]
    columns = np.arange(num_columns)
    ranks = [np.where(count > 0, ordered[place, columns], 0.0) for place in places]
    return np.concatenate([mean, np.sqrt(squares), *ranks, count / num_nodes])

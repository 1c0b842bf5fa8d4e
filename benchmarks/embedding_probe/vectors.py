"""Vectors of recorded states: raw, summarised, and encoded by some encoders.

Does not know: probes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_probe.runs import Runs, recorded_run
from trimtab.env.scenario import Part
from trimtab.env.state.feature import FloatArray, Node
from trimtab.env.state.registry import FEATURES_BY_NODE
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.dense_encoder import DenseEncoder
from trimtab.graph_encoder.fleet_graph import GraphBuilder
from trimtab.graph_encoder.raw_vectors import (
    SUMMARIES,
    flat_vector,
    summary_names,
    summary_vector,
)

# Share of a run's states that are fitted on; the rest test what comes later in the same run.
_FIT_FRAC = 2 / 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """All states of all runs.

    Shapes (N states): `flat`, `summaries` and each of `embeddings` [N, numbers]; targets `fleet`
    [N] and `tenants` [N, T]; the rest [N].
    """

    flat: NDArray[np.float16]
    summaries: FloatArray
    embeddings: Mapping[str, FloatArray]
    fleet: FloatArray
    tenants: FloatArray
    run: NDArray[np.int64]
    is_fit: NDArray[np.bool_]
    is_unseen: NDArray[np.bool_]
    """Of runs with other seeds, from the later part of the trace."""

    @property
    def is_later(self) -> NDArray[np.bool_]:
        """Of runs that are fitted on, but later."""
        return ~self.is_fit & ~self.is_unseen

    @property
    def late_only(self) -> FloatArray:
        """Return the share of late first tokens in the window that has just ended, [N, 1]."""
        place = summary_names().index(f"{Node.FLEET}.late_frac.mean")
        return self.summaries[:, place : place + 1]

    @property
    def requests_only(self) -> FloatArray:
        """Return what the fleet and the tenants say of themselves, without any other node."""
        places, start = [], 0
        for node, features in FEATURES_BY_NODE.items():
            end = start + len(SUMMARIES) * len(features)
            if node in (Node.FLEET, Node.TENANT):
                places.append(self.summaries[:, start:end])
            start = end
        return np.concatenate(places, axis=1)


def record(
    runs: Runs, encoders: Mapping[str, AttentionEncoder], directory: Path | None
) -> Iterator[tuple[int, Recorded]]:
    """Yield the number of each run and its vectors."""
    dense = {name: DenseEncoder(encoder) for name, encoder in encoders.items()}
    builder = GraphBuilder()
    for number, (part, seed) in enumerate(runs.seeds):
        sequence = recorded_run(runs, part, seed, directory)
        graphs = [builder.build(state) for state in sequence.states]
        with torch.inference_mode():
            embeddings = {
                name: np.concatenate([encoder(graph).pooled.numpy() for graph in graphs])
                for name, encoder in dense.items()
            }
        is_test = part is Part.TEST
        tenants, fleet = sequence.tenant_violation_frac, sequence.violation_frac
        windows = np.arange(len(graphs))
        yield (
            number,
            Recorded(
                flat=np.stack([flat_vector(graph) for graph in graphs]),
                summaries=np.stack([summary_vector(graph) for graph in graphs]),
                embeddings=embeddings,
                fleet=fleet,
                tenants=np.where(np.isnan(tenants), fleet[:, None], tenants),
                run=np.full(len(graphs), number),
                is_fit=(windows < _FIT_FRAC * len(graphs)) & (not is_test),
                is_unseen=np.full(len(graphs), is_test),
            ),
        )


def joined(parts: list[Recorded]) -> Recorded:
    """Return the vectors of several runs as one."""

    def along(name: str) -> NDArray[np.generic]:
        return np.concatenate([getattr(part, name) for part in parts])

    names = ("flat", "summaries", "fleet", "tenants", "run", "is_fit", "is_unseen")
    embeddings = {
        name: np.concatenate([part.embeddings[name] for part in parts])
        for name in parts[0].embeddings
    }
    return Recorded(embeddings=embeddings, **{name: along(name) for name in names})

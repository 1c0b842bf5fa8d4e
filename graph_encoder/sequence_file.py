"""Sequences of states as files: single precision, and what does not change only once.

Absent values are NaN in the file, so that their masks need no place of their own.

Does not know: how sequences are recorded, or the encoder.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..env.cluster import ClusterSpec
from ..env.state.cluster_state import ClusterState
from ..env.state.edges import EDGE_TYPES, Edge, Edges
from ..env.state.feature import Node
from ..env.state.registry import registry_hash
from ..traces.errors import BundleError
from .state_sequences import StateSequence

Arrays = Mapping[str, NDArray[np.generic]]
_TARGETS = ("violation_frac", "tenant_violation_frac", "replica_violation_frac")
_GPU_PLACES = ("gpu_replica", "gpu_server")


def save_sequence(path: Path, sequence: StateSequence) -> None:
    """Write a sequence under a temporary name, then rename it into place."""
    states = sequence.states
    arrays: dict[str, NDArray[np.generic]] = {
        "registry_hash": np.array(registry_hash()),
        "now_s": np.array([state.now_s for state in states]),
    }
    arrays |= {name: getattr(sequence, name) for name in _TARGETS}
    arrays |= {name: getattr(states[0], name) for name in _GPU_PLACES}
    for node in Node:
        known = [np.where(state.is_valid[node], state.values[node], np.nan) for state in states]
        arrays |= _split(f"values/{node}", np.array(known, dtype=np.float32))
        ages = np.array([state.age_s[node] for state in states], dtype=np.float32)
        arrays |= _split(f"age_s/{node}", ages[:, None])
    for edge, edges in states[0].edges.items():
        arrays |= {f"source/{edge}": edges.source, f"target/{edge}": edges.target}
        values = np.array([state.edges[edge].values for state in states], dtype=np.float32)
        arrays |= _split(f"edges/{edge}", values)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


def load_sequence(path: Path, cluster: ClusterSpec) -> StateSequence:
    """Read a sequence of a cluster.

    Raises:
        BundleError: it was recorded with another registry.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    found = str(arrays["registry_hash"])
    if found != registry_hash():
        msg = (
            f"{path} was recorded with registry {found}, this is {registry_hash()}; "
            "delete the file and record it again"
        )
        raise BundleError(msg)
    values = {node: _join(f"values/{node}", arrays) for node in Node}
    ages = {node: _join(f"age_s/{node}", arrays)[:, 0] for node in Node}
    kinds = [edge for edge in EDGE_TYPES if f"source/{edge}" in arrays]
    attributes = {edge: _join(f"edges/{edge}", arrays) for edge in kinds}

    def edges_at(window: int) -> dict[Edge, Edges]:
        return {
            edge: Edges(
                source=arrays[f"source/{edge}"],
                target=arrays[f"target/{edge}"],
                values=attributes[edge][window],
            )
            for edge in kinds
        }

    states = tuple(
        ClusterState(
            now_s=float(now_s),
            values={node: values[node][window] for node in Node},
            is_valid={node: ~np.isnan(values[node][window]) for node in Node},
            age_s={node: ages[node][window] for node in Node},
            gpu_replica=arrays["gpu_replica"],
            gpu_server=arrays["gpu_server"],
            edges=edges_at(window),
        )
        for window, now_s in enumerate(arrays["now_s"])
    )
    return StateSequence(
        cluster=cluster, states=states, **{name: arrays[name] for name in _TARGETS}
    )


def _split(name: str, values: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    """Return the columns that change and, once, those that do not.

    Shapes (W windows, N rows, F columns): `values` [W, N, F].
    """
    is_same = (values == values[0]) | (np.isnan(values) & np.isnan(values[0]))
    is_still = is_same.all(axis=(0, 1))
    return {
        f"{name}/is_still": is_still,
        f"{name}/still": values[0][:, is_still],
        f"{name}/moving": values[:, :, ~is_still],
    }


def _join(name: str, arrays: Arrays) -> NDArray[np.float64]:
    """Return what `_split` has taken apart."""
    is_still, still, moving = (arrays[f"{name}/{part}"] for part in ("is_still", "still", "moving"))
    values = np.empty((len(moving), len(still), len(is_still)))
    values[:, :, is_still.astype(bool)] = still
    values[:, :, ~is_still.astype(bool)] = moving
    return values

"""States on their way between processes: MessagePack with the arrays' own bytes.

Of the edges only those that say which GPU serves which replica go along, since an observation is
made with them. Whatever comes in is checked before it is used.

Does not know: who sends a state, or how.
"""

from typing import Any

import msgspec
import numpy as np

from ...env.state.cluster_state import ClusterState
from ...env.state.edges import EDGE_TYPES, Edge, Edges
from ...env.state.feature import Node
from ...env.state.registry import FEATURES_BY_NODE, registry_hash
from ...traces.errors import TrimtabError

_MAX_NODES = 1_000_000


class StateError(TrimtabError):
    """Bytes that are no state, or one of another feature registry."""


class _Wire(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A state as it travels; arrays are float64 and int64 in C order."""

    registry_hash: str
    now_s: float
    values: dict[str, bytes]
    """NaN where absent."""
    age_s: dict[str, bytes]
    gpu_replica: bytes
    gpu_server: bytes
    hosts: tuple[bytes, bytes]
    """GPUs and the replicas that they serve; empty where `gpu_replica` says it all."""


_DECODER = msgspec.msgpack.Decoder(_Wire)


def encode_state(state: ClusterState) -> bytes:
    """Return a state as bytes."""
    wire = _Wire(
        registry_hash=registry_hash(),
        now_s=state.now_s,
        values={
            str(node): np.where(state.is_valid[node], table, np.nan).tobytes()
            for node, table in state.values.items()
        },
        age_s={str(node): ages.tobytes() for node, ages in state.age_s.items()},
        gpu_replica=state.gpu_replica.astype(np.int64).tobytes(),
        gpu_server=state.gpu_server.astype(np.int64).tobytes(),
        hosts=_hosts(state),
    )
    return msgspec.msgpack.encode(wire)


def decode_state(data: bytes) -> ClusterState:
    """Return the state that bytes hold.

    Raises:
        StateError: they hold none, or one of another registry.
    """
    try:
        wire = _DECODER.decode(data)
    except msgspec.DecodeError as error:
        msg = f"these {len(data)} bytes are no state of a fleet: {error}"
        raise StateError(msg) from error
    if wire.registry_hash != registry_hash():
        msg = (
            f"the state is of feature registry {wire.registry_hash}, but this Trimtab has "
            f"{registry_hash()}; run the same version on both sides"
        )
        raise StateError(msg)
    values = {node: _table(wire, node) for node in Node}
    ages = {node: _array(wire.age_s.get(str(node)), np.float64, f"{node} ages") for node in Node}
    try:
        return ClusterState(
            now_s=wire.now_s,
            values=values,
            is_valid={node: np.isfinite(table) for node, table in values.items()},
            age_s=ages,
            gpu_replica=_indices(wire.gpu_replica, "gpu_replica", wire, Node.REPLICA, lowest=-1),
            gpu_server=_indices(wire.gpu_server, "gpu_server", wire, Node.SERVER),
            edges=_edges(wire),
        )
    except ValueError as error:
        msg = f"the state contradicts itself: {error}"
        raise StateError(msg) from error


def _hosts(state: ClusterState) -> tuple[bytes, bytes]:
    hosts = state.edges.get(Edge.HOSTS)
    if hosts is None:
        return b"", b""
    return hosts.source.astype(np.int64).tobytes(), hosts.target.astype(np.int64).tobytes()


def _edges(wire: _Wire) -> dict[Edge, Edges]:
    """Return the edges that go along, without their attributes."""
    if not any(wire.hosts):
        return {}
    source = _indices(wire.hosts[0], "hosts", wire, Node.GPU)
    target = _indices(wire.hosts[1], "hosts", wire, Node.REPLICA)
    if source.size != target.size:
        msg = f"hosts must have as many GPUs as replicas, got {source.size} and {target.size}"
        raise StateError(msg)
    width = len(EDGE_TYPES[Edge.HOSTS].features)
    values = np.full((source.size, width), np.nan)
    return {Edge.HOSTS: Edges(source=source, target=target, values=values)}


def _indices(data: bytes, name: str, wire: _Wire, node: Node, *, lowest: int = 0) -> np.ndarray:
    """Return indices of nodes of a kind."""
    found = _array(data, np.int64, name)
    number = len(wire.age_s.get(str(node), b"")) // 8
    if found.size and not (found.min() >= lowest and found.max() < number):
        msg = f"{name} must be among {number} {node} nodes, got {found.min()} to {found.max()}"
        raise StateError(msg)
    return found


def _table(wire: _Wire, node: Node) -> np.ndarray:
    flat = _array(wire.values.get(str(node)), np.float64, f"{node} values")
    width = len(FEATURES_BY_NODE[node])
    if flat.size % width:
        msg = f"{node} values must be a multiple of {width} features, got {flat.size} numbers"
        raise StateError(msg)
    return flat.reshape(-1, width)


def _array(data: bytes | None, dtype: Any, name: str) -> np.ndarray:
    if data is None or len(data) % 8 or len(data) > 8 * _MAX_NODES:
        found = "none" if data is None else f"{len(data)} bytes"
        msg = f"{name} must be whole numbers of 8 bytes, at most {_MAX_NODES}, got {found}"
        raise StateError(msg)
    return np.frombuffer(data, dtype).copy()

"""States and windows of a fleet as bytes: msgpack with the raw bytes of each array.

Numbers arrive bit for bit. Types, shapes and the feature registry are checked before use.

Does not know: how the bytes travel.
"""

from typing import Any, Final

import msgspec
import numpy as np

from ...env.fleet import WindowOutcome
from ...env.guard import UNGUARDED
from ...env.state.cluster_state import ClusterState
from ...env.state.edges import Edge, Edges
from ...env.state.feature import Node
from ...env.state.registry import registry_hash
from ..telemetry.frames import FrameError
from ..telemetry.reasons import Reason

_DTYPES: Final = {"<f8": np.float64, "<i8": np.int64, "|b1": np.bool_}
_MAX_NUMBERS = 64 * 1024 * 1024


class _Array(msgspec.Struct, array_like=True, frozen=True):
    kind: str
    shape: tuple[int, ...]
    data: bytes


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    registry_hash: str
    now_s: float
    values: dict[str, _Array]
    is_valid: dict[str, _Array]
    age_s: dict[str, _Array]
    gpu_replica: _Array
    gpu_server: _Array
    edges: dict[str, dict[str, _Array]]


class _Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    start_s: float
    end_s: float
    num_arrived: int
    num_finished: int
    num_shed: int
    num_failed: int
    arrived_weight: float
    credit: float
    energy_j: float | None


_STATE_DECODER = msgspec.msgpack.Decoder(_State)
_WINDOW_DECODER = msgspec.msgpack.Decoder(_Window)


def _packed(array: np.ndarray) -> _Array:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return _Array(little.dtype.str, little.shape, little.tobytes())


def _unpacked(packed: _Array) -> Any:
    dtype = _DTYPES.get(packed.kind)
    size = 1
    for length in packed.shape:
        size *= length if 0 <= length <= _MAX_NUMBERS else _MAX_NUMBERS + 1
    if dtype is None or len(packed.data) != size * np.dtype(dtype).itemsize:
        detail = f"{len(packed.data)} bytes for an array {packed.kind!r} of shape {packed.shape}"
        raise FrameError(Reason.WRONG_SHAPE, detail)
    return np.frombuffer(packed.data, packed.kind).reshape(packed.shape).astype(dtype)


def encode_state(state: ClusterState) -> bytes:
    """Return a state as bytes."""
    edges = {
        str(kind): {
            "source": _packed(edge.source),
            "target": _packed(edge.target),
            "values": _packed(edge.values),
        }
        for kind, edge in state.edges.items()
    }
    return msgspec.msgpack.encode(
        _State(
            registry_hash=registry_hash(),
            now_s=state.now_s,
            values={str(node): _packed(state.values[node]) for node in Node},
            is_valid={str(node): _packed(state.is_valid[node]) for node in Node},
            age_s={str(node): _packed(state.age_s[node]) for node in Node},
            gpu_replica=_packed(state.gpu_replica),
            gpu_server=_packed(state.gpu_server),
            edges=edges,
        )
    )


def decode_state(data: bytes) -> ClusterState:
    """Return the state that bytes are of.

    Raises:
        FrameError: they are of none, or of one with other features than this code's.
    """
    try:
        raw = _STATE_DECODER.decode(data)
    except msgspec.MsgspecError as error:
        raise FrameError(Reason.MALFORMED, str(error)) from error
    if raw.registry_hash != registry_hash():
        detail = f"feature registry is {raw.registry_hash}, this code has {registry_hash()}"
        raise FrameError(Reason.WRONG_SIGNALS, detail)
    try:
        return ClusterState(
            now_s=raw.now_s,
            values={node: _unpacked(raw.values[node]) for node in Node},
            is_valid={node: _unpacked(raw.is_valid[node]) for node in Node},
            age_s={node: _unpacked(raw.age_s[node]) for node in Node},
            gpu_replica=_unpacked(raw.gpu_replica),
            gpu_server=_unpacked(raw.gpu_server),
            edges={
                Edge(kind): Edges(**{name: _unpacked(array) for name, array in edge.items()})
                for kind, edge in raw.edges.items()
            },
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FrameError(Reason.WRONG_SHAPE, f"no state: {error}") from error


def encode_window(window: WindowOutcome) -> bytes:
    """Return a window's outcome as bytes; what a guard did in it is left out."""
    fields = {name: getattr(window, name) for name in _Window.__struct_fields__}
    if window.energy_j != window.energy_j:
        fields["energy_j"] = None
    return msgspec.msgpack.encode(_Window(**fields))


def decode_window(data: bytes) -> WindowOutcome:
    """Return the outcome that bytes are of.

    Raises:
        FrameError: they are of none.
    """
    try:
        raw = msgspec.structs.asdict(_WINDOW_DECODER.decode(data))
    except msgspec.MsgspecError as error:
        raise FrameError(Reason.MALFORMED, str(error)) from error
    energy_j = raw.pop("energy_j")
    return WindowOutcome(**raw, energy_j=np.nan if energy_j is None else energy_j, guard=UNGUARDED)

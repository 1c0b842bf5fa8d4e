"""The four-dimensional state of a fleet, and the registry of every feature in it.

`FEATURES` is the only place where a feature's name, unit, dimension, range, normaliser and
sources are written. A `ClusterState` holds raw values in those units; `observation.py` scales
and pads them.

Does not know: how the values are gathered.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Dimension(StrEnum):
    """The four dimensions of the state."""

    COMPUTE = "compute"
    MEMORY = "memory"
    COMMUNICATION = "communication"
    SERVICE = "service"


class Node(StrEnum):
    """Kinds of nodes in the state graph; `FLEET` is the graph as a whole."""

    REPLICA = "replica"
    GPU = "gpu"
    SERVER = "server"
    TENANT = "tenant"
    FLEET = "fleet"


NORMALISERS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "identity": lambda x: x,
    "log1p": np.log1p,
    "log10": lambda x: np.log10(np.maximum(x, 1e-9)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One signal: what it is, how it is scaled, and where it comes from."""

    name: str
    node: Node
    dimension: Dimension
    unit: str
    low: float
    high: float
    normaliser: str
    offset: float = 0.0
    """Subtracted after the normaliser."""
    scale: float = 1.0
    """Divided by after the offset."""
    live_source: str | None
    """Where a live fleet reads it; None if it cannot."""
    simulator_source: str


def _feature(
    node: Node,
    dimension: Dimension,
    name: str,
    unit: str,
    bounds: tuple[float, float],
    scaling: tuple[str, float, float],
    sources: tuple[str | None, str],
) -> Feature:
    return Feature(
        name=name,
        node=node,
        dimension=dimension,
        unit=unit,
        low=bounds[0],
        high=bounds[1],
        normaliser=scaling[0],
        offset=scaling[1],
        scale=scaling[2],
        live_source=sources[0],
        simulator_source=sources[1],
    )


_C, _M, _X, _S = Dimension.COMPUTE, Dimension.MEMORY, Dimension.COMMUNICATION, Dimension.SERVICE
_SHARE = ("identity", 0.0, 1.0)
_COUNT = ("log1p", 0.0, 4.0)

FEATURES: tuple[Feature, ...] = (
    _feature(Node.REPLICA, _S, "is_available", "0 or 1", (0, 1), _SHARE,
             ("health check", "replica up")),
    _feature(Node.REPLICA, _S, "outstanding_requests", "requests", (0, 4096), _COUNT,
             ("gateway count", "gateway count")),
    _feature(Node.REPLICA, _S, "pending_prefill_s", "s", (0, 60), ("log1p", 0.0, 1.0),
             ("gateway count x nominal roofline", "gateway count x nominal roofline")),
    _feature(Node.REPLICA, _S, "running_requests", "requests", (0, 4096), _COUNT,
             ("vllm:num_requests_running", "prefilling + decoding at the last scrape")),
    _feature(Node.REPLICA, _S, "waiting_requests", "requests", (0, 4096), _COUNT,
             ("vllm:num_requests_waiting", "waiting at the last scrape")),
    _feature(Node.REPLICA, _M, "kv_usage_frac", "share", (0, 1), _SHARE,
             ("vllm:kv_cache_usage_perc", "pages in use at the last scrape")),
    _feature(Node.REPLICA, _M, "cached_frac", "share", (0, 1), _SHARE,
             ("KV events", "prefix-cache pages at the last scrape")),
    _feature(Node.REPLICA, _C, "iteration_log_ratio", "log", (-2, 2), ("identity", 0.0, 0.5),
             ("vllm:inter_token_latency_seconds over the roofline",
              "measured over nominal iteration time")),
    _feature(Node.REPLICA, _S, "ttft_log_ratio", "log", (-3, 3), ("identity", 0.0, 1.0),
             ("gateway timing over its prediction", "gateway timing over its prediction")),
    _feature(Node.REPLICA, _C, "prefill_frac", "share", (0, 1), _SHARE,
             ("vllm:prompt_tokens rate x nominal roofline", "share of time in prefill")),
    _feature(Node.REPLICA, _S, "decode_iteration_s", "s", (0, 1), ("identity", 0.02, 0.02),
             ("nominal roofline at the scraped batch", "nominal roofline at the scraped batch")),
    _feature(Node.REPLICA, _S, "state_age_s", "s", (0, 60), ("log1p", 0.0, 1.0),
             ("time since the scrape", "time since the scrape")),
    _feature(Node.GPU, _C, "peak_flops", "FLOP/s", (1e12, 1e16), ("log10", 14.5, 0.5),
             ("catalogue by NVML name", "catalogue")),
    _feature(Node.GPU, _C, "sm_activity_frac", "share", (0, 1), _SHARE,
             ("NVML GPM SM_UTIL", "busy share of the last window")),
    _feature(Node.GPU, _C, "power_frac", "share of TDP", (0, 2), _SHARE,
             ("NVML power usage over limit", "energy of the last window over TDP")),
    _feature(Node.GPU, _M, "hbm_bytes", "B", (1e9, 1e12), ("log10", 10.9, 0.3),
             ("NVML memory info", "catalogue")),
    _feature(Node.GPU, _M, "hbm_bytes_per_s", "B/s", (1e10, 1e14), ("log10", 12.3, 0.3),
             ("catalogue by NVML name", "catalogue")),
    _feature(Node.SERVER, _X, "network_bytes_per_s", "B/s", (1e8, 1e12), ("log10", 10.0, 1.0),
             ("cluster file", "cluster file")),
    _feature(Node.SERVER, _X, "nvlink_bytes_per_s", "B/s", (0, 1e12), ("identity", 0.0, 4.5e11),
             ("catalogue by NVML name", "catalogue")),
    _feature(Node.SERVER, _C, "power_frac", "share of TDP", (0, 2), _SHARE,
             ("NVML power usage over limit", "energy of the last window over TDP")),
    _feature(Node.TENANT, _S, "arrival_rate_rps", "1/s", (0, 1e5), _COUNT,
             ("gateway count", "arrivals of the last window")),
    _feature(Node.TENANT, _S, "mean_input_tokens", "tokens", (0, 1e6), ("log1p", 6.5, 2.0),
             ("gateway count", "arrivals of the last window")),
    _feature(Node.TENANT, _S, "shed_frac", "share", (0, 1), _SHARE,
             ("gateway count", "arrivals of the last window")),
    _feature(Node.TENANT, _S, "late_frac", "share", (0, 1), _SHARE,
             ("gateway timing", "first tokens of the last window after their limit")),
    _feature(Node.FLEET, _S, "load_frac", "share", (0, 10), ("identity", 0.5, 0.5),
             ("gateway count x nominal roofline", "prefill seconds arriving a second and replica")),
    _feature(Node.FLEET, _S, "arrival_log_change", "log", (-3, 3), _SHARE,
             ("gateway count", "rate of the last window over its moving average")),
    _feature(Node.FLEET, _S, "available_frac", "share", (0, 1), _SHARE,
             ("health check", "replicas up")),
)  # fmt: skip

FEATURES_BY_NODE: dict[Node, tuple[Feature, ...]] = {
    node: tuple(f for f in FEATURES if f.node is node) for node in Node
}


class _Scaling:
    """The scaling of all features of a node kind, as arrays."""

    def __init__(self, features: tuple[Feature, ...]) -> None:
        self.low = np.array([f.low for f in features])
        self.high = np.array([f.high for f in features])
        self.offset = np.array([f.offset for f in features])
        self.scale = np.array([f.scale for f in features])
        self.columns = {
            name: np.array([i for i, f in enumerate(features) if f.normaliser == name], dtype=int)
            for name in NORMALISERS
            if any(f.normaliser == name for f in features)
        }


_SCALINGS = {node: _Scaling(features) for node, features in FEATURES_BY_NODE.items()}


def scaled(node: Node, values: FloatArray) -> FloatArray:
    """Return features of a node kind clipped to their range and brought near [-1, 1].

    Shapes: `values` [nodes, features of the kind], raw, as in `ClusterState.values`.
    """
    scaling = _SCALINGS[node]
    near = np.clip(values, scaling.low, scaling.high)
    for name, columns in scaling.columns.items():
        near[:, columns] = NORMALISERS[name](near[:, columns])
    near -= scaling.offset
    near /= scaling.scale
    return near


def registry_hash() -> str:
    """Return a hash of the registry; a policy is only used with the registry it was trained on."""
    return hashlib.sha256("\n".join(map(repr, FEATURES)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """What can be seen of a fleet at one moment, in raw units, with ages and validity.

    Shapes: `values[node]` [nodes of that kind, features of that kind]; `is_valid` the same, False
    where a value is absent (never a silent 0); `gpu_replica`, `gpu_server` [GPUs] give the
    replica that a GPU serves and the server that it sits in; `state_age_s` [replicas].
    """

    now_s: float
    values: dict[Node, FloatArray]
    is_valid: dict[Node, NDArray[np.bool_]]
    state_age_s: FloatArray
    gpu_replica: NDArray[np.int64]
    gpu_server: NDArray[np.int64]

    def __post_init__(self) -> None:
        for node, features in FEATURES_BY_NODE.items():
            shape = self.values[node].shape
            if len(shape) != 2 or shape[1] != len(features):
                msg = f"{node} values must have shape [nodes, {len(features)}], got {shape}"
                raise ValueError(msg)

    def feature(self, node: Node, name: str) -> FloatArray:
        """Return one feature of all nodes of a kind, raw, shape [nodes]."""
        names = [f.name for f in FEATURES_BY_NODE[node]]
        if name not in names:
            msg = f"unknown {node} feature '{name}'; known: {', '.join(names)}"
            raise ValueError(msg)
        return self.values[node][:, names.index(name)]

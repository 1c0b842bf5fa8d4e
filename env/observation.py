"""The state as a policy sees it: a flat Dict of padded, scaled arrays.

Stable-Baselines3 supports nothing but flat Dicts of Boxes, so the graph travels as node arrays,
masks and parent indices; `graph_encoder` rebuilds it.

Does not know: where the state came from, or the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .cluster import ClusterSpec
from .knobs import TUNABLE_KNOBS
from .state.cluster_state import ClusterState
from .state.edges import Edge
from .state.feature import Feature, FloatArray, Node
from .state.registry import FEATURES_BY_NODE, Scaling, column

CLIP = 5.0
"""Scaled features are clipped to plus or minus this."""

Observation = dict[str, NDArray[np.float32]]

_OBSERVED_NAMES: dict[Node, tuple[str, ...]] = {
    Node.REPLICA: (
        "is_available",
        "outstanding_requests",
        "pending_prefill_s",
        "running_requests",
        "waiting_requests",
        "kv_usage_frac",
        "cached_frac",
        "iteration_log_ratio",
        "ttft_log_ratio",
        "prefill_frac",
        "decode_iteration_s",
        "state_age_s",
    ),
    Node.GPU: (
        "peak_bf16_flops",
        "sm_activity_frac",
        "power_frac",
        "hbm_bytes",
        "hbm_bytes_per_s",
    ),
    Node.SERVER: ("network_bytes_per_s", "nvlink_bytes_per_s", "power_frac"),
    Node.TENANT: (
        *("arrival_rate_rps", "mean_input_tokens", "shed_frac", "late_frac"),
        *("missed_frac", "ttft_limit_s", "tpot_limit_s"),
    ),
    Node.FLEET: ("load_frac", "arrival_log_change", "available_frac"),
}

OBSERVED: dict[Node, tuple[Feature, ...]] = {
    node: tuple(FEATURES_BY_NODE[node][column(node, name)] for name in names)
    for node, names in _OBSERVED_NAMES.items()
}
"""The features that the short-term policy sees, in the order of its observation."""

_COLUMNS = {
    node: np.array([column(node, name) for name in names])
    for node, names in _OBSERVED_NAMES.items()
}
_SCALINGS = {
    node: Scaling(tuple(feature.scale for feature in features))
    for node, features in OBSERVED.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationLayout:
    """Padded sizes. One policy serves any fleet that fits them."""

    max_replicas: int = 16
    max_gpus: int = 16
    max_servers: int = 4
    max_tenants: int = 2

    def __post_init__(self) -> None:
        for name, value in self.sizes().items():
            if value < 1:
                msg = f"max_{name}s must be at least 1, got {value}"
                raise ValueError(msg)

    def sizes(self) -> dict[Node, int]:
        """Return the padded number of nodes of each kind."""
        return {
            Node.REPLICA: self.max_replicas,
            Node.GPU: self.max_gpus,
            Node.SERVER: self.max_servers,
            Node.TENANT: self.max_tenants,
        }

    @property
    def action_size(self) -> int:
        """Residuals of the tunable knobs, then one bias for each replica."""
        return len(TUNABLE_KNOBS) + self.max_replicas


def fits_layout(cluster: ClusterSpec, layout: ObservationLayout) -> bool:
    """Whether padded sizes hold a fleet."""
    num_gpus = sum(len(replica.gpu_indices) for replica in cluster.replicas)
    return (
        len(cluster.replicas) <= layout.max_replicas
        and num_gpus <= layout.max_gpus
        and len(cluster.servers) <= layout.max_servers
    )


def observation_space(layout: ObservationLayout) -> spaces.Dict:
    """Return the space: node features [nodes x features], masks and parent indices [nodes].

    Node features are flat, node by node, because Stable-Baselines3 takes matrices for images.
    Keys: `replica`, `gpu`, `server`, `tenant` and each with `_mask`; `gpu_replica`, `gpu_server`
    (indices as floats); `fleet` [features]; `action` [action size], the last action.
    """
    boxes: dict[str, spaces.Space[Any]] = {}
    for node, size in layout.sizes().items():
        width = len(OBSERVED[node])
        boxes[str(node)] = spaces.Box(-CLIP, CLIP, (size * width,), np.float32)
        boxes[f"{node}_mask"] = spaces.Box(0.0, 1.0, (size,), np.float32)
    for parent, size in (("replica", layout.max_replicas), ("server", layout.max_servers)):
        boxes[f"gpu_{parent}"] = spaces.Box(0.0, size - 1.0, (layout.max_gpus,), np.float32)
    boxes["fleet"] = spaces.Box(-CLIP, CLIP, (len(OBSERVED[Node.FLEET]),), np.float32)
    boxes["action"] = spaces.Box(-1.0, 1.0, (layout.action_size,), np.float32)
    return spaces.Dict(boxes)


class Seen(NamedTuple):
    """What is seen of n fleets of one cluster, which are some rows of a batch.

    Shapes: `rows` int [n] or a slice; `values[node]` [n, nodes, features], not finite where absent;
    `gpu_parents` the replica and the server of each GPU.
    """

    rows: NDArray[np.int64] | slice
    values: dict[Node, FloatArray]
    gpu_parents: tuple[NDArray[np.int64], NDArray[np.int64]]


def observe_groups(
    groups: Sequence[Seen], last_actions: NDArray[np.float32], layout: ObservationLayout
) -> Observation:
    """Return the observations of fleets of several clusters, one row each.

    Shapes: `last_actions` [n, action size], n over all groups.

    Raises:
        ValueError: a fleet has more nodes of a kind than the layout.
    """
    observation: Observation = {}
    num = len(last_actions)
    for node, size in layout.sizes().items():
        raw = np.full((num, size, len(OBSERVED[node])), np.nan)
        mask = np.zeros((num, size), np.float32)
        for group in groups:
            own = group.values[node].shape[1]
            if own > size:
                msg = f"fleet has {own} {node} nodes, the layout only {size}; raise max_{node}s"
                raise ValueError(msg)
            raw[group.rows, :own] = group.values[node][:, :, _COLUMNS[node]]
            mask[group.rows, :own] = 1.0
        observation[str(node)], observation[f"{node}_mask"] = _scaled(node, raw), mask
    for i, key in enumerate(("gpu_replica", "gpu_server")):
        parents = np.zeros((num, layout.max_gpus), np.float32)
        for group in groups:
            parents[group.rows, : group.gpu_parents[i].size] = group.gpu_parents[i]
        observation[key] = parents
    fleet = np.empty((num, 1, len(OBSERVED[Node.FLEET])))
    for group in groups:
        fleet[group.rows] = group.values[Node.FLEET][:, :, _COLUMNS[Node.FLEET]]
    observation["fleet"] = _scaled(Node.FLEET, fleet)
    observation["action"] = last_actions.astype(np.float32)
    return observation


def _scaled(node: Node, raw: FloatArray) -> NDArray[np.float32]:
    """Return the scaled, clipped features of a node kind, node by node; absent values become 0.

    Shapes: [n, nodes, observed features of the kind] to [n, nodes x features].
    """
    flat = raw.reshape(-1, raw.shape[-1])
    near = np.clip(_SCALINGS[node].scaled(flat), -CLIP, CLIP)
    return np.where(np.isfinite(flat), near, 0.0).astype(np.float32).reshape(len(raw), -1)


def _serving_gpus(
    state: ClusterState,
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return the GPUs that serve replicas, once for each, and the replica and server of each."""
    if Edge.HOSTS in state.edges:
        hosts = state.edges[Edge.HOSTS]
        return hosts.source, (hosts.target, state.gpu_server[hosts.source])
    gpus = np.flatnonzero(state.gpu_replica >= 0)
    return gpus, (state.gpu_replica[gpus], state.gpu_server[gpus])


def observe(
    state: ClusterState, last_action: NDArray[np.float32], layout: ObservationLayout
) -> Observation:
    """Return the observation of a state.

    Raises:
        ValueError: the fleet has more nodes of a kind than the layout.
    """
    values = {
        node: np.where(state.is_valid[node], array, np.nan)[None]
        for node, array in state.values.items()
        if node in OBSERVED
    }
    gpus, parents = _serving_gpus(state)
    values[Node.GPU] = values[Node.GPU][:, gpus]
    seen = Seen(slice(None), values, parents)
    batch = observe_groups([seen], last_action[None], layout)
    return {key: rows[0] for key, rows in batch.items()}

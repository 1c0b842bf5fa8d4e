"""The state as a policy sees it: a flat Dict of padded, scaled arrays.

Stable-Baselines3 supports nothing but flat Dicts of Boxes, so the graph travels as node arrays,
masks and parent indices; `graph_encoder` rebuilds it.

Does not know: where the state came from, or the encoder.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .knobs import TUNABLE_KNOBS
from .state import FEATURES_BY_NODE, ClusterState, Node, scaled

CLIP = 5.0
"""Scaled features are clipped to plus or minus this."""

Observation = dict[str, NDArray[np.float32]]


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


def observation_space(layout: ObservationLayout) -> spaces.Dict:
    """Return the space: node features [nodes x features], masks and parent indices [nodes].

    Node features are flat, node by node, because Stable-Baselines3 takes matrices for images.
    Keys: `replica`, `gpu`, `server`, `tenant` and each with `_mask`; `gpu_replica`, `gpu_server`
    (indices as floats); `fleet` [features]; `action` [action size], the last action.
    """
    boxes: dict[str, spaces.Space[Any]] = {}
    for node, size in layout.sizes().items():
        width = len(FEATURES_BY_NODE[node])
        boxes[str(node)] = spaces.Box(-CLIP, CLIP, (size * width,), np.float32)
        boxes[f"{node}_mask"] = spaces.Box(0.0, 1.0, (size,), np.float32)
    for parent, size in (("replica", layout.max_replicas), ("server", layout.max_servers)):
        boxes[f"gpu_{parent}"] = spaces.Box(0.0, size - 1.0, (layout.max_gpus,), np.float32)
    boxes["fleet"] = spaces.Box(-CLIP, CLIP, (len(FEATURES_BY_NODE[Node.FLEET]),), np.float32)
    boxes["action"] = spaces.Box(-1.0, 1.0, (layout.action_size,), np.float32)
    return spaces.Dict(boxes)


def _scaled(state: ClusterState, node: Node) -> NDArray[np.float32]:
    """Return the scaled, clipped features of a node kind; absent values become 0."""
    near = np.clip(scaled(node, state.values[node]), -CLIP, CLIP)
    return np.where(state.is_valid[node], near, 0.0).astype(np.float32)


def observe(
    state: ClusterState, last_action: NDArray[np.float32], layout: ObservationLayout
) -> Observation:
    """Return the observation of a state.

    Raises:
        ValueError: the fleet has more nodes of a kind than the layout.
    """
    observation: Observation = {}
    for node, size in layout.sizes().items():
        values = _scaled(state, node)
        if values.shape[0] > size:
            msg = (
                f"fleet has {values.shape[0]} {node} nodes, the layout only {size}; "
                f"raise max_{node}s"
            )
            raise ValueError(msg)
        padded = np.zeros((size, values.shape[1]), np.float32)
        padded[: values.shape[0]] = values
        mask = np.zeros(size, np.float32)
        mask[: values.shape[0]] = 1.0
        observation[str(node)], observation[f"{node}_mask"] = padded.ravel(), mask
    for key, index in (("gpu_replica", state.gpu_replica), ("gpu_server", state.gpu_server)):
        parents = np.zeros(layout.max_gpus, np.float32)
        parents[: index.size] = index
        observation[key] = parents
    observation["fleet"] = _scaled(state, Node.FLEET)[0]
    observation["action"] = last_action.astype(np.float32)
    return observation

"""From the raw signals of a rack to the features of its GPUs, servers, replicas and links.

It runs at the edge, in the rack's aggregator, once a tick. A server that sent nothing in a tick
keeps its features as they were; its age says how old they are.

Does not know: transport, clocks, or what the hub makes of the features.
"""

import numpy as np
from numpy.typing import NDArray

from ...env.state.feature import SHARE, FloatArray, Node
from ...env.state.registry import FEATURES_BY_NODE
from .features.gpu_features import GpuFeatures
from .features.hosting import Hosting
from .features.link_features import LinkFeatures
from .features.rack_constants import RackConstants
from .features.readings import ScopeStatistics
from .features.replica_features import ReplicaFeatures
from .features.server_features import ServerFeatures
from .raw_window import RawWindow
from .signals import Scope, signal_index

BoolArray = NDArray[np.bool_]

NODES = (Node.GPU, Node.SERVER, Node.REPLICA, Node.LINK)
"""The kinds of nodes whose features are derived in a rack."""

NOT_DERIVED: dict[tuple[Node, str], str] = {
    (Node.SERVER, "rtt_s"): "the aggregator measures round trips",
    (Node.SERVER, "rtt_jitter_s"): "the aggregator measures round trips",
    (Node.SERVER, "clock_error_s"): "the aggregator's clock estimator bounds it",
    (Node.REPLICA, "takes_prefill"): "a role of the cluster file, which the hub has",
    (Node.REPLICA, "takes_decode"): "a role of the cluster file, which the hub has",
    (Node.REPLICA, "kv_out_bytes_per_s"): "engines count KV where it arrives",
}
"""Features of these nodes that a probe, a page or a file could give, and why not from here."""

_BOUNDS = {
    node: tuple(
        np.array([bound if f.scale == SHARE else beyond for f in FEATURES_BY_NODE[node]])
        for bound, beyond in ((0.0, -np.inf), (1.0, np.inf))
    )
    for node in NODES
}


class Derivation:
    """Derives the features of one rack, window by window.

    Shapes: values and validity of a node kind are [rows, features in registry order]; rows are
    the servers of the rack in order, each with the GPUs or replicas of the largest server (NaN,
    invalid, where a server has fewer), or its links (`link_features.rack_links`).
    """

    def __init__(self, constants: RackConstants) -> None:
        num_servers, num_gpus = constants.gpus.tdp_watts.shape
        num_replicas = constants.replicas.max_num_seqs.shape[1]
        self._entities = {Scope.SERVER: 1, Scope.GPU: num_gpus, Scope.REPLICA: num_replicas}
        self._statistics = {
            scope: ScopeStatistics(scope, (num_servers, number))
            for scope, number in self._entities.items()
        }
        self._gpus = GpuFeatures(constants.gpus)
        self._replicas = ReplicaFeatures(constants.replicas)
        self._hosting = Hosting(constants.replicas)
        self._servers = ServerFeatures(constants)
        self._links = LinkFeatures(constants)
        self._page_age = signal_index(Scope.REPLICA, "page_age_s")
        self._held: dict[Node, FloatArray] = {
            Node.GPU: np.full((num_servers, num_gpus, len(FEATURES_BY_NODE[Node.GPU])), np.nan),
            Node.REPLICA: np.full(
                (num_servers, num_replicas, len(FEATURES_BY_NODE[Node.REPLICA])), np.nan
            ),
            Node.SERVER: np.full((num_servers, 1, len(FEATURES_BY_NODE[Node.SERVER])), np.nan),
        }

    def derive(self, window: RawWindow) -> dict[Node, tuple[FloatArray, BoolArray]]:
        """Return values and validity by node kind, after one more window.

        Raises:
            ValueError: the window has other servers, GPUs or replicas than the constants.
        """
        self._check(window)
        passed_s = window.last_at_s - window.previous_at_s
        with np.errstate(invalid="ignore", divide="ignore"):
            values = self._derived(window, passed_s)
        # A sample that is not newer than the last one says nothing new.
        is_fresh = np.isfinite(window.last_at_s) & ~(passed_s <= 0)
        held = self._held
        for node in held:
            np.copyto(held[node], values[node], where=is_fresh[:, None, None])
        flat = {node: array.reshape(-1, array.shape[-1]).copy() for node, array in held.items()}
        flat[Node.LINK] = self._links.values(flat[Node.GPU], flat[Node.SERVER])
        return {node: _bounded(node, flat[node]) for node in NODES}

    def _derived(self, window: RawWindow, passed_s: FloatArray) -> dict[Node, FloatArray]:
        gpu, replica = self._statistics[Scope.GPU], self._statistics[Scope.REPLICA]
        server = self._statistics[Scope.SERVER]
        page_passed_s = self._page_passed_s(window, passed_s)
        for statistics in (gpu, server):
            statistics.take(window, passed_s[:, None])
        replica.take(window, page_passed_s)
        gpus = self._gpus.values(gpu, passed_s[:, None])
        replicas = self._replicas.values(replica, page_passed_s)
        self._hosting.fill(gpus, replicas, gpu, replica)
        servers = self._servers.values(server, replica, gpus)
        return {Node.GPU: gpus, Node.REPLICA: replicas, Node.SERVER: servers}

    def _page_passed_s(self, window: RawWindow, passed_s: FloatArray) -> FloatArray:
        """Return the time between the pages of this window and the last one, [S, R]."""
        age_s = window.last[Scope.REPLICA][..., self._page_age].astype(np.float64)
        before_s = window.previous_last[Scope.REPLICA][..., self._page_age]
        passed = passed_s[:, None] - age_s + before_s
        # Of the same page, sampled again, rounding leaves next to nothing.
        passed = np.where(passed > 1e-3, passed, 0.0)
        # A probe that does not say how old its page is reads it for every sample.
        return np.where(np.isnan(age_s) | np.isnan(before_s), passed_s[:, None], passed)

    def _check(self, window: RawWindow) -> None:
        num_servers = len(self._held[Node.SERVER])
        for scope, number in self._entities.items():
            shape = window.last[scope].shape[:2]
            if shape != (num_servers, number):
                msg = (
                    f"{scope} signals must have shape ({num_servers}, {number}, ...), got "
                    f"{window.last[scope].shape}; build the constants from the rack's own servers"
                )
                raise ValueError(msg)


def _bounded(node: Node, values: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Return values and validity; a share that was read a little beyond [0, 1] is cut off."""
    is_valid = np.isfinite(values)
    np.copyto(values, np.nan, where=~is_valid)
    low, high = _BOUNDS[node]
    np.clip(values, low, high, out=values)
    return values, is_valid

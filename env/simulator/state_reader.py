"""Reads a `ClusterState` out of the simulator's arrays: only what a scheduler could see.

Does not know: how the arrays change, or how a state is scaled for a policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..cluster import ClusterSpec
from ..hardware import Precision
from ..state.cluster_state import ClusterState
from ..state.feature import FloatArray, Node
from ..state.registry import FEATURES_BY_NODE, column
from .fleet_view import fleet_view
from .layout import NUM_PRIORITIES, SimulationArrays
from .snapshot import stack_records
from .window import ARRIVED, INPUT_TOKENS, LATE, REFUSED, WITH_TOKEN

# Weight of the newest window in the moving average of the arrival rate.
RATE_GAIN = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Window:
    """What is remembered of the last window; its arrays are never written to."""

    tenants: FloatArray
    """[NUM_PRIORITIES, 4]: rate, mean prompt, share refused, share late."""
    busy_frac: FloatArray
    """[R]."""
    power_w: FloatArray
    """[R]."""
    totals: FloatArray
    """[R, 2]: busy time and energy since the start."""
    mean_rate_rps: float = 0.0
    load: float = 0.0
    """Prompt tokens that arrived over those that the fleet can compute."""
    rate_change: float = 0.0
    """Log ratio of the window's rate to the mean of those before."""
    num_settled: int = 0
    """Requests at the head of the table that had all ended."""


class StateReader:
    """Turns the arrays into a state, keeping the totals of the last window to difference with."""

    def __init__(self, cluster: ClusterSpec, server_of_replica: np.ndarray) -> None:
        self.replica_of_gpu = np.array(
            [i for i, replica in enumerate(cluster.replicas) for _ in replica.gpu_indices],
            dtype=np.int64,
        )
        self.server_of_gpu = server_of_replica[self.replica_of_gpu]
        gpus = [cluster.gpu_of(cluster.replicas[i]) for i in self.replica_of_gpu]
        self._gpus_per_replica = np.array([len(r.gpu_indices) for r in cluster.replicas])
        self._gpu_static = np.array(
            [[g.peak_flops[Precision.BF16], g.hbm_bytes, g.hbm_bytes_per_s] for g in gpus]
        )
        self._tdp_w = np.array([g.tdp_w for g in gpus])
        self._host_w = np.array([g.host_w for g in gpus])
        self._server_static = self._read_servers(cluster)
        num_replicas = len(cluster.replicas)
        self.window = Window(
            tenants=np.zeros((NUM_PRIORITIES, 4)),
            busy_frac=np.zeros(num_replicas),
            power_w=np.zeros(num_replicas),
            totals=np.zeros((num_replicas, 2)),
        )
        self._at_start = self.window

    def _read_servers(self, cluster: ClusterSpec) -> FloatArray:
        nvlink = np.zeros(len(cluster.servers))
        index = {server.name: i for i, server in enumerate(cluster.servers)}
        for replica in cluster.replicas:
            nvlink[index[replica.server]] = cluster.gpu_of(replica).nvlink_bytes_per_s or 0.0
        network = np.array([server.network_bytes_per_s for server in cluster.servers])
        return np.stack([network, nvlink], axis=1)

    def begin(self, arrays: SimulationArrays) -> None:
        """Forget the last window: the run begins."""
        self.window = replace(self._at_start, power_w=arrays.replicas["idle_w"].copy())

    def end_window(
        self, arrays: SimulationArrays, start_s: float, tenants: FloatArray, num_settled: int
    ) -> None:
        """Take the differences of a window that began at a moment, and its counts.

        Shapes: `tenants` and `num_settled` as `window_totals` returns them.
        """
        last = self.window
        span_s = float(arrays.fleet[0]["now_s"]) - start_s
        replicas = arrays.replicas
        totals = np.stack([replicas["busy_s"], replicas["energy_j"]], axis=1)
        num_arrived, input_tokens = tenants[:, ARRIVED], tenants[:, INPUT_TOKENS]
        rate_rps, is_first = float(num_arrived.sum()) / span_s, not last.mean_rate_rps > 0
        gain = 1.0 if is_first else RATE_GAIN
        change = float(np.log((rate_rps + 1.0) / (last.mean_rate_rps + 1.0)))
        tokens_per_s = float(input_tokens.sum()) / span_s
        self.window = Window(
            tenants=np.stack(
                [
                    num_arrived / span_s,
                    input_tokens / np.maximum(num_arrived, 1.0),
                    tenants[:, REFUSED] / np.maximum(num_arrived, 1.0),
                    tenants[:, LATE] / np.maximum(tenants[:, WITH_TOKEN], 1.0),
                ],
                axis=1,
            ),
            # An iteration that ends in this window may have begun before it.
            busy_frac=np.minimum((totals[:, 0] - last.totals[:, 0]) / span_s, 1.0),
            power_w=(totals[:, 1] - last.totals[:, 1]) / span_s,
            totals=totals,
            mean_rate_rps=last.mean_rate_rps + gain * (rate_rps - last.mean_rate_rps),
            load=tokens_per_s / float((1.0 / fleet_view(arrays)["prefill_token_s"]).sum()),
            rate_change=0.0 if is_first else change,
            num_settled=num_settled,
        )

    def read(self, arrays: SimulationArrays) -> ClusterState:
        """Return the state of this moment."""
        return read_many([self], [arrays]).state(0)

    def server_values(self, power_frac: FloatArray) -> FloatArray:
        """Return the features of servers, given their GPUs' share of power.

        Shapes: [n, GPUs] to [n, servers, 3].
        """
        num, num_servers = len(power_frac), len(self._server_static)
        index = (np.arange(num)[:, None] * num_servers + self.server_of_gpu).ravel()
        summed = np.bincount(index, power_frac.ravel(), minlength=num * num_servers)
        counts = np.maximum(np.bincount(self.server_of_gpu, minlength=num_servers), 1)
        mean = summed.reshape(num, num_servers) / counts
        values = np.empty((num, num_servers, 3))
        values[:, :, :2], values[:, :, 2] = self._server_static, mean
        return values

    def gpu_values(self, busy_frac: FloatArray, power_frac: FloatArray) -> FloatArray:
        """Return the features of GPUs. Shapes: both [n, GPUs] to [n, GPUs, 5]."""
        values = np.empty((*power_frac.shape, 5))
        values[:, :, [0, 3, 4]] = self._gpu_static
        values[:, :, 1], values[:, :, 2] = busy_frac, power_frac
        return values

    def power_frac(self, power_w: FloatArray) -> FloatArray:
        """Return the GPUs' share of their power limit. Shapes: [n, R] to [n, GPUs]."""
        own_w = (power_w / self._gpus_per_replica)[:, self.replica_of_gpu] - self._host_w
        return np.asarray(np.maximum(own_w, 0.0) / self._tdp_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBatch:
    """States of n fleets of one cluster; `values[node]` is [n, nodes, features]."""

    now_s: FloatArray
    values: dict[Node, FloatArray]
    gpu_replica: NDArray[np.int64]
    gpu_server: NDArray[np.int64]

    def state(self, index: int) -> ClusterState:
        """Return the state of one fleet."""
        values = {node: array[index] for node, array in self.values.items()}
        return ClusterState(
            now_s=float(self.now_s[index]),
            values=values,
            is_valid={node: np.isfinite(array) for node, array in values.items()},
            age_s={node: np.zeros(len(array)) for node, array in values.items()}
            | {Node.REPLICA: values[Node.REPLICA][:, column(Node.REPLICA, "state_age_s")]},
            gpu_replica=self.gpu_replica,
            gpu_server=self.gpu_server,
        )


def _replica_values(arrays: Sequence[SimulationArrays], now_s: FloatArray) -> FloatArray:
    """Return the features of replicas, [n, R, features]."""
    v = stack_records([fleet_view(one) for one in arrays])  # [n, R]
    context_s = np.stack([one.nominal["decode_context_s"] for one in arrays])
    columns = {
        "is_available": v["is_available"],
        "pending_prefill_s": v["pending_tokens"] * v["prefill_token_s"],
        "decode_iteration_s": v["decode_base_s"] + v["outstanding_tokens"] * context_s,
        "state_age_s": now_s[:, None] - v["scraped_at_s"],
    }
    names = [feature.name for feature in FEATURES_BY_NODE[Node.REPLICA]]
    values = np.empty((*v.shape, len(names)))
    for i, name in enumerate(names):
        known = name in columns or name in (v.dtype.names or ())
        values[:, :, i] = (columns[name] if name in columns else v[name]) if known else np.nan
    return values


_FILLED = {
    Node.GPU: ("peak_bf16_flops", "sm_activity_frac", "power_frac", "hbm_bytes", "hbm_bytes_per_s"),
    Node.SERVER: ("network_bytes_per_s", "nvlink_bytes_per_s", "power_frac"),
    Node.TENANT: ("arrival_rate_rps", "mean_input_tokens", "shed_frac", "late_frac"),
    Node.FLEET: ("load_frac", "arrival_log_change", "available_frac"),
}


def _spread(node: Node, narrow: FloatArray) -> FloatArray:
    """Return the features that are filled in their columns of all of the kind, the rest NaN."""
    wide = np.full((*narrow.shape[:2], len(FEATURES_BY_NODE[node])), np.nan)
    for i, name in enumerate(_FILLED[node]):
        wide[:, :, column(node, name)] = narrow[:, :, i]
    return wide


def read_many(readers: Sequence[StateReader], arrays: Sequence[SimulationArrays]) -> StateBatch:
    """Return the states of fleets of one cluster at this moment."""
    reader, windows = readers[0], [one.window for one in readers]
    now_s = np.array([one.fleet[0]["now_s"] for one in arrays])
    power_frac = reader.power_frac(np.stack([window.power_w for window in windows]))
    busy_frac = np.stack([window.busy_frac for window in windows])[:, reader.replica_of_gpu]
    fleet = [
        [[window.load, window.rate_change, fleet_view(one)["is_available"].mean()]]
        for window, one in zip(windows, arrays, strict=True)
    ]
    return StateBatch(
        now_s=now_s,
        values={
            Node.REPLICA: _replica_values(arrays, now_s),
            Node.GPU: _spread(Node.GPU, reader.gpu_values(busy_frac, power_frac)),
            Node.SERVER: _spread(Node.SERVER, reader.server_values(power_frac)),
            Node.LINK: np.empty((len(now_s), 0, len(FEATURES_BY_NODE[Node.LINK]))),
            Node.ZONE: np.empty((len(now_s), 0, len(FEATURES_BY_NODE[Node.ZONE]))),
            Node.TENANT: _spread(Node.TENANT, np.stack([window.tenants for window in windows])),
            Node.FLEET: _spread(Node.FLEET, np.array(fleet)),
        },
        gpu_replica=reader.replica_of_gpu,
        gpu_server=reader.server_of_gpu,
    )

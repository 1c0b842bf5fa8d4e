"""Reads a `ClusterState` out of the simulator's arrays: only what a scheduler could see.

Does not know: how the arrays change, or how a state is scaled for a policy.
"""

import copy

import numpy as np

from ..cluster import ClusterSpec
from ..hardware import Precision
from ..state import FEATURES_BY_NODE, ClusterState, FloatArray, Node
from .fleet_view import fleet_view
from .layout import NUM_PRIORITIES, SHED, SimulationArrays

# Weight of the newest window in the moving average of the arrival rate.
RATE_GAIN = 0.1


class StateReader:
    """Turns the arrays into a state, keeping the totals of the last window to difference with."""

    def __init__(self, cluster: ClusterSpec, server_of_replica: np.ndarray) -> None:
        self._replica_of_gpu = np.array(
            [i for i, replica in enumerate(cluster.replicas) for _ in replica.gpu_indices],
            dtype=np.int64,
        )
        self._server_of_gpu = server_of_replica[self._replica_of_gpu]
        gpus = [cluster.gpu_of(cluster.replicas[i]) for i in self._replica_of_gpu]
        self._gpus_per_replica = np.array([len(r.gpu_indices) for r in cluster.replicas])
        self._gpu_static = np.array(
            [[g.peak_flops[Precision.BF16], g.hbm_bytes, g.hbm_bytes_per_s] for g in gpus]
        )
        self._tdp_w = np.array([g.tdp_w for g in gpus])
        self._host_w = np.array([g.host_w for g in gpus])
        self._server_static = self._read_servers(cluster)
        self._tenants = np.zeros((NUM_PRIORITIES, 4))
        self._busy_frac = np.zeros(len(cluster.replicas))
        self._power_w = np.zeros(len(cluster.replicas))
        self._totals = np.zeros((len(cluster.replicas), 2))
        self._mean_rate_rps = 0.0
        self._fleet = np.zeros(2)

    def _read_servers(self, cluster: ClusterSpec) -> FloatArray:
        nvlink = np.zeros(len(cluster.servers))
        index = {server.name: i for i, server in enumerate(cluster.servers)}
        for replica in cluster.replicas:
            nvlink[index[replica.server]] = cluster.gpu_of(replica).nvlink_bytes_per_s or 0.0
        network = np.array([server.network_bytes_per_s for server in cluster.servers])
        return np.stack([network, nvlink], axis=1)

    def branch(self) -> "StateReader":
        """Return an independent copy."""
        return copy.deepcopy(self)

    def begin(self, arrays: SimulationArrays) -> None:
        """Forget the last window: the run begins."""
        self._tenants[:] = 0.0
        self._busy_frac[:] = 0.0
        self._power_w[:] = arrays.replicas["idle_w"]
        self._totals[:] = 0.0
        self._mean_rate_rps = 0.0
        self._fleet[:] = 0.0

    def end_window(self, arrays: SimulationArrays, start_s: float, first: int) -> None:
        """Take the differences of a window that began at a moment and an arrival index."""
        span_s = float(arrays.fleet[0]["now_s"]) - start_s
        replicas = arrays.replicas
        totals = np.stack([replicas["busy_s"], replicas["energy_j"]], axis=1)
        # An iteration that ends in this window may have begun before it.
        self._busy_frac = np.minimum((totals[:, 0] - self._totals[:, 0]) / span_s, 1.0)
        self._power_w = (totals[:, 1] - self._totals[:, 1]) / span_s
        self._totals = totals
        arrived = arrays.requests[first : int(arrays.fleet[0]["next_arrival"])]
        for k in range(NUM_PRIORITIES):
            self._tenants[k] = self._tenant(arrived[arrived["query"]["priority"] == k], span_s)
        rate_rps = arrived.size / span_s
        change = np.log((rate_rps + 1.0) / (self._mean_rate_rps + 1.0))
        self._fleet[1] = change if self._mean_rate_rps > 0 else 0.0
        gain = RATE_GAIN if self._mean_rate_rps > 0 else 1.0
        self._mean_rate_rps += gain * (rate_rps - self._mean_rate_rps)
        tokens_per_s = float(arrived["query"]["input_tokens"].sum()) / span_s
        self._fleet[0] = tokens_per_s / float((1.0 / fleet_view(arrays)["prefill_token_s"]).sum())

    def _tenant(self, arrived: np.ndarray, span_s: float) -> FloatArray:
        if arrived.size == 0:
            return np.zeros(4)
        query, has_token = arrived["query"], np.isfinite(arrived["first_token_s"])
        ttft_s = arrived["first_token_s"] - arrived["arrival_s"]
        late = (ttft_s > query["ttft_slo_s"])[has_token]
        return np.array(
            [
                arrived.size / span_s,
                query["input_tokens"].mean(),
                (arrived["status"] == SHED).mean(),
                late.mean() if late.size else 0.0,
            ]
        )

    def _replica_values(self, arrays: SimulationArrays) -> FloatArray:
        v, now_s = fleet_view(arrays), float(arrays.fleet[0]["now_s"])
        columns = {
            "is_available": v["is_available"],
            "pending_prefill_s": v["pending_tokens"] * v["prefill_token_s"],
            "decode_iteration_s": v["decode_base_s"]
            + v["outstanding_tokens"] * arrays.nominal["decode_context_s"],
            "state_age_s": now_s - v["scraped_at_s"],
        }
        names = [feature.name for feature in FEATURES_BY_NODE[Node.REPLICA]]
        return np.stack([columns[n] if n in columns else v[n] for n in names], axis=1, dtype=float)

    def read(self, arrays: SimulationArrays) -> ClusterState:
        """Return the state of this moment."""
        gpu, server = self._replica_of_gpu, self._server_of_gpu
        power_frac = (self._power_w / self._gpus_per_replica)[gpu] - self._host_w
        power_frac = np.maximum(power_frac, 0.0) / self._tdp_w
        flops, hbm_bytes, hbm_rate = self._gpu_static.T
        gpu_values = np.stack(
            [flops, self._busy_frac[gpu], power_frac, hbm_bytes, hbm_rate], axis=1
        )
        counts = np.maximum(np.bincount(server, minlength=len(self._server_static)), 1)
        server_power = np.bincount(server, power_frac, minlength=len(self._server_static)) / counts
        values = {
            Node.REPLICA: self._replica_values(arrays),
            Node.GPU: gpu_values,
            Node.SERVER: np.column_stack([self._server_static, server_power]),
            Node.TENANT: self._tenants.copy(),
            Node.FLEET: np.array([[*self._fleet, fleet_view(arrays)["is_available"].mean()]]),
        }
        return ClusterState(
            now_s=float(arrays.fleet[0]["now_s"]),
            values=values,
            is_valid={node: np.isfinite(array) for node, array in values.items()},
            state_age_s=values[Node.REPLICA][:, -1].copy(),
            gpu_replica=gpu,
            gpu_server=server,
        )

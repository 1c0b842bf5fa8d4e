"""Reads a `ClusterState` out of the simulator's arrays: only what a scheduler could see.

Does not know: how the arrays change, or how a state is scaled for a policy.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..cluster import ClusterSpec
from ..hardware import Precision
from ..state import FEATURES_BY_NODE, ClusterState, FloatArray, Node
from .layout import NUM_PRIORITIES, SHED, SimulationArrays

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

    def end_window(self, arrays: SimulationArrays, start_s: float, first: int) -> None:
        """Take the differences of a window that began at a moment and an arrival index."""
        last = self.window
        span_s = float(arrays.fleet[0]["now_s"]) - start_s
        replicas = arrays.replicas
        totals = np.stack([replicas["busy_s"], replicas["energy_j"]], axis=1)
        arrived = arrays.requests[first : int(arrays.fleet[0]["next_arrival"])]
        priority = arrived["query"]["priority"]
        tenants = [self._tenant(arrived[priority == k], span_s) for k in range(NUM_PRIORITIES)]
        rate_rps, is_first = arrived.size / span_s, not last.mean_rate_rps > 0
        gain = 1.0 if is_first else RATE_GAIN
        change = float(np.log((rate_rps + 1.0) / (last.mean_rate_rps + 1.0)))
        tokens_per_s = float(arrived["query"]["input_tokens"].sum()) / span_s
        self.window = Window(
            tenants=np.array(tenants),
            # An iteration that ends in this window may have begun before it.
            busy_frac=np.minimum((totals[:, 0] - last.totals[:, 0]) / span_s, 1.0),
            power_w=(totals[:, 1] - last.totals[:, 1]) / span_s,
            totals=totals,
            mean_rate_rps=last.mean_rate_rps + gain * (rate_rps - last.mean_rate_rps),
            load=tokens_per_s / float((1.0 / arrays.views["prefill_token_s"]).sum()),
            rate_change=0.0 if is_first else change,
        )

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
        v, now_s = arrays.views, float(arrays.fleet[0]["now_s"])
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
        gpu, server, window = self._replica_of_gpu, self._server_of_gpu, self.window
        power_frac = (window.power_w / self._gpus_per_replica)[gpu] - self._host_w
        power_frac = np.maximum(power_frac, 0.0) / self._tdp_w
        flops, hbm_bytes, hbm_rate = self._gpu_static.T
        gpu_values = np.stack(
            [flops, window.busy_frac[gpu], power_frac, hbm_bytes, hbm_rate], axis=1
        )
        counts = np.maximum(np.bincount(server, minlength=len(self._server_static)), 1)
        server_power = np.bincount(server, power_frac, minlength=len(self._server_static)) / counts
        values = {
            Node.REPLICA: self._replica_values(arrays),
            Node.GPU: gpu_values,
            Node.SERVER: np.column_stack([self._server_static, server_power]),
            Node.TENANT: window.tenants.copy(),
            Node.FLEET: np.array(
                [[window.load, window.rate_change, arrays.views["is_available"].mean()]]
            ),
        }
        return ClusterState(
            now_s=float(arrays.fleet[0]["now_s"]),
            values=values,
            is_valid={node: np.isfinite(array) for node, array in values.items()},
            state_age_s=values[Node.REPLICA][:, -1].copy(),
            gpu_replica=gpu,
            gpu_server=server,
        )

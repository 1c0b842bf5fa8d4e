"""From raw signals of hosts, and the features of their GPUs, to the features of servers.

Does not know: round trips and clocks: the aggregator, which measures them, fills those columns.
"""

import numpy as np

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import column
from ..signals import Scope
from .rack_constants import RackConstants
from .readings import Readings, ReadingTable, ScopeStatistics, last, rate
from .recent import recent_ratio

SERVER_READINGS: Readings = {
    "load_per_core": (last("load_1min"),),
    "disk_read_frac": (rate("disk_read_bytes", "disk_bytes_per_s"),),
}


def _column(name: str) -> int:
    return column(Node.SERVER, name)


def mean_of_known(values: FloatArray) -> FloatArray:
    """Return the mean over the last axis of what is known; NaN if nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)
    return mean


class ServerFeatures:
    """Derives the features of a rack's servers.

    Shapes: values are [servers, 1, features of `Node.SERVER`].
    """

    def __init__(self, constants: RackConstants) -> None:
        self._peak = constants.network_bytes_per_s[:, None]  # [S, 1]
        nvlink = constants.gpus.nvlink_bytes_per_s
        has_gpu = np.isfinite(constants.gpus.tdp_watts).any(axis=1)
        most = np.max(np.where(np.isnan(nvlink), 0.0, nvlink), axis=1, initial=0.0)
        self._nvlink = np.where(has_gpu, most, np.nan)[:, None]
        per = {"disk_bytes_per_s": constants.disk_bytes_per_s[:, None]}
        self._table = ReadingTable(Node.SERVER, Scope.SERVER, SERVER_READINGS, per)

    def values(
        self,
        statistics: ScopeStatistics,
        replica_statistics: ScopeStatistics,
        gpus: FloatArray,
    ) -> FloatArray:
        """Return the features; `gpus` [S, G, features of `Node.GPU`]."""
        values, of = self._table.values(statistics), statistics.of
        increments = statistics.increments()
        tx_per_s = _sum_of_known(of(rate("network_tx_bytes")), of(rate("rdma_tx_bytes")))
        rx_per_s = _sum_of_known(of(rate("network_rx_bytes")), of(rate("rdma_rx_bytes")))
        rdma_per_s = of(rate("rdma_tx_bytes")) + of(rate("rdma_rx_bytes"))
        # An RDMA port over Ethernet is a network port as well: the greater, not the sum.
        reported = np.fmax(of(last("network_peak_bytes_per_s")), of(last("rdma_peak_bytes_per_s")))
        peak = np.where(np.isnan(self._peak), reported, self._peak)
        free_frac = of(last("memory_available_bytes")) / of(last("memory_bytes"))
        filled = {
            "power_frac": mean_of_known(gpus[..., column(Node.GPU, "power_frac")])[:, None],
            "sm_activity_frac": mean_of_known(gpus[..., column(Node.GPU, "sm_activity_frac")])[
                :, None
            ],
            "cpu_frac": recent_ratio(increments["cpu_busy_s"], increments["cpu_total_s"]),
            "load_per_core": values[..., _column("load_per_core")] / of(last("num_cores")),
            "host_memory_frac": 1.0 - free_frac,
            "host_kv_frac": mean_of_known(replica_statistics.of(last("host_kv_usage_frac")))[
                :, None
            ],
            "network_bytes_per_s": peak,
            "nvlink_bytes_per_s": self._nvlink,
            "network_tx_frac": tx_per_s / peak,
            "network_rx_frac": rx_per_s / peak,
            "rdma_bytes_per_s": rdma_per_s,
        }
        for name, filling in filled.items():
            values[..., _column(name)] = filling
        return values


def _sum_of_known(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the sum of two parts, one of which may not be there; NaN if neither is."""
    total = np.where(np.isnan(one), 0.0, one) + np.where(np.isnan(other), 0.0, other)
    return np.where(np.isnan(one) & np.isnan(other), np.nan, total)

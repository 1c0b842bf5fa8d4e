"""From raw signals of GPUs to their features.

Does not know: what depends on the replica that a GPU serves, but for its number format
(`hosting.py`), or where the signals come from.
"""

import numpy as np

from ....env.state.feature import FloatArray, Node
from ....env.state.registry import column
from ..signals import Scope
from .rack_constants import PRECISIONS, GpuConstants
from .readings import Readings, ReadingTable, ScopeStatistics, last, mean, most, rate
from .recent import MovingAverage

# Below this share of the window the SMs are as good as idle: what they do is no share of anything.
_LEAST_BUSY_FRAC = 0.01

_SAME_MEAN = (
    "integer_activity_frac", "fp16_activity_frac", "fp32_activity_frac", "fp64_activity_frac",
    "hmma_activity_frac", "imma_activity_frac", "graphics_activity_frac", "sm_occupancy_frac",
    "tensor_activity_frac", "sm_activity_frac",
)  # fmt: skip
_SAME_LAST = (
    "temperature_celsius", "memory_temperature_celsius", "ecc_uncorrected_errors", "remapped_rows",
    "is_remap_pending", "xid_errors", "nvlink_links_up_frac", "pcie_link_frac",
)  # fmt: skip

GPU_READINGS: Readings = {
    **{name: (mean(name),) for name in _SAME_MEAN},
    **{name: (last(name),) for name in _SAME_LAST},
    "tensor_activity_max_frac": (most("tensor_activity_frac"),),
    "sm_activity_max_frac": (most("sm_activity_frac"),),
    "power_frac": (mean("power_watts", "tdp_watts"), rate("energy_joules", "tdp_watts")),
    "power_max_frac": (most("power_watts", "tdp_watts"),),
    "power_limit_frac": (last("power_limit_watts", "tdp_watts"),),
    "power_throttle_frac": (rate("power_throttle_s"), mean("is_power_throttled")),
    "thermal_throttle_frac": (rate("thermal_throttle_s"), mean("is_thermally_throttled")),
    "brake_throttle_frac": (rate("brake_throttle_s"), mean("is_brake_throttled")),
    "hbm_bytes": (last("memory_bytes"),),
    "hbm_bandwidth_frac": (mean("dram_activity_frac"),),
    "hbm_bandwidth_max_frac": (most("dram_activity_frac"),),
    "ecc_corrected_per_s": (rate("ecc_corrected_errors"),),
    "nvlink_tx_frac": (
        mean("nvlink_tx_bytes_per_s", "nvlink_bytes_per_s"),
        rate("nvlink_tx_bytes", "nvlink_bytes_per_s"),
    ),
    "nvlink_rx_frac": (
        mean("nvlink_rx_bytes_per_s", "nvlink_bytes_per_s"),
        rate("nvlink_rx_bytes", "nvlink_bytes_per_s"),
    ),
    "nvlink_errors_per_s": (rate("nvlink_errors"),),
    "pcie_tx_frac": (
        mean("pcie_tx_bytes_per_s", "pcie_bytes_per_s"),
        rate("pcie_tx_bytes", "pcie_bytes_per_s"),
    ),
    "pcie_rx_frac": (
        mean("pcie_rx_bytes_per_s", "pcie_bytes_per_s"),
        rate("pcie_rx_bytes", "pcie_bytes_per_s"),
    ),
    "pcie_replays_per_s": (rate("pcie_replays"),),
}

_PER = ("tdp_watts", "nvlink_bytes_per_s", "pcie_bytes_per_s")
_TRENDS = {
    "tensor_activity_trend_per_s": "tensor_activity_frac",
    "sm_activity_trend_per_s": "sm_activity_frac",
    "hbm_bandwidth_trend_per_s": "hbm_bandwidth_frac",
}
# The counter of the tensor cores that tells of a format's arithmetic.
_PIPE_OF_PRECISION = (
    "hmma_activity_frac", "hmma_activity_frac", "tensor_activity_frac", "imma_activity_frac",
)  # fmt: skip


def _columns(*names: str) -> list[int]:
    return [column(Node.GPU, name) for name in names]


class GpuFeatures:
    """Derives the features of a rack's GPUs.

    Shapes: values are [servers, GPUs, features of `Node.GPU`].
    """

    def __init__(self, constants: GpuConstants) -> None:
        self._constants = constants
        per = {name: getattr(constants, name) for name in _PER}
        self._table = ReadingTable(Node.GPU, Scope.GPU, GPU_READINGS, per)
        self._averages = MovingAverage((*constants.tdp_watts.shape, len(_TRENDS)))
        self._followed = _columns(*_TRENDS.values())
        self._trends = _columns(*_TRENDS)
        self._pipes = _columns(*_PIPE_OF_PRECISION)
        self._peaks = _columns(*(f"peak_{p.value}_flops" for p in PRECISIONS))
        self._of_peaks = _columns(*(f"{p.value}_peak_frac" for p in PRECISIONS))

    def values(self, statistics: ScopeStatistics, passed_s: FloatArray) -> FloatArray:
        """Return the features; `passed_s` [servers, 1] is the time since the window before."""
        values = self._table.values(statistics)
        self._fill_constants(values)
        self._fill_arithmetic(values)
        self._fill_trends(values, passed_s)
        self._fill_shares(values, statistics)
        return values

    def _fill_constants(self, values: FloatArray) -> None:
        known = self._constants
        values[..., self._peaks] = known.peak_flops
        for name in ("hbm_bytes_per_s", "nvlink_bytes_per_s", "pcie_bytes_per_s"):
            values[..., column(Node.GPU, name)] = getattr(known, name)
        values[..., column(Node.GPU, "weights_frac")] = (
            known.weight_bytes / values[..., column(Node.GPU, "hbm_bytes")]
        )

    def _fill_arithmetic(self, values: FloatArray) -> None:
        known = self._constants
        pipes = values[..., self._pipes]
        values[..., self._of_peaks] = np.where(known.runs_precision, pipes, np.nan)
        is_known = known.runs_precision.any(axis=-1)
        peak = np.where(known.runs_precision, known.peak_flops, 0.0).sum(axis=-1)
        tensor, busy, integer, fp16, fp32 = np.moveaxis(
            values[
                ...,
                _columns(
                    "tensor_activity_frac", "sm_activity_frac", "integer_activity_frac",
                    "fp16_activity_frac", "fp32_activity_frac",
                ),
            ], -1, 0,
        )  # fmt: skip
        flops = np.where(is_known, tensor * peak, np.nan)
        matmul_frac = tensor / np.where(busy >= _LEAST_BUSY_FRAC, busy, np.nan)
        values[..., column(Node.GPU, "achieved_flops")] = flops
        values[..., column(Node.GPU, "instruction_frac")] = integer + fp16 + fp32 + tensor
        values[..., column(Node.GPU, "non_matmul_frac")] = np.maximum(1.0 - matmul_frac, 0.0)

    def _fill_trends(self, values: FloatArray, passed_s: FloatArray) -> None:
        followed = values[..., self._followed]
        usual_sm_frac = self._averages.before()[..., 1]
        values[..., self._trends] = self._averages.add(followed, passed_s[..., None])
        missing = np.where(np.isnan(usual_sm_frac), 0.0, usual_sm_frac - followed[..., 1])
        values[..., column(Node.GPU, "sm_idle_surge_frac")] = np.maximum(missing, 0.0)

    def _fill_shares(self, values: FloatArray, statistics: ScopeStatistics) -> None:
        known, of = self._constants, statistics.of
        shares = {
            "sm_clock_frac": of(mean("sm_clock_mhz")) / of(last("sm_clock_max_mhz")),
            "memory_clock_frac": of(mean("memory_clock_mhz")) / of(last("memory_clock_max_mhz")),
            "hbm_used_frac": of(last("memory_used_bytes")) / of(last("memory_bytes")),
            "nvlink_max_frac": np.fmax(
                of(most("nvlink_tx_bytes_per_s")), of(most("nvlink_rx_bytes_per_s"))
            )
            / known.nvlink_bytes_per_s,
            "nvlink_hops": np.where(known.num_peers == 1, 0.0, of(last("nvlink_hops"))),
        }
        recovery = of(last("recovery_action"))
        shares["is_usable"] = np.where(np.isnan(recovery), np.nan, recovery == 0)
        for name, share in shares.items():
            values[..., column(Node.GPU, name)] = share

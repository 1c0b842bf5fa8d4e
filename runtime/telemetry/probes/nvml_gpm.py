"""GPM metrics of NVML: what the units of a GPU did between two samples. Hopper and newer.

Does not know: other calls of NVML, or when metrics are read.
Source: nvmlGpm* and the metric ids in nvidia-ml-py 13. The header asks for more than 100 ms from
one sample to the next, since the device renews them at that pace.
"""

import logging
import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from .nvml_faults import Values, column, fault
from .paced_readings import LostError, UnsupportedError

_LOG = logging.getLogger(__name__)
_MIN_INTERVAL_S: Final = 0.1
_PERCENT: Final = 0.01
_MIB: Final = 1024.0 * 1024.0

METRICS: Final = {
    "graphics_activity_frac": ("GRAPHICS_UTIL", _PERCENT),
    "sm_activity_frac": ("SM_UTIL", _PERCENT),
    "sm_occupancy_frac": ("SM_OCCUPANCY", _PERCENT),
    "integer_activity_frac": ("INTEGER_UTIL", _PERCENT),
    "tensor_activity_frac": ("ANY_TENSOR_UTIL", _PERCENT),
    "hmma_activity_frac": ("HMMA_TENSOR_UTIL", _PERCENT),
    "imma_activity_frac": ("IMMA_TENSOR_UTIL", _PERCENT),
    "dram_activity_frac": ("DRAM_BW_UTIL", _PERCENT),
    "fp64_activity_frac": ("FP64_UTIL", _PERCENT),
    "fp32_activity_frac": ("FP32_UTIL", _PERCENT),
    "fp16_activity_frac": ("FP16_UTIL", _PERCENT),
    "pcie_tx_bytes_per_s": ("PCIE_TX_PER_SEC", _MIB),
    "pcie_rx_bytes_per_s": ("PCIE_RX_PER_SEC", _MIB),
    "nvlink_tx_bytes_per_s": ("NVLINK_TOTAL_TX_PER_SEC", _MIB),
    "nvlink_rx_bytes_per_s": ("NVLINK_TOTAL_RX_PER_SEC", _MIB),
}
"""By signal: the metric, and its unit in units of the signal."""


def is_supported(nvml: ModuleType | Any, handle: Any) -> bool:
    """Say whether a GPU has GPM metrics."""
    try:
        return bool(nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except nvml.NVMLError:  # among others: a driver without GPM
        return False


class GpmPair:
    """Two samples of one GPU, of which the newer becomes the older of the next pair."""

    def __init__(
        self,
        nvml: ModuleType | Any,
        handle: Any,
        gpu: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = nvml
        self._handle = handle
        self._gpu = gpu
        self._clock = clock
        self._metrics = dict(METRICS)
        self._older = nvml.nvmlGpmSampleAlloc()
        self._newer = nvml.nvmlGpmSampleAlloc()
        self._older_at_s: float | None = None
        self._question = nvml.c_nvmlGpmMetricsGet_t()
        self._question.version = nvml.NVML_GPM_METRICS_GET_VERSION

    def read(self) -> Values | None:
        """Return the metrics since the last sample, by column; None if it is too recent.

        Raises:
            UnsupportedError: the GPU gives none of the metrics.
            LostError: the GPU is lost.
            NVMLError: the call as a whole failed.
        """
        now_s = self._clock()
        if self._older_at_s is None:
            self._nvml.nvmlGpmSampleGet(self._handle, self._older)
            self._older_at_s = now_s
            return None
        if now_s - self._older_at_s < _MIN_INTERVAL_S:
            return None
        self._nvml.nvmlGpmSampleGet(self._handle, self._newer)
        try:
            return self._compare()
        finally:
            self._older, self._newer = self._newer, self._older
            self._older_at_s = now_s

    def close(self) -> None:
        """Free both samples."""
        for sample in (self._older, self._newer):
            self._nvml.nvmlGpmSampleFree(sample)

    def _compare(self) -> Values:
        question = self._question
        question.numMetrics = len(self._metrics)
        question.sample1, question.sample2 = self._older, self._newer
        for place, (metric, _) in enumerate(self._metrics.values()):
            question.metrics[place].metricId = getattr(self._nvml, f"NVML_GPM_METRIC_{metric}")
        self._nvml.nvmlGpmMetricsGet(question)
        values, refused = {}, []
        for place, (signal, (metric, unit)) in enumerate(self._metrics.items()):
            answer = question.metrics[place]
            if not self._is_supported(metric, answer.nvmlReturn):
                refused.append(signal)
            elif answer.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(answer.value):
                values[column(signal)] = answer.value * unit
        self._drop(refused)
        return values

    def _is_supported(self, metric: str, code: int) -> bool:
        if code == self._nvml.NVML_SUCCESS:
            return True
        error = fault(self._nvml, code, f"{self._gpu} GPM metric {metric}")
        if isinstance(error, LostError):
            raise error
        return not isinstance(error, UnsupportedError)

    def _drop(self, refused: list[str]) -> None:
        if not refused:
            return
        names = ", ".join(self._metrics.pop(signal)[0] for signal in refused)
        _LOG.info("%s does not have these GPM metrics: %s", self._gpu, names)
        if not self._metrics:
            msg = f"{self._gpu} gives no GPM metric"
            raise UnsupportedError(msg)

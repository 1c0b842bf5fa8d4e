"""Numbers of a GPU for which NVML has a function each.

`nvmlDeviceGetPcieThroughput` is left alone: it counts for 20 ms while its caller waits, and the
field counters say the same.

Does not know: fields and GPM metrics, or when a function is called.
Source: functions and constants of nvidia-ml-py 13.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

from .nvml_faults import Values, column
from .paced_readings import UnsupportedError

EVERY_SAMPLE: Final = 0.0
HEALTH_PERIOD_S: Final = 2.0
STATIC_PERIOD_S: Final = 30.0

# Bits of the clock event reasons that say the same for a scheduler.
_REASONS: Final = {
    "is_power_throttled": ("SwPowerCap",),
    "is_thermally_throttled": ("SwThermalSlowdown", "HwThermalSlowdown"),
    "is_brake_throttled": ("HwSlowdown", "HwPowerBrakeSlowdown"),
}


class Queries:
    """The functions of NVML that are called for one GPU; each method returns values by column."""

    def __init__(self, nvml: ModuleType | Any, handle: Any, num_gpus: int) -> None:
        self._nvml = nvml
        self._handle = handle
        self._num_gpus = num_gpus

    def by_period(
        self, *, has_gpm: bool, has_power_field: bool
    ) -> list[tuple[str, float, Callable[[], Values]]]:
        """Return name, period and function of each query that this GPU needs."""
        queries: list[tuple[str, float, Callable[[], Values]]] = [
            ("clocks", EVERY_SAMPLE, self.clocks),
            ("temperature", EVERY_SAMPLE, self.temperature),
            ("clock event reasons", EVERY_SAMPLE, self.clock_event_reasons),
            ("memory", EVERY_SAMPLE, self.memory),
            ("power limit", HEALTH_PERIOD_S, self.power_limit),
            ("ECC errors", HEALTH_PERIOD_S, self.ecc_errors),
            ("remapped rows", HEALTH_PERIOD_S, self.remapped_rows),
            ("PCIe link", HEALTH_PERIOD_S, self.pcie_link),
            ("NVLink links", HEALTH_PERIOD_S, self.nvlink_links),
            ("most clocks", STATIC_PERIOD_S, self.most_clocks),
        ]
        if not has_gpm:
            queries.append(("utilisation", EVERY_SAMPLE, self.utilisation))
        if not has_power_field:
            queries.append(("power", EVERY_SAMPLE, self.power))
        return queries

    def clocks(self) -> Values:
        """Clocks of the multiprocessors and of the memory."""
        get = self._nvml.nvmlDeviceGetClockInfo
        return {
            column("sm_clock_mhz"): get(self._handle, self._nvml.NVML_CLOCK_SM),
            column("memory_clock_mhz"): get(self._handle, self._nvml.NVML_CLOCK_MEM),
        }

    def most_clocks(self) -> Values:
        """Return the clocks at most."""
        get = self._nvml.nvmlDeviceGetMaxClockInfo
        return {
            column("sm_clock_max_mhz"): get(self._handle, self._nvml.NVML_CLOCK_SM),
            column("memory_clock_max_mhz"): get(self._handle, self._nvml.NVML_CLOCK_MEM),
        }

    def temperature(self) -> Values:
        """Temperature of the GPU."""
        sensor = self._nvml.NVML_TEMPERATURE_GPU
        return {
            column("temperature_celsius"): self._nvml.nvmlDeviceGetTemperature(self._handle, sensor)
        }

    def clock_event_reasons(self) -> Values:
        """Why the clock is lower than it could be."""
        reasons = self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        return {
            column(signal): float(
                any(reasons & getattr(self._nvml, f"nvmlClocksEventReason{name}") for name in names)
            )
            for signal, names in _REASONS.items()
        }

    def memory(self) -> Values:
        """Memory in all, and taken."""
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        return {column("memory_bytes"): memory.total, column("memory_used_bytes"): memory.used}

    def utilisation(self) -> Values:
        """Share of time in which any kernel ran, for GPUs without GPM."""
        rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        return {column("graphics_activity_frac"): rates.gpu / 100}

    def power(self) -> Values:
        """Power, for GPUs without the field."""
        return {column("power_watts"): self._nvml.nvmlDeviceGetPowerUsage(self._handle) * 1e-3}

    def power_limit(self) -> Values:
        """Power that the GPU may draw."""
        limit_mw = self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)
        return {column("power_limit_watts"): limit_mw * 1e-3}

    def ecc_errors(self) -> Values:
        """ECC errors since boot."""
        nvml = self._nvml
        corrected, uncorrected = (
            nvml.nvmlDeviceGetTotalEccErrors(self._handle, kind, nvml.NVML_VOLATILE_ECC)
            for kind in (
                nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            )
        )
        return {
            column("ecc_corrected_errors"): corrected,
            column("ecc_uncorrected_errors"): uncorrected,
        }

    def remapped_rows(self) -> Values:
        """Memory rows that were replaced; before Ampere, pages that wait to be retired."""
        nvml = self._nvml
        try:
            rows = nvml.nvmlDeviceGetRemappedRows(self._handle)
        except nvml.NVMLError_NotSupported:
            is_pending = nvml.nvmlDeviceGetRetiredPagesPendingStatus(self._handle)
            return {column("is_remap_pending"): is_pending}
        corrected, uncorrected, is_pending, _ = rows
        return {
            column("remapped_rows"): corrected + uncorrected,
            column("is_remap_pending"): is_pending,
        }

    def pcie_link(self) -> Values:
        """PCIe bandwidth in use, of the most: it doubles with each generation."""
        nvml, handle = self._nvml, self._handle
        generations = (
            nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
            - nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)
        )  # fmt: skip
        width = nvml.nvmlDeviceGetCurrPcieLinkWidth(handle)
        most = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
        if most == 0:
            msg = "the GPU has no PCIe link"
            raise UnsupportedError(msg)
        return {column("pcie_link_frac"): min(1.0, width / most * 2.0**-generations)}

    def nvlink_links(self) -> Values:
        """Share of NVLink links that are up, and how far it is to other GPUs of the server."""
        states = self._nvlink_states()
        hops = column("nvlink_hops")
        if not states:
            return {hops: 0.0 if self._num_gpus == 1 else 2.0}
        up = [link for link, is_up in states.items() if is_up]
        remote = {self._nvml.nvmlDeviceGetNvLinkRemoteDeviceType(self._handle, link) for link in up}
        is_direct = self._nvml.NVML_NVLINK_DEVICE_TYPE_GPU in remote
        far = 1.0 if is_direct else 2.0
        return {
            column("nvlink_links_up_frac"): len(up) / len(states),
            hops: 0.0 if self._num_gpus == 1 else far,
        }

    def _nvlink_states(self) -> dict[int, bool]:
        """By link: whether it is up; empty for a GPU without NVLink."""
        nvml = self._nvml
        states = {}
        for link in range(nvml.NVML_NVLINK_MAX_LINKS):
            try:
                states[link] = bool(nvml.nvmlDeviceGetNvLinkState(self._handle, link))
            except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
                break
        return states

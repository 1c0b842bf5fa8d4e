"""A stand-in for the module pynvml: its structures, constants and errors, and made-up GPUs.

Functions have the names and parameters of the real ones; one that is not made up here fails.
"""

import ctypes
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pynvml

ALL_LINKS = 0xFFFFFFFF
_FIRST_ADDRESS = 0x1000


def ulonglong(value: int) -> tuple[int, str, int]:
    return pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, "ullVal", value


def uint(value: int) -> tuple[int, str, int]:
    return pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal", value


def double(value: float) -> tuple[int, str, float]:
    return pynvml.NVML_VALUE_TYPE_DOUBLE, "dVal", value


def make_fields() -> dict[tuple[int, int], tuple[int, str, float] | int]:
    """By field and scope: type, member of the union and value; or a return code."""
    p = pynvml
    return {
        (p.NVML_FI_DEV_POWER_INSTANT, 0): uint(500_000),
        (p.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 0): ulonglong(7_000_000_000),
        (p.NVML_FI_DEV_MEMORY_TEMP, 0): uint(71),
        (p.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0): ulonglong(1_000),
        (p.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0): ulonglong(2_000),
        (p.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS): ulonglong(30),
        (p.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS): ulonglong(40),
        (p.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, 0): ulonglong(1_500_000_000),
        (p.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, 0): ulonglong(250_000_000),
        (p.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, 0): ulonglong(500_000_000),
        (p.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, 0): ulonglong(0),
        (p.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0): uint(0),
        (p.NVML_FI_DEV_PCIE_REPLAY_COUNTER, 0): uint(3),
        (p.NVML_FI_DEV_NVLINK_ERROR_DL_CRC, 0): ulonglong(2),
        (p.NVML_FI_DEV_NVLINK_ERROR_DL_CRC, 1): ulonglong(5),
        (p.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY, 0): ulonglong(1),
    }


@dataclass
class FakeGpu:
    """What one GPU answers; an H100 in a server with a switch unless told otherwise."""

    uuid: str = "GPU-0"
    fields: dict[tuple[int, int], Any] = field(default_factory=make_fields)
    has_gpm: bool = True
    gpm: dict[int, float] = field(
        default_factory=lambda: {
            pynvml.NVML_GPM_METRIC_SM_UTIL: 80.0,
            pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 40.0,
            pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 55.0,
            pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: 100.0,
            pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC: 1024.0,
        }
    )
    """By metric: percent or MiB/s; what is not here is not supported."""
    unsupported: set[str] = field(default_factory=set)
    """Functions that answer NVML_ERROR_NOT_SUPPORTED."""
    fault: int | None = None
    """What every call answers, for instance NVML_ERROR_GPU_IS_LOST."""
    clock_reasons: int = 0
    links: list[bool] = field(default_factory=lambda: [True, True, True, False])
    remote: int = pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    pcie: tuple[int, int, int, int] = (5, 5, 16, 16)
    """Generation, most; width, most."""
    supported_events: int = pynvml.nvmlEventTypeXidCriticalError


class FakeNvml:
    """The module, with the GPUs it shows. Calls cost time on the given clock."""

    def __init__(
        self,
        *gpus: FakeGpu,
        spend: Callable[[float], None] = lambda _s: None,
        init_fault: int | None = None,
    ) -> None:
        self.gpus = gpus
        self.spend = spend
        self.costs_s: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.asked_fields: list[list[tuple[int, int]]] = []
        self.events: list[tuple[int, int]] = []
        self.init_fault = init_fault
        self.num_init = self.num_samples = self.num_event_sets = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)  # AttributeError where the real module has none
        if name.startswith("nvml") and inspect.isfunction(real):
            msg = f"{name} was called, and is not made up"
            raise AssertionError(msg)
        return real

    def _called(self, name: str, handle: Any = None) -> FakeGpu:
        self.calls[name] += 1
        self.spend(self.costs_s.get(name, 0.0))
        gpu = self.gpus[index_of(handle)] if handle is not None else FakeGpu()
        if gpu.fault is not None:
            raise pynvml.NVMLError(gpu.fault)
        if name in gpu.unsupported:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu

    def nvmlInit(self) -> None:
        if self.init_fault is not None:
            raise pynvml.NVMLError(self.init_fault)
        self.num_init += 1

    def nvmlShutdown(self) -> None:
        assert self.num_samples == self.num_event_sets == 0, "held when NVML was left"
        self.num_init -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return handle_of(index)

    def nvmlDeviceGetIndex(self, handle: Any) -> int:
        self._called("nvmlDeviceGetIndex", handle)
        return index_of(handle)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return self._called("nvmlDeviceGetUUID", handle).uuid

    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: list[Any]) -> Any:
        gpu = self._called("nvmlDeviceGetFieldValues", handle)
        self.asked_fields.append(list(fieldIds))
        values = (pynvml.c_nvmlFieldValue_t * len(fieldIds))()
        for value, (field_id, scope) in zip(values, fieldIds, strict=True):
            value.fieldId, value.scopeId = field_id, scope
            answer = gpu.fields.get((field_id, scope), pynvml.NVML_ERROR_NOT_SUPPORTED)
            if isinstance(answer, int):
                value.nvmlReturn = answer
                continue
            value.nvmlReturn = pynvml.NVML_SUCCESS
            value.valueType, member, number = answer
            setattr(value.value, member, number)
        return values

    def nvmlGpmQueryDeviceSupport(self, device: Any) -> Any:
        support = pynvml.c_nvmlGpmSupport_t()
        support.isSupportedDevice = int(self._called("nvmlGpmQueryDeviceSupport", device).has_gpm)
        return support

    def nvmlGpmSampleAlloc(self) -> Any:
        self.num_samples += 1
        return ctypes.cast(0x100 + 0x10 * self.num_samples, pynvml.c_nvmlGpmSample_t)

    def nvmlGpmSampleFree(self, gpmSample: Any) -> None:
        assert gpmSample
        self.num_samples -= 1

    def nvmlGpmSampleGet(self, device: Any, gpmSample: Any) -> Any:
        self._called("nvmlGpmSampleGet", device)
        self._last_sampled = device
        return gpmSample

    def nvmlGpmMetricsGet(self, metricsGet: Any) -> Any:
        gpu = self._called("nvmlGpmMetricsGet", self._last_sampled)
        assert metricsGet.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        older, newer = (address_of(s) for s in (metricsGet.sample1, metricsGet.sample2))
        assert older != newer
        for place in range(metricsGet.numMetrics):
            metric = metricsGet.metrics[place]
            metric.nvmlReturn = (
                pynvml.NVML_SUCCESS
                if metric.metricId in gpu.gpm
                else pynvml.NVML_ERROR_NOT_SUPPORTED
            )
            metric.value = gpu.gpm.get(metric.metricId, 0.0)
        return metricsGet

    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        self._called("nvmlDeviceGetClockInfo", handle)
        return {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}[type]

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:
        self._called("nvmlDeviceGetMaxClockInfo", handle)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[type]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        self._called("nvmlDeviceGetTemperature", handle)
        return 63

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetCurrentClocksEventReasons", handle).clock_reasons

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: Any = None) -> Any:
        self._called("nvmlDeviceGetMemoryInfo", handle)
        return pynvml.c_nvmlMemory_t(total=80 << 30, free=20 << 30, used=60 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        self._called("nvmlDeviceGetUtilizationRates", handle)
        return pynvml.c_nvmlUtilization_t(gpu=90, memory=30)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._called("nvmlDeviceGetPowerUsage", handle)
        return 310_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        self._called("nvmlDeviceGetEnforcedPowerLimit", handle)
        return 700_000

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, errorType: int, counterType: int) -> int:
        assert counterType == pynvml.NVML_VOLATILE_ECC
        self._called("nvmlDeviceGetTotalEccErrors", handle)
        return {
            pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED: 12,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED: 1,
        }[errorType]

    def nvmlDeviceGetRemappedRows(self, device: Any) -> tuple[int, int, int, int]:
        self._called("nvmlDeviceGetRemappedRows", device)
        return 4, 1, 1, 0

    def nvmlDeviceGetRetiredPagesPendingStatus(self, device: Any) -> int:
        self._called("nvmlDeviceGetRetiredPagesPendingStatus", device)
        return 1

    def nvmlDeviceGetCurrPcieLinkGeneration(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetCurrPcieLinkGeneration", handle).pcie[0]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetMaxPcieLinkGeneration", handle).pcie[1]

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetCurrPcieLinkWidth", handle).pcie[2]

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetMaxPcieLinkWidth", handle).pcie[3]

    def nvmlDeviceGetNvLinkState(self, device: Any, link: int) -> int:
        links = self._called("nvmlDeviceGetNvLinkState", device).links
        if link >= len(links):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return int(links[link])

    def nvmlDeviceGetNvLinkRemoteDeviceType(self, handle: Any, link: int) -> int:
        return self._called("nvmlDeviceGetNvLinkRemoteDeviceType", handle).remote

    def nvmlDeviceGetSupportedEventTypes(self, handle: Any) -> int:
        return self._called("nvmlDeviceGetSupportedEventTypes", handle).supported_events

    def nvmlEventSetCreate(self) -> Any:
        self.num_event_sets += 1
        return pynvml.c_nvmlEventSet_t()

    def nvmlEventSetFree(self, eventSet: Any) -> None:
        self.num_event_sets -= 1

    def nvmlDeviceRegisterEvents(self, handle: Any, eventTypes: int, eventSet: Any) -> None:
        self._called("nvmlDeviceRegisterEvents", handle)

    def nvmlEventSetWait_v2(self, eventSet: Any, timeoutms: int) -> Any:
        assert timeoutms == 0, "a probe must not wait for events"
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        index, xid = self.events.pop(0)
        return pynvml.c_nvmlEventData_t(
            device=handle_of(index),
            eventType=pynvml.nvmlEventTypeXidCriticalError,
            eventData=xid,
        )


def handle_of(index: int) -> Any:
    return ctypes.cast(_FIRST_ADDRESS + 0x10 * index, pynvml.c_nvmlDevice_t)


def index_of(handle: Any) -> int:
    return (address_of(handle) - _FIRST_ADDRESS) // 0x10


def address_of(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0

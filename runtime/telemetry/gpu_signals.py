"""Raw signals of a GPU.

Does not know: how NVML is called (`probes/nvml.py`), or what is derived from a signal.
Source: NVML functions, fields and GPM metrics as in nvidia-ml-py 13; DCGM fields as in
dcgm-exporter.
"""

from ...env.state.feature import Live
from .raw_signal import Kind, Scope, Signal, signal_maker

# Counters on the device are read one after another, so a share may come out a little above 1.
_SHARE = 1.1
# NVLink 5 moves 0.9e12 B/s each way: folded after 78 s at that rate, in steps of 4 MiB.
_NVLINK_FOLD_BYTES = 2.0**46
# PCIe 6 x16 moves 0.12e12 B/s each way: folded after 70 s at that rate, in steps of 512 KiB.
_PCIE_FOLD_BYTES = 2.0**43
# 1 kW: folded after 17 min, in steps of 1/16 J.
_ENERGY_FOLD_J = 2.0**20
# Folded after 68 min, in steps of 0.25 ms.
_TIME_FOLD_S = 2.0**12
_EVENTS_FOLD = 2.0**24

_signal = signal_maker(Scope.GPU)


def _gpm(metric: str, dcgm: str, otherwise: str = "") -> dict[Live, str]:
    return {Live.NVML: f"GPM {metric}{otherwise}", Live.DCGM: f"DCGM_FI_PROF_{dcgm}"}


_ACTIVITY = tuple(
    _signal(f"{name}_frac", "share", _SHARE, _gpm(metric, dcgm, otherwise))
    for name, metric, dcgm, otherwise in (
        ("graphics_activity", "GRAPHICS_UTIL", "GR_ENGINE_ACTIVE",
         ", else nvmlDeviceGetUtilizationRates"),
        ("sm_activity", "SM_UTIL", "SM_ACTIVE", ""),
        ("sm_occupancy", "SM_OCCUPANCY", "SM_OCCUPANCY", ""),
        ("integer_activity", "INTEGER_UTIL", "PIPE_INT_ACTIVE", ""),
        ("tensor_activity", "ANY_TENSOR_UTIL", "PIPE_TENSOR_ACTIVE", ""),
        ("hmma_activity", "HMMA_TENSOR_UTIL", "PIPE_TENSOR_HMMA_ACTIVE", ""),
        ("imma_activity", "IMMA_TENSOR_UTIL", "PIPE_TENSOR_IMMA_ACTIVE", ""),
        ("dram_activity", "DRAM_BW_UTIL", "DRAM_ACTIVE", ""),
        ("fp64_activity", "FP64_UTIL", "PIPE_FP64_ACTIVE", ""),
        ("fp32_activity", "FP32_UTIL", "PIPE_FP32_ACTIVE", ""),
        ("fp16_activity", "FP16_UTIL", "PIPE_FP16_ACTIVE", ""),
    )
)  # fmt: skip

_TRAFFIC = (
    _signal("pcie_tx_bytes_per_s", "B/s", 1e12, _gpm("PCIE_TX_PER_SEC", "PCIE_TX_BYTES")),
    _signal("pcie_rx_bytes_per_s", "B/s", 1e12, _gpm("PCIE_RX_PER_SEC", "PCIE_RX_BYTES")),
    _signal("nvlink_tx_bytes_per_s", "B/s", 1e13,
            _gpm("NVLINK_TOTAL_TX_PER_SEC", "NVLINK_TX_BYTES")),
    _signal("nvlink_rx_bytes_per_s", "B/s", 1e13,
            _gpm("NVLINK_TOTAL_RX_PER_SEC", "NVLINK_RX_BYTES")),
    _signal("pcie_tx_bytes", "B", _PCIE_FOLD_BYTES, {Live.NVML: "field PCIE_COUNT_TX_BYTES"},
            kind=Kind.COUNTER),
    _signal("pcie_rx_bytes", "B", _PCIE_FOLD_BYTES, {Live.NVML: "field PCIE_COUNT_RX_BYTES"},
            kind=Kind.COUNTER),
    _signal("nvlink_tx_bytes", "B", _NVLINK_FOLD_BYTES,
            {Live.NVML: "field NVLINK_THROUGHPUT_DATA_TX, all links"}, kind=Kind.COUNTER),
    _signal("nvlink_rx_bytes", "B", _NVLINK_FOLD_BYTES,
            {Live.NVML: "field NVLINK_THROUGHPUT_DATA_RX, all links"}, kind=Kind.COUNTER),
)  # fmt: skip

_LINKS = (
    _signal("pcie_link_frac", "share of most", 1.0,
            {Live.NVML: "nvmlDeviceGetCurrPcieLinkGeneration, Width over Max"}),
    _signal("pcie_replays", "replays", _EVENTS_FOLD,
            {Live.NVML: "field PCIE_REPLAY_COUNTER", Live.DCGM: "DCGM_FI_DEV_PCIE_REPLAY_COUNTER"},
            kind=Kind.COUNTER),
    _signal("nvlink_links_up_frac", "share of links", 1.0, {Live.NVML: "nvmlDeviceGetNvLinkState"}),
    _signal("nvlink_errors", "errors", _EVENTS_FOLD,
            {Live.NVML: "fields NVLINK_CRC_*, NVLINK_REPLAY_*, else NVLINK_ERROR_DL_*"},
            kind=Kind.COUNTER),
    _signal("nvlink_hops", "hops", 2.0,
            {Live.NVML: "nvmlDeviceGetNvLinkRemoteDeviceType: to other GPUs of its server, "
                        "0 alone, 1 direct, 2 over a switch or PCIe"}),
)  # fmt: skip

_POWER = (
    _signal("power_watts", "W", 5e3,
            {Live.NVML: "field POWER_INSTANT, else nvmlDeviceGetPowerUsage",
             Live.DCGM: "DCGM_FI_DEV_POWER_USAGE"}),
    _signal("power_limit_watts", "W", 5e3, {Live.NVML: "nvmlDeviceGetEnforcedPowerLimit"}),
    _signal("energy_joules", "J", _ENERGY_FOLD_J,
            {Live.NVML: "field TOTAL_ENERGY_CONSUMPTION",
             Live.DCGM: "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"}, kind=Kind.COUNTER),
    _signal("sm_clock_mhz", "MHz", 1e4,
            {Live.NVML: "nvmlDeviceGetClockInfo (SM)", Live.DCGM: "DCGM_FI_DEV_SM_CLOCK"}),
    _signal("sm_clock_max_mhz", "MHz", 1e4, {Live.NVML: "nvmlDeviceGetMaxClockInfo (SM)"}),
    _signal("memory_clock_mhz", "MHz", 1e5,
            {Live.NVML: "nvmlDeviceGetClockInfo (MEM)", Live.DCGM: "DCGM_FI_DEV_MEM_CLOCK"}),
    _signal("memory_clock_max_mhz", "MHz", 1e5, {Live.NVML: "nvmlDeviceGetMaxClockInfo (MEM)"}),
    _signal("temperature_celsius", "C", 150.0,
            {Live.NVML: "nvmlDeviceGetTemperature", Live.DCGM: "DCGM_FI_DEV_GPU_TEMP"}, low=-40.0),
    _signal("memory_temperature_celsius", "C", 150.0,
            {Live.NVML: "field MEMORY_TEMP", Live.DCGM: "DCGM_FI_DEV_MEMORY_TEMP"}, low=-40.0),
)  # fmt: skip

_THROTTLING = (
    _signal("is_power_throttled", "0 or 1", 1.0, {Live.NVML: "clock event reason SwPowerCap"}),
    _signal("is_thermally_throttled", "0 or 1", 1.0,
            {Live.NVML: "clock event reasons SwThermalSlowdown, HwThermalSlowdown"}),
    _signal("is_brake_throttled", "0 or 1", 1.0,
            {Live.NVML: "clock event reasons HwSlowdown, HwPowerBrakeSlowdown"}),
    _signal("power_throttle_s", "s", _TIME_FOLD_S,
            {Live.NVML: "field CLOCKS_EVENT_REASON_SW_POWER_CAP",
             Live.DCGM: "DCGM_FI_DEV_POWER_VIOLATION"}, kind=Kind.COUNTER),
    _signal("thermal_throttle_s", "s", _TIME_FOLD_S,
            {Live.NVML: "fields CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN + HW_THERM_SLOWDOWN",
             Live.DCGM: "DCGM_FI_DEV_THERMAL_VIOLATION"}, kind=Kind.COUNTER),
    _signal("brake_throttle_s", "s", _TIME_FOLD_S,
            {Live.NVML: "field CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN"}, kind=Kind.COUNTER),
)  # fmt: skip

_MEMORY_AND_HEALTH = (
    _signal("memory_bytes", "B", 2.0**42, {Live.NVML: "nvmlDeviceGetMemoryInfo"}),
    _signal("memory_used_bytes", "B", 2.0**42,
            {Live.NVML: "nvmlDeviceGetMemoryInfo", Live.DCGM: "DCGM_FI_DEV_FB_USED"}),
    _signal("ecc_corrected_errors", "errors", _EVENTS_FOLD,
            {Live.NVML: "nvmlDeviceGetTotalEccErrors (corrected, volatile)",
             Live.DCGM: "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL"}, kind=Kind.COUNTER),
    _signal("ecc_uncorrected_errors", "errors since boot", _EVENTS_FOLD,
            {Live.NVML: "nvmlDeviceGetTotalEccErrors (uncorrected, volatile)",
             Live.DCGM: "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"}),
    _signal("remapped_rows", "rows", 2.0**16, {Live.NVML: "nvmlDeviceGetRemappedRows"}),
    _signal("is_remap_pending", "0 or 1", 1.0,
            {Live.NVML: "nvmlDeviceGetRemappedRows, else nvmlDeviceGetRetiredPagesPendingStatus"}),
    _signal("xid_errors", "errors since the probe's start", _EVENTS_FOLD,
            {Live.NVML: "event XidCriticalError", Live.DCGM: "DCGM_FI_DEV_XID_ERRORS"}),
    _signal("recovery_action", "NVML_GPU_RECOVERY_ACTION_*: 0 none", 16.0,
            {Live.NVML: "field GET_GPU_RECOVERY_ACTION; 2 (reboot) for a GPU that is lost, "
                        "1 (reset) for one that says it must be reset"}),
)  # fmt: skip

GPU_SIGNALS: tuple[Signal, ...] = (
    *_ACTIVITY, *_TRAFFIC, *_LINKS, *_POWER, *_THROTTLING, *_MEMORY_AND_HEALTH,
)  # fmt: skip

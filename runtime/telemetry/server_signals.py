"""Raw signals of a server as a whole: processors, memory, network, disks, and its probe.

Does not know: how the host is read (`probes/host.py`), or what is derived from a signal.
Source: proc(5); /sys/class/net and /sys/class/infiniband as in the Linux kernel's ABI documents.
"""

from ...env.state.feature import Live
from .raw_signal import Kind, Scope, Signal, signal_maker

# 256 cores: folded after 8 min, in steps of 8 ms (a tick of /proc/stat is 10 ms).
_CORES_FOLD_S = 2.0**17
# Folded after 68 min, in steps of 0.25 ms.
_TIME_FOLD_S = 2.0**12
# 8 adapters of 400 Gbit/s: folded after 22 s at that rate, in steps of 512 KiB.
_NETWORK_FOLD_BYTES = 2.0**43
# 20 GB/s: folded after 3.6 min, in steps of 256 KiB.
_DISK_FOLD_BYTES = 2.0**42
_EVENTS_FOLD = 2.0**24

_signal = signal_maker(Scope.SERVER)


def _host(what: str) -> dict[Live, str]:
    return {Live.HOST: what}


_COUNTER = Kind.COUNTER

_PROCESSORS = (
    _signal("cpu_busy_s", "core seconds", _CORES_FOLD_S,
            _host("/proc/stat: all but idle and iowait"), kind=_COUNTER),
    _signal("cpu_iowait_s", "core seconds", _CORES_FOLD_S, _host("/proc/stat"), kind=_COUNTER),
    _signal("cpu_steal_s", "core seconds", _CORES_FOLD_S, _host("/proc/stat"), kind=_COUNTER),
    _signal("cpu_total_s", "core seconds", _CORES_FOLD_S, _host("/proc/stat: all"), kind=_COUNTER),
    _signal("num_cores", "cores", 4096.0, _host("/proc/stat"), low=1.0),
    _signal("load_1min", "runnable threads", 1e6, _host("/proc/loadavg")),
    _signal("cpu_pressure_s", "s", _TIME_FOLD_S, _host("/proc/pressure/cpu: some"), kind=_COUNTER),
)  # fmt: skip

_MEMORY = (
    _signal("memory_bytes", "B", 2.0**48, _host("/proc/meminfo: MemTotal"), low=1.0),
    _signal("memory_available_bytes", "B", 2.0**48, _host("/proc/meminfo: MemAvailable")),
    _signal("swap_used_bytes", "B", 2.0**48, _host("/proc/meminfo: SwapTotal - SwapFree")),
    _signal("memory_pressure_s", "s", _TIME_FOLD_S, _host("/proc/pressure/memory: some"),
            kind=_COUNTER),
)  # fmt: skip

_NETWORK = (
    _signal("network_tx_bytes", "B", _NETWORK_FOLD_BYTES, _host("/proc/net/dev, physical ports"),
            kind=_COUNTER),
    _signal("network_rx_bytes", "B", _NETWORK_FOLD_BYTES, _host("/proc/net/dev, physical ports"),
            kind=_COUNTER),
    _signal("network_errors", "packets", _EVENTS_FOLD,
            _host("/proc/net/dev: errors and drops, both ways"), kind=_COUNTER),
    _signal("network_peak_bytes_per_s", "B/s", 1e13, _host("/sys/class/net/*/speed")),
    _signal("rdma_tx_bytes", "B", _NETWORK_FOLD_BYTES,
            _host("/sys/class/infiniband/*/ports/*/counters/port_xmit_data"), kind=_COUNTER),
    _signal("rdma_rx_bytes", "B", _NETWORK_FOLD_BYTES,
            _host("/sys/class/infiniband/*/ports/*/counters/port_rcv_data"), kind=_COUNTER),
    _signal("rdma_errors", "errors", _EVENTS_FOLD,
            _host("/sys/class/infiniband/*/ports/*/counters: symbol_error, port_rcv_errors"),
            kind=_COUNTER),
    _signal("rdma_peak_bytes_per_s", "B/s", 1e13, _host("/sys/class/infiniband/*/ports/*/rate")),
)  # fmt: skip

_DISKS = (
    _signal("disk_read_bytes", "B", _DISK_FOLD_BYTES, _host("/proc/diskstats"), kind=_COUNTER),
    _signal("disk_write_bytes", "B", _DISK_FOLD_BYTES, _host("/proc/diskstats"), kind=_COUNTER),
    _signal("disk_busy_s", "s", _TIME_FOLD_S, _host("/proc/diskstats: busiest disk"),
            kind=_COUNTER),
    _signal("io_pressure_s", "s", _TIME_FOLD_S, _host("/proc/pressure/io: some"), kind=_COUNTER),
)  # fmt: skip

_PROBE = (
    _signal("probe_sample_s", "s", 3600.0, _host("time that the last sample took")),
    _signal("probe_skipped_samples", "samples", _EVENTS_FOLD,
            _host("samples left out since the one before was not done"), kind=_COUNTER),
)  # fmt: skip

SERVER_SIGNALS: tuple[Signal, ...] = (*_PROCESSORS, *_MEMORY, *_NETWORK, *_DISKS, *_PROBE)

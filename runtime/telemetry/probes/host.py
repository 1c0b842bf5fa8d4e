"""Reads a server's own figures: processors, memory, network, RDMA and disks.

Traffic is that of physical ports and disks; where there are none, as in a container, that of all
but the loopback. What the machine does not have is absent.

Does not know: GPUs, engines, or how samples are sent.
Source: psutil; proc(5) for memory and pressure stalls; the Linux kernel's
Documentation/ABI/stable/sysfs-class-infiniband (port data counters are in units of 4 bytes).
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil

from ..signals import Scope
from .probe import Members, Readings, put

_INFINIBAND_WORD_BYTES: Final = 4
_BYTES_PER_MBIT: Final = 1e6 / 8
_KIB: Final = 1024
_MEMORY_NAMES: Final = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
_MEMORY: Final = re.compile(rf"^({'|'.join(_MEMORY_NAMES)}): +(\d+) kB$", re.MULTILINE)
# How often it is looked which ports and disks there are, and how fast: seldom changed, slow to ask.
_LOOK_PERIOD_S: Final = 10.0


class HostProbe:
    """Samples the server that it runs on."""

    def __init__(
        self,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._sys = sys
        self._clock = clock
        self._looked_at_s = -_LOOK_PERIOD_S
        self._ports: frozenset[str] = frozenset()
        self._disks: frozenset[str] = frozenset()
        self._peak_bytes_per_s: float | None = None
        self._infiniband: list[Path] = []

    @property
    def members(self) -> Members:
        """Nothing beside the server itself."""
        return Members()

    def sample(self) -> Readings:
        """Read the server's figures."""
        if self._clock() - self._looked_at_s >= _LOOK_PERIOD_S:
            self._look()
        readings = self.members.absent()
        for name, value in self._values():
            if value is not None:
                put(readings, Scope.SERVER, name, value)
        return readings

    def close(self) -> None:
        """Nothing is held."""

    def _values(self) -> Iterator[tuple[str, float | None]]:
        yield from _processors()
        yield from _memory(self._proc)
        yield from self._network()
        yield from self._rdma()
        yield from self._storage()
        for resource in ("cpu", "memory", "io"):
            yield f"{resource}_pressure_s", self._pressure_s(resource)

    def _look(self) -> None:
        self._looked_at_s = self._clock()
        ports = psutil.net_io_counters(pernic=True)
        self._ports = _physical(ports, self._sys / "class" / "net") - {"lo"}
        self._disks = _physical(psutil.disk_io_counters(perdisk=True), self._sys / "block")
        stats = psutil.net_if_stats()
        mbits = [stats[p].speed for p in self._ports if p in stats and stats[p].isup]
        self._peak_bytes_per_s = sum(mbits) * _BYTES_PER_MBIT or None  # speed 0: not known
        self._infiniband = sorted(self._sys.glob("class/infiniband/*/ports/*"))

    def _network(self) -> Iterator[tuple[str, float | None]]:
        ports = psutil.net_io_counters(pernic=True, nowrap=False)
        mine = [ports[name] for name in self._ports if name in ports]
        if mine:
            yield "network_tx_bytes", sum(port.bytes_sent for port in mine)
            yield "network_rx_bytes", sum(port.bytes_recv for port in mine)
            yield (
                "network_errors",
                sum(port.errin + port.errout + port.dropin + port.dropout for port in mine),
            )
        yield "network_peak_bytes_per_s", self._peak_bytes_per_s

    def _rdma(self) -> Iterator[tuple[str, float | None]]:
        counters = [port / "counters" for port in self._infiniband]
        sent, received, *errors = (
            _sum_known(_integer(where / name) for where in counters)
            for name in ("port_xmit_data", "port_rcv_data", "symbol_error", "port_rcv_errors")
        )
        yield "rdma_tx_bytes", sent and sent * _INFINIBAND_WORD_BYTES
        yield "rdma_rx_bytes", received and received * _INFINIBAND_WORD_BYTES
        yield "rdma_errors", _sum_known(errors)
        yield "rdma_peak_bytes_per_s", _sum_known(map(_infiniband_rate, self._infiniband))

    def _storage(self) -> Iterator[tuple[str, float | None]]:
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        mine = [disks[name] for name in self._disks if name in disks]
        if mine:
            yield "disk_read_bytes", sum(disk.read_bytes for disk in mine)
            yield "disk_write_bytes", sum(disk.write_bytes for disk in mine)
            # not every system says how long a disk was busy
            yield "disk_busy_s", max(getattr(disk, "busy_time", 0) for disk in mine) * 1e-3

    def _pressure_s(self, resource: str) -> float | None:
        text = _text(self._proc / "pressure" / resource)
        match = re.search(r"^some .*total=(\d+)", text or "", re.MULTILINE)
        return int(match[1]) * 1e-6 if match else None


def _processors() -> Iterator[tuple[str, float | None]]:
    times = psutil.cpu_times()
    # user and nice already hold the time of guests
    parts = [v for name, v in times._asdict().items() if not name.startswith("guest")]
    iowait = getattr(times, "iowait", None)
    yield "cpu_total_s", sum(parts)
    yield "cpu_busy_s", sum(parts) - times.idle - (iowait or 0.0)
    yield "cpu_iowait_s", iowait
    yield "cpu_steal_s", getattr(times, "steal", None)
    yield "num_cores", psutil.cpu_count()
    yield "load_1min", psutil.getloadavg()[0]


def _memory(proc: Path) -> Iterator[tuple[str, float | None]]:
    held = dict(_MEMORY.findall(_text(proc / "meminfo") or ""))
    if len(held) == len(_MEMORY_NAMES):
        total, available, swap, free = (int(held[name]) * _KIB for name in _MEMORY_NAMES)
        yield "memory_bytes", total
        yield "memory_available_bytes", available
        yield "swap_used_bytes", swap - free
        return
    # Systems without these lines; where they are, this reads far more, and all of it twice.
    memory = psutil.virtual_memory()
    yield "memory_bytes", memory.total
    yield "memory_available_bytes", memory.available
    yield "swap_used_bytes", psutil.swap_memory().used


def _physical(names: Iterable[str] | None, where: Path) -> frozenset[str]:
    """Return those with hardware behind them; all where none has."""
    every = frozenset(names or ())
    return frozenset(name for name in every if (where / name / "device").exists()) or every


def _infiniband_rate(port: Path) -> float | None:
    """Return bytes a second of a port, from a line like `400 Gb/sec (4X NDR)`."""
    match = re.match(r"([\d.]+) Gb/sec", _text(port / "rate") or "")
    return float(match[1]) * 1e9 / 8 if match else None


def _sum_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _integer(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text and text.strip().isdigit() else None


def _text(path: Path) -> str | None:
    """Return what a file of the kernel says; None if there is none, or none may read it."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None

"""The host's figures: known answers from made-up ones, and sense in the real ones."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest

from trimtab.runtime.telemetry.probes.host import HostProbe
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")
Port = namedtuple("Port", "bytes_sent bytes_recv errin errout dropin dropout")
Disk = namedtuple("Disk", "read_bytes write_bytes busy_time")
Interface = namedtuple("Interface", "isup speed")
Memory = namedtuple("Memory", "total available")
Swap = namedtuple("Swap", "used")


def known(probe: HostProbe) -> dict[str, float]:
    row = probe.sample()[Scope.SERVER][0]
    signals = SIGNALS_BY_SCOPE[Scope.SERVER]
    values = zip(signals, row, strict=True)
    return {s.name: float(value) for s, value in values if not np.isnan(value)}


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostProbe:
    answers = {
        "cpu_times": Times(50.0, 2.0, 30.0, 900.0, 10.0, 1.0, 1.0, 6.0, 20.0, 0.0),
        "cpu_count": 4,
        "getloadavg": (1.5, 1.0, 0.5),
        "virtual_memory": Memory(1000, 400),
        "swap_memory": Swap(7),
        "net_io_counters": {
            "eth0": Port(100, 200, 1, 2, 3, 4),
            "eth1": Port(10, 20, 0, 0, 0, 0),
            "docker0": Port(9999, 9999, 9, 9, 9, 9),
            "lo": Port(5555, 5555, 5, 5, 5, 5),
        },
        "net_if_stats": {
            "eth0": Interface(True, 100_000),
            "eth1": Interface(True, 25_000),
            "docker0": Interface(True, 10_000),
        },
        "disk_io_counters": {
            "nvme0n1": Disk(1000, 2000, 1500),
            "nvme1n1": Disk(10, 20, 2500),
            "nvme0n1p1": Disk(1000, 2000, 1500),
            "dm-0": Disk(1010, 2020, 9000),
        },
    }
    for name, answer in answers.items():
        monkeypatch.setattr(psutil, name, lambda answer=answer, **_: answer)
    for hardware in ("class/net/eth0", "class/net/eth1", "block/nvme0n1", "block/nvme1n1"):
        write(tmp_path / "sys" / hardware / "device")
    for resource, total_us in (("cpu", 2_000_000), ("memory", 0), ("io", 500_000)):
        write(
            tmp_path / "proc" / "pressure" / resource,
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        )
    return HostProbe(proc=tmp_path / "proc", sys=tmp_path / "sys")


def test_known_figures(host: HostProbe) -> None:
    assert known(host) == pytest.approx(
        {
            "cpu_total_s": 1000.0,  # guests are part of user
            "cpu_busy_s": 90.0,
            "cpu_iowait_s": 10.0,
            "cpu_steal_s": 6.0,
            "num_cores": 4.0,
            "load_1min": 1.5,
            "cpu_pressure_s": 2.0,
            "memory_bytes": 1000.0,
            "memory_available_bytes": 400.0,
            "swap_used_bytes": 7.0,
            "memory_pressure_s": 0.0,
            "network_tx_bytes": 110.0,  # physical ports only
            "network_rx_bytes": 220.0,
            "network_errors": 10.0,
            "network_peak_bytes_per_s": 125e9 / 8,
            "disk_read_bytes": 1010.0,
            "disk_write_bytes": 2020.0,
            "disk_busy_s": 2.5,
            "io_pressure_s": 0.5,
        }
    )


def test_infiniband_ports_are_added_up_in_bytes(host: HostProbe, tmp_path: Path) -> None:
    for device in ("mlx5_0", "mlx5_1"):
        port = tmp_path / "sys" / "class" / "infiniband" / device / "ports" / "1"
        write(port / "rate", "400 Gb/sec (4X NDR)\n")
        write(port / "counters" / "port_xmit_data", "1000\n")
        write(port / "counters" / "port_rcv_data", "250\n")
        write(port / "counters" / "symbol_error", "2\n")
        write(port / "counters" / "port_rcv_errors", "N/A\n")
    values = known(host)
    assert values["rdma_tx_bytes"] == 8000.0
    assert values["rdma_rx_bytes"] == 2000.0
    assert values["rdma_errors"] == 4.0
    assert values["rdma_peak_bytes_per_s"] == 100e9


def test_without_hardware_behind_any_port_all_but_the_loopback_count(
    host: HostProbe, tmp_path: Path
) -> None:
    for port in ("eth0", "eth1"):
        (tmp_path / "sys" / "class" / "net" / port / "device").unlink()
    assert known(host)["network_tx_bytes"] == 110.0 + 9999.0


def test_this_machine() -> None:
    probe = HostProbe()
    first, second = known(probe), known(probe)
    assert first["memory_bytes"] == psutil.virtual_memory().total
    assert second["cpu_total_s"] >= first["cpu_total_s"] > 0
    assert 0 <= second["cpu_busy_s"] <= second["cpu_total_s"]
    assert first["num_cores"] >= 1


def test_memory_is_read_from_the_kernels_lines_where_they_are(
    host: HostProbe, tmp_path: Path
) -> None:
    lines = "MemTotal:  100 kB\nMemFree: 9 kB\nMemAvailable:  40 kB\nSwapTotal: 8 kB\n"
    write(tmp_path / "proc/meminfo", lines)
    assert known(host)["memory_bytes"] == 1000.0  # one line is missing
    write(tmp_path / "proc/meminfo", f"{lines}SwapFree:      5 kB\n")
    found = known(host)
    assert found["memory_bytes"] == 100 * 1024
    assert found["memory_available_bytes"] == 40 * 1024
    assert found["swap_used_bytes"] == 3 * 1024


def test_memory_is_what_the_library_says() -> None:
    found = known(HostProbe())
    assert found["memory_bytes"] == psutil.virtual_memory().total
    assert found["memory_available_bytes"] == pytest.approx(
        psutil.virtual_memory().available, rel=0.05
    )
    assert found["swap_used_bytes"] == pytest.approx(psutil.swap_memory().used, abs=2**24)

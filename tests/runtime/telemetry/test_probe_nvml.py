"""The NVML probe on made-up GPUs; on a real one where there is one (`-m gpu`)."""

import ast
import inspect
import logging
import math
import time
from pathlib import Path

import numpy as np
import pynvml
import pytest
from fake_nvml import ALL_LINKS, FakeGpu, FakeNvml, double, uint, ulonglong

import trimtab
from trimtab.env.state.feature import Live
from trimtab.runtime.telemetry.probes.nvml import NvmlProbe
from trimtab.runtime.telemetry.probes.nvml_fields import FAST_FIELDS, SLOW_FIELDS
from trimtab.runtime.telemetry.probes.nvml_gpm import METRICS
from trimtab.runtime.telemetry.probes.probe import ProbeUnavailableError
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope, signal_index

PROBES = Path(trimtab.__file__).parent / "runtime" / "telemetry" / "probes"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_(self, span_s: float) -> None:
        self.now_s += span_s


def make_probe(*gpus: FakeGpu, budget_s: float = 0.05) -> tuple[NvmlProbe, FakeNvml, Clock]:
    clock = Clock()
    nvml = FakeNvml(*(gpus or (FakeGpu(),)), spend=clock.pass_)
    return NvmlProbe(nvml=nvml, clock=clock, budget_s=budget_s), nvml, clock


def sampled(probe: NvmlProbe, clock: Clock, *, times: int = 3, row: int = 0) -> dict[str, float]:
    for _ in range(times):
        readings = probe.sample()
        clock.pass_(0.101)
    values = readings[Scope.GPU][row]
    return {s.name: v for s, v in zip(SIGNALS_BY_SCOPE[Scope.GPU], values, strict=True)}


def test_values_come_in_the_units_of_their_signals() -> None:
    probe, _, clock = make_probe()
    values = sampled(probe, clock)
    expected = {
        "power_watts": 500.0,
        "energy_joules": 7e6,
        "memory_temperature_celsius": 71.0,
        "temperature_celsius": 63.0,
        "nvlink_tx_bytes": 30 * 1024.0,
        "pcie_rx_bytes": 2000.0,
        "power_throttle_s": 1.5,
        "thermal_throttle_s": 0.75,
        "sm_activity_frac": 0.8,
        "dram_activity_frac": 0.55,
        "pcie_tx_bytes_per_s": 100 * 2**20,
        "nvlink_tx_bytes_per_s": 2**30,
        "memory_bytes": 80 * 2**30,
        "memory_used_bytes": 60 * 2**30,
        "power_limit_watts": 700.0,
        "sm_clock_mhz": 1755.0,
        "sm_clock_max_mhz": 1980.0,
        "ecc_corrected_errors": 12.0,
        "ecc_uncorrected_errors": 1.0,
        "remapped_rows": 5.0,
        "is_remap_pending": 1.0,
        "pcie_link_frac": 1.0,
        "pcie_replays": 3.0,
        "nvlink_links_up_frac": 0.75,
        "nvlink_errors": 8.0,
        "nvlink_hops": 0.0,
        "recovery_action": 0.0,
        "xid_errors": 0.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_every_signal_with_an_nvml_source_can_be_read() -> None:
    gpu = FakeGpu()
    gpu.gpm = {getattr(pynvml, f"NVML_GPM_METRIC_{name}"): 50.0 for name, _ in METRICS.values()}
    probe, _, clock = make_probe(gpu)
    values = sampled(probe, clock)
    signals = [s for s in SIGNALS_BY_SCOPE[Scope.GPU] if Live.NVML in s.source]
    assert [s.name for s in signals if math.isnan(values[s.name])] == []
    assert [s.name for s in signals if not s.low <= values[s.name] <= s.high] == [
        # counters are folded by the runner
        "energy_joules"
    ]


def test_what_is_not_supported_is_absent_logged_once_and_not_asked_for_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu = FakeGpu(unsupported={"nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetTemperature"})
    memory_temperature = (pynvml.NVML_FI_DEV_MEMORY_TEMP, 0)
    del gpu.fields[memory_temperature]
    with caplog.at_level(logging.INFO):
        probe, nvml, clock = make_probe(gpu)
        values = sampled(probe, clock, times=60)
    absent = ("ecc_corrected_errors", "temperature_celsius", "memory_temperature_celsius")
    assert all(math.isnan(values[name]) for name in (*absent, "fp64_activity_frac"))
    assert values["power_watts"] == 500.0
    assert nvml.calls["nvmlDeviceGetTemperature"] == nvml.calls["nvmlDeviceGetTotalEccErrors"] == 1
    assert sum(memory_temperature in asked for asked in nvml.asked_fields) == 1
    for what in ("temperature", "ECC errors", "MEMORY_TEMP", "FP64_UTIL"):
        assert sum(what in line and "GPU 0" in line for line in caplog.messages) == 1, what


def test_a_field_that_fails_for_a_moment_comes_back() -> None:
    probe, nvml, clock = make_probe()
    fields = nvml.gpus[0].fields
    power = (pynvml.NVML_FI_DEV_POWER_INSTANT, 0)
    fields[power] = pynvml.NVML_ERROR_TIMEOUT
    assert math.isnan(sampled(probe, clock, times=1)["power_watts"])
    fields[power] = uint(200_000)
    assert sampled(probe, clock, times=1)["power_watts"] == 200.0


@pytest.mark.parametrize(
    "answer",
    [uint(0xFFFFFFFF), ulonglong(2**64 - 1), ulonglong(9223372036854775794)],
    ids=["no uint", "no ulonglong", "blank of DCGM"],
)
def test_sentinels_are_absent(answer: object) -> None:
    gpu = FakeGpu()
    gpu.fields[pynvml.NVML_FI_DEV_MEMORY_TEMP, 0] = answer
    probe, _, clock = make_probe(gpu)
    assert math.isnan(sampled(probe, clock)["memory_temperature_celsius"])


def test_a_field_is_read_by_the_type_it_says() -> None:
    gpu = FakeGpu()
    gpu.fields[pynvml.NVML_FI_DEV_MEMORY_TEMP, 0] = double(70.5)
    probe, _, clock = make_probe(gpu)
    assert sampled(probe, clock)["memory_temperature_celsius"] == 70.5


def test_gpm_samples_are_paired_with_the_one_before_and_more_than_100_ms_apart() -> None:
    probe, nvml, clock = make_probe()
    for _ in range(50):  # 1 s at a period of 20 ms
        probe.sample()
        clock.pass_(0.02)
    assert 8 <= nvml.calls["nvmlGpmSampleGet"] <= 10
    assert nvml.calls["nvmlGpmMetricsGet"] == nvml.calls["nvmlGpmSampleGet"] - 1


def test_a_gpu_without_gpm_gives_its_utilisation() -> None:
    gpu = FakeGpu(has_gpm=False)
    del gpu.fields[pynvml.NVML_FI_DEV_POWER_INSTANT, 0]
    probe, nvml, clock = make_probe(gpu)
    values = sampled(probe, clock)
    assert values["graphics_activity_frac"] == 0.9
    assert values["power_watts"] == 310.0
    assert math.isnan(values["sm_activity_frac"])
    assert nvml.num_samples == 0


def test_errors_of_all_links_are_preferred_to_those_of_each() -> None:
    gpu = FakeGpu()
    gpu.fields[pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL, 0] = ulonglong(100)
    probe, nvml, clock = make_probe(gpu)
    assert sampled(probe, clock, times=60)["nvlink_errors"] == 100
    asked_later = {field for asked in nvml.asked_fields[10:] for field, _ in asked}
    assert pynvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC not in asked_later


def test_throttling_is_told_by_its_reason() -> None:
    probe, nvml, clock = make_probe()
    nvml.gpus[0].clock_reasons = (
        pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    )
    values = sampled(probe, clock)
    assert values["is_power_throttled"] == values["is_thermally_throttled"] == 1.0
    assert values["is_brake_throttled"] == 0.0


@pytest.mark.parametrize(
    ("pcie", "expected"), [((5, 5, 8, 16), 0.5), ((3, 5, 16, 16), 0.25), ((4, 5, 4, 16), 0.125)]
)
def test_a_link_that_trained_down_shows(pcie: tuple[int, ...], expected: float) -> None:
    probe, _, clock = make_probe(FakeGpu(pcie=pcie))
    assert sampled(probe, clock)["pcie_link_frac"] == expected


@pytest.mark.parametrize(
    ("links", "remote", "expected"),
    [
        ([], 0, 2.0),
        ([True], pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH, 2.0),
        ([True], pynvml.NVML_NVLINK_DEVICE_TYPE_GPU, 1.0),
    ],
    ids=["PCIe", "switch", "direct"],
)
def test_hops_to_other_gpus(links: list[bool], remote: int, expected: float) -> None:
    probe, _, clock = make_probe(FakeGpu(links=links, remote=remote), FakeGpu(uuid="GPU-1"))
    values = sampled(probe, clock)
    assert values["nvlink_hops"] == expected
    assert math.isnan(values["nvlink_links_up_frac"]) == (not links)


@pytest.mark.parametrize(
    ("fault", "action"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT),
        (pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_GPU_RECOVERY_ACTION_GPU_RESET),
    ],
)
def test_a_lost_gpu_is_absent_but_for_what_must_be_done(
    fault: int, action: int, caplog: pytest.LogCaptureFixture
) -> None:
    probe, nvml, clock = make_probe(FakeGpu(uuid="GPU-0"), FakeGpu(uuid="GPU-1"))
    sampled(probe, clock)
    nvml.gpus[0].fault = fault
    lost = sampled(probe, clock, times=1)
    known = {name: value for name, value in lost.items() if not math.isnan(value)}
    assert known == {"recovery_action": action, "xid_errors": 0.0}
    calls = nvml.calls.total()
    assert sampled(probe, clock, times=1, row=1)["power_watts"] == 500.0
    assert nvml.calls.total() - calls < 10  # only the healthy one is asked
    for _ in range(300):
        sampled(probe, clock, times=1)
    assert sum("is lost" in line for line in caplog.messages) == 1
    nvml.gpus[0].fault = None
    clock.pass_(10.0)
    back = sampled(probe, clock)
    assert back["power_watts"] == 500.0
    assert back["recovery_action"] == 0.0


def test_xid_events_are_counted_by_gpu_without_waiting() -> None:
    probe, nvml, clock = make_probe(FakeGpu(uuid="GPU-0"), FakeGpu(uuid="GPU-1"))
    nvml.events = [(1, 79), (1, 48), (0, 31)]
    assert sampled(probe, clock, times=1)["xid_errors"] == 1.0
    assert sampled(probe, clock, times=1, row=1)["xid_errors"] == 2.0


def test_xid_events_that_a_gpu_does_not_report_are_absent() -> None:
    probe, _, clock = make_probe(FakeGpu(supported_events=0))
    assert math.isnan(sampled(probe, clock)["xid_errors"])


def test_a_sample_of_eight_gpus_keeps_to_its_budget() -> None:
    probe, nvml, clock = make_probe(*(FakeGpu(uuid=f"GPU-{i}") for i in range(8)), budget_s=0.05)
    nvml.costs_s = {"nvmlDeviceGetFieldValues": 0.002, "nvmlGpmSampleGet": 0.001}
    nvml.costs_s |= {"nvmlDeviceGetTotalEccErrors": 0.004, "nvmlDeviceGetNvLinkState": 0.001}
    spans_s = []
    for _ in range(100):
        began_at_s = clock()
        readings = probe.sample()
        spans_s.append(clock() - began_at_s)
        clock.pass_(0.1 - min(0.1, spans_s[-1]))
    assert max(spans_s[3:]) <= 0.06
    names = [s.name for s in SIGNALS_BY_SCOPE[Scope.GPU]]
    for name in ("power_watts", "ecc_corrected_errors", "nvlink_links_up_frac"):
        assert np.isfinite(readings[Scope.GPU][:, names.index(name)]).all(), name


def test_one_call_that_turns_slow_is_made_seldom(caplog: pytest.LogCaptureFixture) -> None:
    probe, nvml, clock = make_probe()
    nvml.costs_s["nvmlDeviceGetMemoryInfo"] = 0.08
    for _ in range(100):
        began_at_s = clock()
        readings = probe.sample()
        clock.pass_(0.1 - min(0.1, clock() - began_at_s))
    assert nvml.calls["nvmlDeviceGetMemoryInfo"] <= 15
    assert nvml.calls["nvmlDeviceGetTemperature"] >= 88  # deferred when the slow one came first
    assert readings[Scope.GPU][0, signal_index(Scope.GPU, "memory_used_bytes")] == 60 * 2**30
    assert sum("memory took 80.0 ms" in line for line in caplog.messages) == 1


def test_close_gives_everything_back_and_may_be_repeated() -> None:
    probe, nvml, clock = make_probe(FakeGpu(), FakeGpu(uuid="GPU-1"))
    sampled(probe, clock)
    assert (nvml.num_init, nvml.num_samples, nvml.num_event_sets) == (1, 4, 1)
    probe.close()
    probe.close()
    assert (nvml.num_init, nvml.num_samples, nvml.num_event_sets) == (0, 0, 0)
    with pytest.raises(ProbeUnavailableError, match="the NVML probe is closed"):
        probe.sample()


def test_a_machine_without_the_driver_is_told_what_to_do() -> None:
    nvml = FakeNvml(init_fault=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(
        ProbeUnavailableError, match=r"driver is not there: .* \(libnvidia-ml.so.1\).*recorded"
    ):
        NvmlProbe(nvml=nvml)


def test_the_real_module_without_a_driver_says_the_same(monkeypatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)  # there may be one on this machine
    with pytest.raises(ProbeUnavailableError, match="NVIDIA driver is not there"):
        NvmlProbe()


def used_names() -> set[str]:
    """Names of pynvml in the sources of the probe."""
    names = set()
    for file in PROBES.glob("nvml*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return {n for n in names if n.startswith(("NVML_", "NVMLError", "c_nvml", "nvmlD", "nvmlG"))}


def test_every_name_used_is_in_the_installed_pynvml() -> None:
    names = used_names() - {"NVML_FI_DEV_", "NVML_GPM_METRIC_"}
    assert len(names) > 40
    names |= {f"NVML_FI_DEV_{field.name}" for field in (*FAST_FIELDS, *SLOW_FIELDS)}
    names |= {f"NVML_GPM_METRIC_{metric}" for metric, _ in METRICS.values()}
    assert sorted(name for name in names if not hasattr(pynvml, name)) == []


def test_nothing_of_a_gpu_is_ever_set() -> None:
    changing = ("DeviceSet", "DeviceReset", "DeviceClear", "DeviceModify", "GpmSet", "Create")
    used = used_names()
    assert "nvmlDeviceGetMemoryInfo" in used
    assert [name for name in used if any(word in name for word in changing)] == []


def test_the_stand_in_has_the_signatures_of_the_installed_pynvml() -> None:
    mine = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    for name in mine:
        real = [*inspect.signature(getattr(pynvml, name)).parameters]
        assert [*inspect.signature(getattr(FakeNvml, name)).parameters][1:] == real, name
    assert ALL_LINKS == 2**32 - 1


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    try:
        probe = NvmlProbe()
    except ProbeUnavailableError as error:
        pytest.skip(str(error))
    spans_s: list[float] = []
    try:
        for _ in range(5):
            began_at_s = time.perf_counter()
            readings = probe.sample()
            spans_s.append(time.perf_counter() - began_at_s)
            time.sleep(0.11)
        assert min(spans_s) < 0.1
        values = readings[Scope.GPU]
        signals = SIGNALS_BY_SCOPE[Scope.GPU]
        low, high = (np.array([getattr(s, end) for s in signals]) for end in ("low", "high"))
        is_gauge = np.array([s.kind == "gauge" for s in signals])
        assert np.isfinite(values[:, signal_index(Scope.GPU, "memory_bytes")]).all()
        assert np.isfinite(values).mean() > 0.5
        within = np.isnan(values) | ((values >= low) & (values <= high)) | ~is_gauge
        assert [signals[i].name for i in np.flatnonzero(~within.all(axis=0))] == []
    finally:
        probe.close()

"""Joined probes, folded counters, recordings and the named backends."""

import logging
from pathlib import Path

import numpy as np
import pytest

from trimtab.runtime.telemetry.probes import backends, recorded, synthetic
from trimtab.runtime.telemetry.probes.counters import CounterFold
from trimtab.runtime.telemetry.probes.probe import (
    JoinedProbe,
    Members,
    ProbeUnavailableError,
    Readings,
    put,
)
from trimtab.runtime.telemetry.probes.recorded import (
    BUNDLED_RECORDING,
    RecordedProbe,
    Recorder,
    Recording,
    load_recording,
)
from trimtab.runtime.telemetry.probes.synthetic import SyntheticProbe
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Kind, Scope, signal_index

ENERGY = signal_index(Scope.GPU, "energy_joules")
POWER = signal_index(Scope.GPU, "power_watts")


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


class FixedProbe:
    """Reads the given signals of the server, and row numbers of everything else."""

    def __init__(self, members: Members, **server: float) -> None:
        self.members = members
        self.server = server
        self.num_closed = 0

    def sample(self) -> Readings:
        readings = self.members.absent()
        for scope in (Scope.GPU, Scope.REPLICA):
            readings[scope][:] = np.arange(len(readings[scope]))[:, None]
        for name, value in self.server.items():
            put(readings, Scope.SERVER, name, value)
        return readings

    def close(self) -> None:
        self.num_closed += 1


def test_joined_probes_keep_their_rows_apart_and_share_the_server() -> None:
    first = FixedProbe(Members(gpus=("a", "b")), load_1min=1.0)
    second = FixedProbe(Members(gpus=("c",), replicas=("r",)), load_1min=9.0, num_cores=8.0)
    joined = JoinedProbe([first, second])
    readings = joined.sample()
    assert joined.members == Members(gpus=("a", "b", "c"), replicas=("r",))
    assert readings[Scope.GPU][:, 0].tolist() == [0, 1, 0]
    assert readings[Scope.REPLICA].shape == (1, len(SIGNALS_BY_SCOPE[Scope.REPLICA]))
    server = readings[Scope.SERVER][0]
    assert server[signal_index(Scope.SERVER, "load_1min")] == 1.0
    assert server[signal_index(Scope.SERVER, "num_cores")] == 8.0
    joined.close()
    assert first.num_closed == second.num_closed == 1


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="probes must hold at least one"):
        JoinedProbe([])


def folded_energy(*readings_j: float) -> list[float]:
    fold, members = CounterFold(), Members(gpus=("a",))
    values = []
    for reading in readings_j:
        readings = members.absent()
        readings[Scope.GPU][0, ENERGY] = reading
        readings[Scope.GPU][0, POWER] = 300.0
        folded = fold(readings)
        assert folded[Scope.GPU][0, POWER] == 300.0
        values.append(float(folded[Scope.GPU][0, ENERGY]))
    return values


def test_a_counter_starts_at_zero_and_is_folded_at_its_limit() -> None:
    limit = SIGNALS_BY_SCOPE[Scope.GPU][ENERGY].high
    assert folded_energy(7e6, 7e6 + 10, 7e6 + limit - 1, 7e6 + limit + 4) == [0, 10, limit - 1, 4]


def test_a_counter_that_falls_starts_again() -> None:
    assert folded_energy(100, 150, 20, 25) == [0, 50, 0, 5]


def test_a_counter_that_is_absent_for_a_while_goes_on() -> None:
    values = folded_energy(100, 150, np.nan, 170, np.inf, 180)
    assert values[1] == 50
    assert np.isnan(values[2])
    assert values[3] == 70
    assert values[5] == 80


def test_a_long_run_keeps_the_steps_of_a_window_in_32_bits() -> None:
    """A day at 700 W: unfolded, the step of a float would be 4 J, of the 70 J of a window."""
    energy_j = 700.0 * 86_400 + 70.0 * np.arange(3)
    fold, members = CounterFold(), Members(gpus=("a",))
    sent = []
    for reading in (0.0, *energy_j):
        readings = members.absent()
        readings[Scope.GPU][0, ENERGY] = reading
        sent.append(fold(readings)[Scope.GPU].astype(np.float32)[0, ENERGY])
    assert np.diff(sent[1:]) == pytest.approx([70.0, 70.0], abs=0.1)


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    clock = Clock()
    recorder = Recorder(SyntheticProbe(num_gpus=3, num_replicas=2, clock=clock), clock=clock)
    samples = []
    for _ in range(5):
        samples.append(recorder.sample())
        clock.now_s += 0.1
    recorder.recording().save(tmp_path / "run.npz")
    player = RecordedProbe(load_recording(tmp_path / "run.npz"), clock=clock)
    assert player.members == recorder.members
    for lap in range(2):
        for sample in samples:
            for scope, values in player.sample().items():
                np.testing.assert_array_equal(values, sample[scope], err_msg=f"lap {lap}")
            clock.now_s += 0.1


def test_a_recording_plays_in_its_own_time_whatever_the_period() -> None:
    clock = Clock()
    player = RecordedProbe(clock=clock)
    first = player.sample()
    clock.now_s += 0.05
    np.testing.assert_array_equal(player.sample()[Scope.GPU], first[Scope.GPU])
    clock.now_s += 0.25  # 0.3 s in: the fourth sample
    expected = load_recording(BUNDLED_RECORDING).values[Scope.GPU][3]
    np.testing.assert_array_equal(player.sample()[Scope.GPU], expected)


def test_a_recording_survives_a_change_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    load_recording(BUNDLED_RECORDING).save(path)
    before = load_recording(path).values[Scope.GPU]
    signals = SIGNALS_BY_SCOPE[Scope.GPU]
    renamed = [s for s in reversed(signals) if s.name != "power_watts"]
    monkeypatch.setitem(SIGNALS_BY_SCOPE, Scope.GPU, (SIGNALS_BY_SCOPE[Scope.SERVER][0], *renamed))
    after = load_recording(path).values[Scope.GPU]
    assert np.isnan(after[:, :, 0]).all()  # a signal that was not recorded
    position = renamed.index(signals[ENERGY]) + 1
    np.testing.assert_array_equal(after[:, :, position], before[:, :, ENERGY])


def test_the_bundled_recording_is_what_its_readme_says(tmp_path: Path) -> None:
    synthetic.write_recording(tmp_path / "again.npz")
    again, bundled = load_recording(tmp_path / "again.npz"), load_recording(BUNDLED_RECORDING)
    assert again.members == bundled.members
    for scope in Scope:
        np.testing.assert_allclose(again.values[scope], bundled.values[scope], rtol=1e-12)
    assert "**not** a recording of real hardware" in (
        BUNDLED_RECORDING.parent / "README.md"
    ).read_text(encoding="utf-8")


def test_synthetic_values_are_within_their_ranges() -> None:
    values = load_recording(BUNDLED_RECORDING).values
    for scope, signals in SIGNALS_BY_SCOPE.items():
        for column, signal in enumerate(signals):
            if signal.kind is Kind.GAUGE:
                column_values = values[scope][:, :, column]
                column_values = column_values[~np.isnan(column_values)]
                assert (column_values >= signal.low).all(), signal.name
                assert (column_values <= signal.high).all(), signal.name


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 torn"])
def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "run.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProbeUnavailableError, match=r"recording '.*run.npz' cannot be read: .+"):
        load_recording(path)


def test_a_recording_with_a_torn_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    load_recording(BUNDLED_RECORDING).save(path)
    arrays = dict(np.load(path))
    arrays["gpu_values"] = arrays["gpu_values"][:-1]
    np.savez(path, **arrays)
    with pytest.raises(ProbeUnavailableError, match=r"gpu_values has shape \(199, 2, .*expected"):
        load_recording(path)


def test_a_recording_needs_samples_in_order() -> None:
    with pytest.raises(ValueError, match="at least one sample, got none"):
        Recorder(SyntheticProbe()).recording()
    with pytest.raises(ValueError, match="must rise"):
        Recording(members=Members(), times_s=np.array([1.0, 0.5]), values={})


def test_without_a_driver_the_host_is_sampled_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_driver() -> None:
        msg = "the NVIDIA driver is not there"
        raise ProbeUnavailableError(msg)

    monkeypatch.setattr(backends, "NvmlProbe", no_driver)
    probe = backends.BACKENDS["auto"]({})
    assert probe.members == Members()
    assert np.isfinite(probe.sample()[Scope.SERVER]).any()
    assert "GPUs are not sampled: the NVIDIA driver is not there" in caplog.text
    with pytest.raises(ProbeUnavailableError):
        backends.BACKENDS["nvml"]({})


@pytest.mark.parametrize("name", ["recorded", "synthetic"])
def test_a_machine_without_gpus_can_show_some(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    probe = backends.BACKENDS[name]({})
    assert len(probe.members.gpus) == 2
    assert np.isfinite(probe.sample()[Scope.GPU][:, POWER]).all()
    assert recorded.BUNDLED_RECORDING.stat().st_size < 200_000

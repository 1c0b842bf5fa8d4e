"""Calibration files: what is written is read, and every fault is named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.env.calibration import (
    Calibration,
    Efficiency,
    ErrorRow,
    TransferTable,
    bundled_calibration,
    bundled_calibration_names,
    load_calibration,
    save_calibration,
)
from trimtab.env.datasheet import calibration_of, datasheet_calibration
from trimtab.env.fitting import START
from trimtab.env.hardware import GPUS, gpu
from trimtab.traces.errors import ConfigError

TABLE = TransferTable(num_bytes=(1024.0, 4096.0), seconds=(1e-5, 4e-5))
ROW = ErrorRow(
    model="llama-3-8b", tensor_parallel=2, precision="bf16", phase="decode", is_left_out=True,
    num_samples=10, median_frac=0.01, p95_frac=0.05,
)  # fmt: skip
MADE = Calibration(
    gpu="H100-80G",
    efficiency=START,
    all_reduce={2: TABLE},
    send_recv=TABLE,
    sources=("made up",),
    errors=(ROW,),
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    save_calibration(MADE, path)
    assert load_calibration(path) == MADE
    assert [entry.name for entry in tmp_path.iterdir()] == ["made.json"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "made.json"
    save_calibration(MADE, path)
    before = path.read_text(encoding="utf-8")

    def refuse(*_: object) -> None:
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_calibration(replace(MADE, gpu="other"), path)
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["made.json"]


def changed(change: dict[str, Any], path: Path) -> Path:
    """A file of `MADE` with some keys of its JSON changed; None deletes."""
    save_calibration(MADE, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        *parents, last = key.split("/")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": "x"}, "format: must be 'trimtab-calibration-1', got 'x'"),
        ({"efficiency/memory_frac": None}, "efficiency.memory_frac: key is missing"),
        ({"efficiency/memory_frac": 7.0}, "memory_frac must be above 0 and at most 1.5, got 7.0"),
        ({"efficiency/roofline_power": 0.5}, "roofline_power must be at least 1, got 0.5"),
        ({"efficiency/layer_s": -1.0}, "layer_s must be at least 0 and finite, got -1.0"),
        ({"efficiency/layer_s": "fast"}, "efficiency.layer_s: must be a float, got 'fast'"),
        (
            {"efficiency/memory_fraq": 0.5},
            "efficiency.memory_fraq: unknown key with value 0.5; did you mean 'memory_frac'",
        ),
        ({"all_reduces": {}}, "all_reduces: unknown key with value {}; did you mean 'all_reduce'"),
        ({"all_reduce": {"one": {}}}, "all_reduce.one: key must be a number of GPUs, at least 2"),
        (
            {"all_reduce/2/num_bytes": [2.0, 1.0]},
            "all_reduce.2: a transfer table needs rising num_bytes",
        ),
        ({"errors": [{"model": "x"}]}, r"errors\[0\].tensor_parallel: key is missing"),
    ],
)
def test_faults_of_a_file(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = changed(change, tmp_path / "bad.json")
    with pytest.raises(ConfigError, match=text):
        load_calibration(path)


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    change = {"gpu": 3, "efficiency/kv_frac": "x", "send_recv": []}
    with pytest.raises(ConfigError) as caught:
        load_calibration(changed(change, tmp_path / "bad.json"))
    assert "has 3 fault(s)" in str(caught.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "no.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no.json' cannot be read as JSON"):
        load_calibration(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file: must be a mapping of format, gpu"):
        load_calibration(path)


def test_transfers_are_interpolated_and_extrapolated() -> None:
    assert TABLE.time_s(2048.0) == pytest.approx(2e-5)
    assert TABLE.time_s(1.0) == pytest.approx(1e-5)
    assert TABLE.time_s(8192.0) == pytest.approx(8e-5)


def test_measured_gpus_are_bundled() -> None:
    expected = {"A100-40G", "A100-80G", "H100-80G", "H200-141G", "B200-180G", "RTXPRO6000-96G"}
    assert set(bundled_calibration_names()) == expected
    for name in expected:
        calibration = bundled_calibration(name)
        assert calibration is not None
        assert calibration.gpu == name
        assert calibration.sources


@pytest.mark.parametrize("name", ["A100-80G", "H100-80G", "H200-141G", "B200-180G"])
def test_bundled_errors_of_dense_models_are_within_the_demanded(name: str) -> None:
    calibration = bundled_calibration(name)
    assert calibration is not None
    limits = {"prefill": (0.04, 0.12), "decode": (0.04, 0.12), "mixed": (0.05, 0.15)}
    rows = [row for row in calibration.errors if row.is_left_out and row.model == "dense"]
    assert {row.phase for row in rows} == set(limits)
    for row in rows:
        assert row.median_frac <= limits[row.phase][0]
        assert row.p95_frac <= limits[row.phase][1]


def test_a_gpu_without_calibration_follows_its_datasheet() -> None:
    assert bundled_calibration("L40S-48G") is None
    calibration = calibration_of(gpu("L40S-48G"))
    assert calibration.gpu == "L40S-48G"
    assert "datasheet of L40S-48G; shares of peaks: mean of A100-40G" in calibration.sources[0]


def test_the_datasheet_rule_of_one_gpu_is_that_gpu() -> None:
    known = bundled_calibration("H100-80G")
    assert known is not None
    same = datasheet_calibration(GPUS["H100-80G"], [known])
    for name in Efficiency.names():
        assert getattr(same.efficiency, name) == pytest.approx(getattr(known.efficiency, name))
    for size in (1024.0, 1e6, 1e8):
        assert same.all_reduce[4].time_s(size) == pytest.approx(
            known.all_reduce[4].time_s(size), rel=0.1
        )


def test_the_datasheet_rule_needs_something_known() -> None:
    with pytest.raises(ValueError, match="needs at least one calibration"):
        datasheet_calibration(GPUS["H100-80G"], [])


def test_pcie_groups_of_four_reduce_far_slower_than_pairs() -> None:
    tables = calibration_of(gpu("L40S-48G")).all_reduce
    # measured 13.6 / 1.8 ms for 16 MB
    ratio = tables[4].time_s(16e6) / tables[2].time_s(16e6)
    assert ratio == pytest.approx(13.6 / 1.8, rel=0.4)

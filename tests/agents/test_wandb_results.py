"""Results for W&B: tables of differences and artefacts, offline; nothing without the package."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import typer
import yaml

from trimtab.agents.gate import PairedRun
from trimtab.agents.training_log import WandbMode
from trimtab.agents.wandb_results import (
    log_differences,
    log_files,
    results_run,
    table_rows,
    trace_manifest,
)
from trimtab.scripts.run_records import log_training, trace_files
from trimtab.scripts.train import train

RUNS = [
    PairedRun(site="test/0", candidate=0.9, base=0.8, regimes={"bursts": (0.95, 0.9)}),
    PairedRun(site="test/1", candidate=0.5, base=0.6, regimes={}),
]
SWEEP = Path(__file__).parents[2] / "docs" / "sweep.yaml"


def test_each_workload_is_a_row_and_each_regime_of_it():
    rows = table_rows(RUNS)
    assert [row[:2] for row in rows] == [("test/0", "all"), ("test/0", "bursts"), ("test/1", "all")]
    assert [row[4] for row in rows] == pytest.approx([0.1, 0.05, -0.1])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_an_offline_run_keeps_table_and_artefact(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "card.md").write_text("a card")
    with results_run(tmp_path, WandbMode.OFFLINE, {"seed": 1}, kind="evaluate") as run:
        log_differences(run, "gate/differences", RUNS)
        log_files(run, "bundle", "bundle", tmp_path / "bundle")
    kept = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in kept)
    assert any("differences" in path.name and path.suffix == ".json" for path in kept)


def test_nothing_is_kept_where_wandb_is_off_or_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for mode in (WandbMode.DISABLED, WandbMode.OFFLINE):
        with results_run(tmp_path / "none", mode, {}, kind="evaluate") as run:
            log_differences(run, "differences", RUNS)
            log_files(run, "bundle", "bundle", tmp_path)
        assert run is None
    assert not (tmp_path / "none").exists()


def test_a_manifest_names_every_file_with_size_and_hash(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.csv").write_bytes(b"22")
    (tmp_path / "a.csv").write_bytes(b"1")
    assert trace_manifest(tmp_path) == [
        {"name": "a.csv", "size_bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()},
        {"name": "inner/b.csv", "size_bytes": 2, "sha256": hashlib.sha256(b"22").hexdigest()},
    ]
    assert trace_manifest(None) == []
    assert trace_manifest(tmp_path / "a.csv") == trace_manifest(tmp_path)[:1]


def test_a_training_names_the_traces_that_it_read(tmp_path):
    bundled = trace_files(None, tmp_path, is_over_sites=False)
    assert [entry["name"] for path in bundled for entry in trace_manifest(path)] == [
        "azure_code.csv.gz",
        "azure_conv.csv.gz",
    ]
    assert trace_files("azure-conv", None, is_over_sites=False) == bundled[1:]
    assert trace_files("a.trace", None, is_over_sites=False) == [Path("a.trace")]
    assert trace_files(None, tmp_path, is_over_sites=True) == [tmp_path]
    assert trace_files(None, None, is_over_sites=True) == []


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_a_training_leaves_its_settings_and_its_manifest_of_traces(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.csv").write_bytes(b"1")
    (tmp_path / "out" / "bundle").mkdir(parents=True)
    (tmp_path / "out" / "bundle" / "card.md").write_text("a card")
    out = tmp_path / "out"
    log_training(out, WandbMode.OFFLINE, {"seed": 3, "discount": 0.8}, [tmp_path / "store"])
    assert yaml.safe_load((out / "settings.yaml").read_text()) == {"seed": 3, "discount": 0.8}
    assert json.loads((out / "manifest.json").read_text()) == trace_manifest(tmp_path / "store")
    assert list((out / "wandb").rglob("*.wandb"))


@pytest.mark.skipif(not SWEEP.is_file(), reason="docs are not beside the tests")
def test_every_parameter_of_the_sweep_is_an_option_of_train():
    sweep = yaml.safe_load(SWEEP.read_text())
    app = typer.Typer()
    app.command()(train)
    command = typer.main.get_command(app)
    options = {name for parameter in command.params for name in parameter.opts}
    assert {f"--{name}" for name in sweep["parameters"]} <= options
    assert sweep["metric"]["name"] == "eval/sites/goodput_gain"

"""The encoder's benchmark: its figures for a small fleet, and its last line."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
import torch
from loading import BENCHMARKS

from trimtab.env.state.random_state import FleetSize


@pytest.fixture(scope="module")
def encoder() -> ModuleType:
    # by path: a checkout may itself be called "encoder"
    spec = importlib.util.spec_from_file_location("encoder_benchmark", BENCHMARKS / "encoder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_of_a_small_fleet(encoder):
    figures = encoder.time_fleet(FleetSize(num_servers=2), num_rounds=1)
    assert figures["nodes"]["gpu"] == 16
    assert figures["features"]["gpu"] >= 64
    assert figures["output_numbers"] <= 512
    assert max(figures["largest_difference"].values()) < 1e-5
    assert {"state to tensors", "encode, pyg", "encode, kernels"} <= set(figures["times"])
    assert all(0 < part["min_ms"] <= part["median_ms"] for part in figures["times"].values())


def test_json_is_the_last_line(encoder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["encoder.py", "--json", "--servers", "1", "--rounds", "1"])
    monkeypatch.setattr(encoder, "BATCH", 2)
    threads = torch.get_num_threads()
    encoder.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["nodes"]["server"] == 1
    assert any(line.startswith("PPO batch, kernels") for line in lines)

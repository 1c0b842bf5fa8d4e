"""`trimtab fleet`: replicas that outlive the command, and go without a trace."""

from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from trimtab.runtime.launcher.detached import read_state
from trimtab.scripts.cli import app

SMALL = ["--layers", "1", "--width", "64", "--slots", "1", "--slot-tokens", "128"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fleet", *arguments])
    return result.exit_code, result.output


def test_up_status_down(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra 'engines' is not installed")
    at = ["--dir", str(tmp_path)]
    code, text = run("up", "--replicas", "2", *SMALL, *at)
    assert code == 0, text
    assert "2 replicas are up" in text
    state = read_state(tmp_path)
    assert state is not None
    pids = [replica["pid"] for replica in state.replicas]
    assert run("status", *at)[1].count("healthy") == 2
    assert "already" in run("up", "--replicas", "1", *SMALL, *at)[1]
    assert run("down", *at) == (0, "2 replicas ended\n")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert run("status", *at)[0] == 1
    assert "nothing to end" in run("down", *at)[1]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--layers", "4,4", "--layers must name one value or 3, got 2: '4,4'"),
        ("--width", "wide", "--width must be whole numbers with commas between, got 'wide'"),
        ("--slowdown", "0.5", "slowdown must be from 1 to 100, got 0.5"),
    ],
)
def test_bad_options_are_told(tmp_path: Path, option: str, value: str, message: str) -> None:
    code, text = run("up", option, value, "--dir", str(tmp_path))
    assert code == 2
    assert message in " ".join(text.split())

"""The command `calibrate`: a recorded run or profiles become a file with its error table."""

from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED
from typer.testing import CliRunner

from trimtab.env.calibration_file import load_calibration
from trimtab.env.hardware import gpu
from trimtab.env.latency import iteration_time_s
from trimtab.env.model_profile import model
from trimtab.env.roofline import latency_coefficients
from trimtab.scripts.cli import app

PROFILES = SHARED / "profiles"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def write_run(path: Path) -> Path:
    """Iterations of an engine a quarter slower than the bundled calibration says."""
    record = latency_coefficients(gpu("H100-80G"), model("llama-3-8b"))[0]
    lines = ["prefill_tokens,prefill_start_tokens,decode_seqs,decode_context_tokens,time_s"]
    rng = np.random.default_rng(0)
    for _ in range(60):
        chunk = int(rng.choice([0, 0, 256, 1024]))
        seqs = int(rng.integers(1, 128))
        context = seqs * int(rng.integers(100, 4000))
        time_s = 1.25 * iteration_time_s(record, chunk, 0, seqs, context)
        lines.append(f"{chunk},0,{seqs},{context},{time_s}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_recorded_run_becomes_a_calibration(tmp_path: Path) -> None:
    out = tmp_path / "made" / "h100.json"
    common = ("--gpu", "H100-80G", "--model", "llama-3-8b", "--out", out)
    code, printed = run("calibrate", "--run", write_run(tmp_path / "run.csv"), *common)
    assert code == 0, printed
    assert "H100-80G: error of sets in the fit" in printed
    calibration = load_calibration(out)
    assert {row.phase for row in calibration.errors} == {"decode", "mixed"}
    assert all(row.median_frac < 0.05 for row in calibration.errors)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "needs either --profiles DIR or --run FILE"),
        (("--run", "x.csv"), "needs --model"),
        (("--profiles", "nowhere"), "no kernel tables in 'nowhere/aiconfigurator/h100_sxm'"),
    ],
)
def test_faults(arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    code, printed = run("calibrate", "--gpu", "H100-80G", "--out", tmp_path / "x.json", *arguments)
    assert code == 2
    assert text in " ".join(printed.split())


@pytest.mark.skipif(not PROFILES.is_dir(), reason=f"no public profiles in '{PROFILES}'")
def test_public_profiles_become_a_calibration(tmp_path: Path) -> None:
    out = tmp_path / "rtx.json"
    code, printed = run(
        "calibrate", "--profiles", PROFILES, "--gpu", "RTXPRO6000-96G", "--out", out
    )
    assert code == 0, printed
    assert "left out of the fit" in printed
    assert load_calibration(out).gpu == "RTXPRO6000-96G"

"""`trimtab` and `trimtab trace`: what a user types, what is written, and errors by text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from trimtab.scripts.cli import COMMANDS, app
from trimtab.traces.store import read_store

CSV = "ts,prompt,completion,who\n" + "".join(
    f"{1000 * i},{100 + i},{20 + i % 7},u{i % 5}\n" for i in range(40)
)
COLUMNS = "arrival_s=ts,input_tokens=prompt,output_tokens=completion,session=who"
TABULAR = ("--columns", COLUMNS, "--time-unit", "ms")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def make_csv(folder: Path, text: str = CSV) -> Path:
    file = folder / "gateway.csv"
    file.write_text(text)
    return file


def with_bad_lines(num_lines: int) -> str:
    lines = CSV.splitlines(keepends=True)
    return "".join(lines[:10] + ["5,many,1,u\n"] * num_lines + lines[10:])


def test_help_lists_every_command_and_imports_none() -> None:
    program = (
        "import sys\nfrom trimtab.scripts.cli import app\nsys.argv = ['trimtab', '--help']\n"
        "try:\n    app()\nfinally:\n"
        "    assert 'torch' not in sys.modules and 'numba' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "trimtab 0.1.0\n"


def test_import_of_a_csv_with_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_csv(tmp_path)
    result = run("trace", "import", "csv", "gateway.csv", *TABULAR, "--licence", "own")
    assert result.exit_code == 0, result.stderr
    assert "wrote gateway.trace: 40 requests over 39.0 s, 1.03 requests/s" in result.stdout
    assert "next: trimtab evaluate --trace gateway.trace\n" in result.stdout
    trace = read_store("gateway.trace")
    assert trace.source.name == "gateway.csv"
    assert trace.source.licence == "own"
    assert np.array_equal(trace.arrival_s, np.arange(40.0))
    assert np.array_equal(trace.input_tokens, np.arange(100, 140))


def test_a_bad_row_stops_the_import(tmp_path: Path) -> None:
    result = run("trace", "import", "csv", make_csv(tmp_path, with_bad_lines(1)), *TABULAR,
                 "--out", tmp_path / "x")  # fmt: skip
    assert result.exit_code == 2
    assert "line 11: prompt 'many' is not a whole number" in result.stderr
    assert "--skip-bad-rows" in result.stderr
    assert not (tmp_path / "x").exists()


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    result = run("trace", "import", "csv", make_csv(tmp_path, with_bad_lines(7)), *TABULAR,
                 "--sort", "--skip-bad-rows", "--out", tmp_path / "x")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "left out 7 bad rows" in result.stdout
    assert "... and 2 more" in result.stdout
    assert "many" in result.stdout
    assert len(read_store(tmp_path / "x")) == 40


def test_a_short_import_says_so_instead_of_what_to_do_next(tmp_path: Path) -> None:
    text = "".join(CSV.splitlines(keepends=True)[:5])
    result = run("trace", "import", "csv", make_csv(tmp_path, text), *TABULAR, "--out",
                 tmp_path / "x")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "has 4 requests over 3.0 s; evaluation needs at least 30" in result.stdout
    assert "next:" not in result.stdout


def test_a_store_is_replaced_only_when_asked(tmp_path: Path) -> None:
    args = ("trace", "import", "csv", make_csv(tmp_path), *TABULAR, "--out", tmp_path / "x")
    assert run(*args).exit_code == 0
    again = run(*args)
    assert again.exit_code == 2
    assert "pass --overwrite to replace it" in again.stderr
    assert run(*args, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("cvs", "f"), "unknown format 'cvs'; expected one of azure, csv, jsonl, mooncake, openai. "
                       "Did you mean 'csv'?"),
        (("csv", "none.csv"), "trace 'none.csv' cannot be read"),
        (("azure", "f", "--sort"), "--sort is for the formats csv and jsonl; format 'azure'"),
        (("openai", "f", "--columns", "a=b"), "--columns is for the formats csv and jsonl"),
        (("csv", "f", "--columns", "ts"), "--columns has 'ts'; expected field=column"),
        (("csv", "f", "--columns", "arrival=ts"), "'arrival' is none of"),
        (("csv", "f", "--time-unit", "h"), "time_unit must be one of ['s', 'ms', 'us', 'iso']"),
    ],
)  # fmt: skip
def test_import_errors_are_one_line(
    args: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("trace", "import", *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = run("--debug", "trace", "info", tmp_path / "none")
    assert "does not exist" in str(result.exception)
    assert result.exit_code == 1


def test_an_unknown_command_names_the_nearest() -> None:
    result = run("evaluat")
    assert result.exit_code == 2
    assert "evaluate" in result.stderr


def test_info_of_a_bundled_trace() -> None:
    result = run("trace", "info", "azure-code")
    assert result.exit_code == 0, result.stderr
    for text in ("7,717", "CC BY 4.0", "Azure LLM inference trace 2023", "requests/s"):
        assert text in result.stdout


def test_info_as_json(tmp_path: Path) -> None:
    place = tmp_path / "s.trace"
    assert run("trace", "synth", "--out", place, "--requests", 200, "--seed", 3).exit_code == 0
    content = json.loads(run("trace", "info", place, "--json").stdout)
    assert content["rows"] == 200
    assert content["source"]["licence"] == "CC0-1.0"


def test_info_of_what_is_no_trace(tmp_path: Path) -> None:
    file = make_csv(tmp_path)
    assert "is a file, not a trace store" in run("trace", "info", file).stderr
    assert "does not exist; expected a directory" in run("trace", "info", "azure").stderr


def test_synth_takes_its_options(tmp_path: Path) -> None:
    place = tmp_path / "s.trace"
    args = ("--span", 60, "--rate", 20, "--urgent", 1, "--follow-up", 0, "--shared-prompt", 0)
    result = run("trace", "synth", "--out", place, *args)
    assert result.exit_code == 0, result.stderr
    trace = read_store(place)
    assert trace.span_s <= 60.0
    assert len(trace) == pytest.approx(1200, rel=0.5)
    assert not trace.priority.any()


def test_synth_refuses_length_in_requests_and_seconds(tmp_path: Path) -> None:
    result = run("trace", "synth", "--out", tmp_path / "s", "--requests", 10, "--span", 5)
    assert result.exit_code == 2
    assert "give exactly one of num_requests and span_s" in result.stderr

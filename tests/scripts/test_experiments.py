"""The page of experiments is what the records say, and cannot drift."""

from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.agents.run_record import Outcome, Result, RunRecord, write_record
from trimtab.scripts.cli import app
from trimtab.scripts.experiments import page, read_records
from trimtab.traces.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


def put(directory: Path, name: str, **changes) -> None:
    values = {"title": f"run {name}", "day": date(2026, 1, 1), "command": "", **changes}
    directory.mkdir(exist_ok=True)
    write_record(directory / f"{name}.yaml", RunRecord(**values))


@pytest.mark.skipif(not (DOCS / "runs").is_dir(), reason="docs are not beside the tests")
def test_the_page_that_ships_is_made_from_its_records():
    text = (DOCS / "experiments.md").read_text(encoding="utf-8")
    assert page(read_records(DOCS / "runs")) == text


def test_the_newest_run_comes_first_with_its_main_result(tmp_path):
    put(tmp_path, "001-old")
    put(
        tmp_path, "002-new", seeds=(0, 4), cpu_s=1234.0, outcome=Outcome.LEVEL, notes="Why.",
        results=(Result(what="a | b", mean=0.25, low=-1.0, high=1.5),),
    )  # fmt: skip
    text = page(read_records(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    row = r"| 2 | run 002-new | 0, 4 | 1,234 | a \| b: +0.25 [-1, +1.5] points | level |"
    assert rows[1] == row
    assert rows[2] == "| 1 | run 001-old | not kept | not kept |  | measured |"
    assert text.index("## 2. run 002-new") < text.index("Why.") < text.index("## 1. run 001-old")


def test_check_fails_where_the_page_is_another(tmp_path):
    put(tmp_path / "runs", "001-one")
    out = tmp_path / "page.md"
    arguments = ["experiments", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    runner = CliRunner()
    assert runner.invoke(app, arguments).exit_code == 0
    assert runner.invoke(app, [*arguments, "--check"]).exit_code == 0
    out.write_text(out.read_text() + "by hand\n")
    assert runner.invoke(app, [*arguments, "--check"]).exit_code != 0
    assert out.read_text().endswith("by hand\n")


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ([], "no run records in"),
        (["001-a", "001-b"], "have number 001; renumber one"),
        (["first"], "must be named like"),
    ],
)
def test_directories_that_make_no_page_are_refused(tmp_path, names, fault):
    for name in names:
        put(tmp_path, name)
    with pytest.raises(ConfigError, match=fault):
        read_records(tmp_path)

"""Records of runs: what is written is read again, and faults say where they are."""

import platform
import subprocess
import sys
from datetime import date

import pytest

from trimtab.agents import run_origin
from trimtab.agents.run_record import (
    RECORD_NAME,
    Outcome,
    Result,
    RunClock,
    RunRecord,
    outcome_of,
    read_record,
    write_record,
)
from trimtab.traces.errors import ConfigError

RECORD = RunRecord(
    title="PPO: what it gains",
    day=date(2026, 11, 23),
    command="trimtab train\ntrimtab evaluate --gate",
    seeds=(0, 1),
    cpu_s=12.5,
    machine="two cores",
    versions={"trimtab": "0.1.0", "commit": "abc1234+"},
    settings={"discount": 0.8, "reads": "graph", "has_twin": True},
    results=(Result(what="gain", mean=0.5, low=0.1, high=0.9, count=30),),
    outcome=Outcome.GAINED,
    notes="Several lines.\n\n- One: more.\n",
)


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "run.yaml", RECORD)
    assert read_record(tmp_path / "run.yaml") == RECORD
    bare = RunRecord(title="bare", day=date(2026, 1, 2), command="")
    write_record(tmp_path / "run.yaml", bare)
    assert read_record(tmp_path / "run.yaml") == bare


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("outcome: won", "line 4: outcome: Input should be 'gained', 'level', 'lost' or"),
        ("cpu_s: -1.0", "line 4: cpu_s: Input should be greater than or equal to 0, got -1.0"),
        ("resuls: []", "line 4: resuls: unknown key with value .*did you mean 'results'"),
        ("results: [{what: a, mean: 1.0, low: 2.0, high: 1.0}]", "low must be at most high"),
        ("results: [{what: a, mean: 1.0, low: 0.5}]", "low and high come together"),
        ("results: [{what: a, mean: .nan}]", "must be finite"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, line, fault):
    path = tmp_path / "run.yaml"
    path.write_text(f"title: a\nday: 2026-11-23\ncommand: b\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=fault):
        read_record(path)


def test_a_clock_counts_cpu_time_and_judges_by_the_gain(tmp_path):
    clock = RunClock()
    sum(i * i for i in range(300_000))
    clock.record(
        tmp_path, title="t", command="c", seeds=[3], settings={"path": tmp_path, "n": 1},
        results=[
            Result(what="goodput", mean=90.0, unit="%"),
            Result(what="gain", mean=-0.2, low=-0.3, high=-0.1),
        ],
    )  # fmt: skip
    record = read_record(tmp_path / RECORD_NAME)
    assert record.outcome is Outcome.LOST
    assert record.seeds == (3,)
    assert record.settings == {"path": str(tmp_path), "n": 1}
    assert record.cpu_s is not None
    assert 0.0 <= record.cpu_s < 60.0
    assert "cores" in record.machine
    assert record.versions["python"] == platform.python_version()


def test_a_comparison_of_many_has_no_outcome_and_neither_has_a_gain_without_an_interval(tmp_path):
    gain = Result(what="gain", mean=0.2, low=0.1, high=0.3)
    values = {"title": "t", "command": "c", "seeds": []}
    clock = RunClock()
    assert clock.record(tmp_path, **values, results=[gain]).outcome is Outcome.GAINED
    compared = clock.record(tmp_path, **values, results=[gain], is_comparison=True)
    assert compared.outcome is Outcome.MEASURED
    assert outcome_of(Result(what="best of many checks", mean=0.2)) is Outcome.MEASURED


def test_children_that_have_ended_are_counted(tmp_path):
    clock = RunClock()
    subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
    record = clock.record(tmp_path, title="t", command="c", seeds=[], results=[])
    assert record.cpu_s is not None
    assert record.cpu_s >= 0.1


def test_notes_stay_a_block_that_people_can_read(tmp_path):
    notes = "One line. \n\n| a |\t\n|---|\n"
    record = RunRecord(title="t", day=date(2026, 1, 2), command="", notes=notes)
    write_record(tmp_path / "run.yaml", record)
    assert "notes: |\n  One line.\n\n  | a |\n  |---|\n" in (tmp_path / "run.yaml").read_text()
    assert read_record(tmp_path / "run.yaml") == record


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Result(what="a", mean=-0.0, low=-0.3, high=0.3), "+0 [-0.3, +0.3] points"),
        (Result(what="a", mean=91.25, unit="%"), "91.25 %"),
    ],
)
def test_a_figure_is_shown_with_sign_interval_and_unit(result, text):
    assert result.text() == text


def test_a_commit_is_told_with_a_plus_where_files_differ_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run_origin, "_ROOT", tmp_path)
    assert "commit" not in run_origin.versions()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    file = tmp_path / "a.txt"
    file.write_text("one")
    for arguments in (["init", "-q"], ["add", "a.txt"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *arguments], check=True)
    clean = run_origin.versions()["commit"]
    assert not clean.endswith("+")
    file.write_text("two")
    assert run_origin.versions()["commit"] == f"{clean}+"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.3, Outcome.GAINED), (-0.1, 0.3, Outcome.LEVEL), (-0.3, -0.1, Outcome.LOST)],
)
def test_the_outcome_is_that_of_the_interval(low, high, expected):
    assert outcome_of(Result(what="gain", mean=0.0, low=low, high=high)) is expected

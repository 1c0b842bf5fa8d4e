"""`trimtab evaluate`: from a user's own trace to table and report, and its errors by text."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS
from trimtab.scripts.cli import app
from trimtab.scripts.evaluate import TUNED_NAME, policy_makers, read_knobs
from trimtab.traces.errors import ConfigError

POLICIES = ("round-robin", "predicted-ttft", "analytic-scorer")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def trace_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's CSV with names of its own, imported by the command."""
    folder = tmp_path_factory.mktemp("user")
    lines = [f"{0.25 * i},{150 + 37 * i % 600},{5 + i % 40}" for i in range(480)]
    (folder / "log.csv").write_text("ts,prompt,completion\n" + "\n".join(lines) + "\n")
    place = folder / "log.trace"
    columns = "arrival_s=ts,input_tokens=prompt,output_tokens=completion"
    result = run("trace", "import", "csv", folder / "log.csv", "--columns", columns, "--out", place)
    assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture(scope="module")
def evaluated(trace_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The imported trace evaluated under three heuristics and a tuned vector."""
    out = tmp_path_factory.mktemp("out") / "report"
    knobs = out.parent / "knobs.json"
    knobs.write_text('{"backlog": 0.8, "hit_weight": 1.0}')
    result = run(
        *("evaluate", "--trace", trace_store, "--policies", ",".join(POLICIES), "--knobs", knobs),
        *("--workloads", 2, "--span", 10, "--load", 0.5, "--no-load-curve", "--out", out),
    )
    assert result.exit_code == 0, result.stderr
    return result, out


def test_prints_one_table_and_its_files(evaluated: tuple[Result, Path]) -> None:
    result, out = evaluated
    for name in (*POLICIES, TUNED_NAME):
        assert len(re.findall(rf"^{name}\*? ", result.stdout, re.MULTILINE)) >= 1
    assert "scenario log (test part), load 50% of saturation" in result.stdout
    assert re.search(r"tuned-scorer - \S+: [+-]\d+\.\d points \[", result.stdout)
    for name in ("report.html", "report.png", "evaluation.json"):
        assert (out / name).is_file()
        assert f"wrote {out / name}" in result.stdout


def test_says_how_the_recording_is_scaled(evaluated: tuple[Result, Path]) -> None:
    assert re.search(r"recorded: 4\.0\d requests/s .* overlays", evaluated[0].stderr)


def test_numbers_keep_what_made_them(evaluated: tuple[Result, Path], trace_store: Path) -> None:
    content = json.loads((evaluated[1] / "evaluation.json").read_text())
    assert set(content["policies"]) == {*POLICIES, TUNED_NAME}
    assert content["settings"]["trace"] == str(trace_store)
    assert content["settings"]["load"] == 0.5
    assert content["num_workloads"] == 2
    assert len(content["policies"]["round-robin"]["workloads"]) == 2


def test_json_on_stdout_is_the_file(trace_store: Path, two_kinds: Path, tmp_path: Path) -> None:
    result = run(
        *("evaluate", "--trace", trace_store, "--policies", "random", "--workloads", 1),
        *(
            "--cluster",
            two_kinds,
            "--span",
            5,
            "--load",
            0.3,
            "--no-load-curve",
            "--json",
            "--out",
            tmp_path,
        ),
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "evaluation.json").read_text())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--policies", "rnd"), "unknown policy 'rnd'; known: random, round-robin"),
        (("--policies", ","), "--policies ',' names no policy"),
        (("--cluster", "demo-61"), "unknown cluster 'demo-61'"),
        (("--trace", "nowhere"), "trace 'nowhere' does not exist"),
        (("--bundle", "nowhere"), "nowhere"),
        (("--knobs", "nowhere"), "knob file 'nowhere' cannot be read"),
        (("--load", "0"), "load_frac must be in (0, 10], got 0.0"),
        (("--span", "-1"), "span_s must be above 0, got -1.0"),
    ],
)
def test_errors_are_one_line(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run("evaluate", *args, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("moments_s", "message"),
    [
        ([0.5 * i for i in range(12)], "has 12 requests over 5.5 s; evaluation needs at least 30"),
        ([0.01 * i for i in range(99)], "has 99 requests over 1.0 s"),
        ([0.01 * i for i in range(99)] + [60.0], "in its validation part"),
    ],
)
def test_a_trace_too_short(moments_s: list[float], message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = "".join(f"{moment},10,10\n" for moment in moments_s)
    file.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    assert run("trace", "import", "csv", file, "--out", tmp_path / "a").exit_code == 0
    result = run("evaluate", "--trace", tmp_path / "a", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr


def test_all_means_every_heuristic() -> None:
    makers = policy_makers("all")
    assert {name: make().name for name, make in makers.items()} == {n: n for n in HEURISTICS}


def test_knobs_of_a_file_replace_those_of_the_scorer(tmp_path: Path) -> None:
    file = tmp_path / "knobs.json"
    file.write_text('{"backlog": 2.0}')
    assert read_knobs(file).as_dict() == {**ANALYTIC_SCORER.knobs.as_dict(), "backlog": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no object"),
        ('{"backlog": "1"}', "'backlog' is '1'; expected a number"),
        ('{"backlog": true}', "'backlog' is True; expected a number"),
        ('{"backlogg": 1}', "did you mean 'backlog'"),
        ('{"backlog": 99}', r"must be in \[0.05, 4\], got 99"),
    ],
)
def test_a_bad_knob_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "knobs.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_knobs(file)

"""`trimtab faults`: profiles shown, records fitted, and `evaluate --faults`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trimtab.env.fault_file import load_faults
from trimtab.scripts.cli import app
from trimtab.scripts.evaluate import make_scenario


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def write_record(directory: Path) -> Path:
    rows = ["event_time_days,node,event_type,class,description"]
    for day in range(20):
        for part, event in ((0.5, "fault_start"), (0.75, "fault_end")):
            rows.append(f"{day + part},{day % 5},{event},GPU,x")
    path = directory / "record.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_show_lists_profiles_and_prints_only_what_is_on():
    assert "fleet\ngpu\nmild\nnone\nspot\ntroubled\n" in run("faults", "show").stdout
    shown = run("faults", "show", "troubled").stdout
    assert "crashes_per_hour: 0.3" in shown
    assert "stalls" not in shown
    assert run("faults", "show", "none").stdout == "no trouble\n"
    result = run("faults", "show", "flet")
    assert result.exit_code == 2
    assert "did you mean 'fleet'?" in result.stderr


def test_fit_writes_a_file_that_loads(tmp_path):
    out = tmp_path / "mine.yaml"
    record = write_record(tmp_path)
    result = run(
        "faults", "fit", "--servers", record, "--num-servers", 5, "--acceleration", 100,
        "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    config = load_faults(out)
    assert config.acceleration == 100.0
    # 20 faults of 5 servers in 19.25 days
    assert config.server_loss.per_hour == pytest.approx(20 / (5 * 19.25 * 24), rel=0.01)
    assert config.server_loss.down_quantiles_s[0] == pytest.approx(6 * 3600.0)
    printed = run("faults", "fit", "--servers", record)
    assert "server_loss:" in printed.stdout
    assert "20 server faults" in printed.stderr


def test_fit_of_nothing_says_what_to_give():
    result = run("faults", "fit")
    assert result.exit_code == 2
    assert "nothing to fit; give --servers, --spot or both" in result.stderr


def test_evaluation_takes_the_trouble_that_it_is_told():
    settings = {"cluster": "demo-16", "load_frac": 0.8, "seed": 0, "span_s": 90.0}
    troubled = make_scenario(None, **settings)
    spot = make_scenario(None, **settings, faults="spot")
    assert troubled.config.faults == load_faults("troubled")
    assert spot.config.faults == load_faults("spot")
    assert spot.parts is troubled.parts

"""Table and report of an evaluation made by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trimtab.agents.evaluation import QUANTILES, Evaluation, KnobTrack, PolicyResult
from trimtab.agents.heuristics import HEURISTICS
from trimtab.env.knobs import KNOB_NAMES, Knobs
from trimtab.env.kpis import Kpis
from trimtab.env.scenario import Part
from trimtab.scripts.palette import GREY, policy_styles
from trimtab.scripts.report import as_json, write_report
from trimtab.scripts.summary import (
    best_imported,
    conditions,
    differences,
    headline,
    key_differences,
)
from trimtab.scripts.table import COLUMNS, markdown_table, rich_table, rows

GOODPUT = {"tuned-scorer": 0.95, "predicted-ttft": 0.93, "round-robin": 0.5, "<b>odd</b>": 0.4}


def make_result(name: str, goodput: float, *, num_workloads: int = 12) -> PolicyResult:
    wave = 0.01 * np.sin(np.arange(num_workloads))
    kpis = tuple(
        Kpis(
            num_requests=100,
            goodput_frac=goodput + shift,
            goodput_rps=1.0,
            slo_violation_frac=1.0 - goodput,
            shed_frac=0.0,
            failed_frac=0.0,
            ttft_p50_s=0.1,
            ttft_p99_s=1.0,
            tpot_p50_s=float("nan"),
            tpot_p99_s=float("nan"),
            e2e_p99_s=3.0,
            output_tokens_per_kwh=5.5e6,
            prefix_hit_frac=0.25,
            num_preemptions=0,
            energy_kwh=0.1,
        )
        for shift in wave
    )
    return PolicyResult(name=name, kpis=kpis, ttft_quantiles_s=0.05 + QUANTILES * (2 - goodput))


def make_track() -> KnobTrack:
    at_s = np.arange(0.0, 20.0, 2.0)
    values = {name: np.full(at_s.size, Knobs()[name]) for name in KNOB_NAMES}
    values["backlog"] = np.linspace(1.0, 2.0, at_s.size)
    values["externality_batch"] = np.linspace(0.0, -0.5, at_s.size)
    values["max_replica_bias"] = np.zeros(at_s.size)
    return KnobTrack(policy="trained-ppo", at_s=at_s, values=values)


def make_evaluation(goodput: dict[str, float] = GOODPUT, **changes: Any) -> Evaluation:
    evaluation = Evaluation(
        scenario="made",
        part=Part.TEST,
        load_frac=0.8,
        rate_rps=113.4,
        seed=7,
        policies=tuple(make_result(name, value) for name, value in goodput.items()),
        knob_tracks=(make_track(),),
        goodput_by_load={name: ((0.5, 1.0), (1.0, value)) for name, value in goodput.items()},
    )
    return replace(evaluation, **changes)


def test_rows_are_sorted_and_in_the_units_of_the_columns() -> None:
    cells = rows(make_evaluation(dict(reversed(GOODPUT.items()))))
    assert [row[0] for row in cells] == list(GOODPUT)
    assert dict(zip(COLUMNS, cells[0], strict=True)) == {
        "policy": "tuned-scorer",
        "goodput %, 95% CI": cells[0][1],
        "SLO miss %": "5.0",
        "TTFT P50 ms": "100",
        "TTFT P99 ms": "1000",
        "TPOT P99 ms": "-",
        "tokens /kWh": "5.50M",
        "cache hit %": "25.0",
        "shed %": "0.0",
    }
    mean, low, high = map(float, re.findall(r"[\d.]+", cells[0][1]))
    assert low < mean < high
    assert mean == pytest.approx(95, abs=0.5)


def test_terminal_table_fits_80_columns_with_every_policy() -> None:
    evaluation = make_evaluation(dict.fromkeys(HEURISTICS, 0.99))
    console = Console(width=80, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(rich_table(evaluation))
    console.file.close()
    text = console.export_text()
    assert all(re.search(rf"^{name}\*? +99\.", text, re.MULTILINE) for name in HEURISTICS)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("5.50M  25.0  0.0") == len(HEURISTICS)
    assert "seed 7" in text


def test_markdown_has_one_row_a_policy_and_the_differences() -> None:
    text = markdown_table(make_evaluation())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(GOODPUT)
    assert {line.count("|") for line in table} == {len(COLUMNS) + 1}
    assert table[2].startswith("| **tuned-scorer** |")
    assert table[3].startswith(r"| predicted-ttft\* |")
    assert "tuned-scorer - predicted-ttft: +2.0 points [2.0, 2.0]" in text


def test_differences_are_paired_and_against_the_best_imported() -> None:
    evaluation = make_evaluation()
    assert best_imported(evaluation) == "predicted-ttft"
    found = {each.name: each for each in differences(evaluation)}
    assert set(found) == set(GOODPUT) - {"predicted-ttft"}
    # Equal shifts on equal workloads: the pairs differ by the same amount each.
    points = found["round-robin"].points
    assert (points.mean, points.low, points.high) == pytest.approx((-43.0, -43.0, -43.0))
    assert [each.name for each in key_differences(evaluation)] == ["tuned-scorer", "<b>odd</b>"]


def test_without_own_policies_the_runner_up_is_compared() -> None:
    evaluation = make_evaluation({"predicted-ttft": 0.9, "random": 0.4, "round-robin": 0.5})
    assert [each.name for each in key_differences(evaluation)] == ["round-robin"]
    assert "more than the runner-up, round-robin" in headline(evaluation)


def test_headline_says_when_a_difference_is_not_clear() -> None:
    evaluation = make_evaluation()
    assert "2.0 points [2.0, 2.0] more than the best imported scheduler, predicted-ttft." in (
        headline(evaluation)
    )
    even = make_evaluation({"tuned-scorer": 0.93, "predicted-ttft": 0.93})
    assert "predicted-ttft, is not clear (+0.0 points" in headline(even)
    alone = make_evaluation({"random": 0.4})
    assert headline(alone).endswith("within both limits.")
    assert differences(alone) == []


def test_conditions_warn_about_few_workloads() -> None:
    few = make_evaluation(policies=(make_result("random", 0.5, num_workloads=3),))
    assert "3 workloads, seed 7; fewer than 10 workloads" in conditions(few)
    assert "fewer" not in conditions(make_evaluation())


def test_at_most_six_policies_are_coloured_and_own_ones_first() -> None:
    goodput = {name: 0.9 - 0.01 * i for i, name in enumerate(HEURISTICS)} | {"tuned-scorer": 0.1}
    styles = policy_styles(make_evaluation(goodput))
    coloured = [name for name, style in styles.items() if style.is_emphasised]
    assert len(coloured) == 6
    assert {"tuned-scorer", "analytic-scorer"} <= set(coloured)
    assert len({(styles[name].colour, styles[name].dash) for name in coloured}) == 6
    assert {style.colour for style in styles.values() if not style.is_emphasised} == {GREY}


def test_report_is_whole_and_works_offline(tmp_path: Path) -> None:
    paths = write_report(make_evaluation(), tmp_path / "a" / "b")
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == [
        "evaluation.json",
        "report.html",
        "report.png",
    ]
    page = paths.html.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*\b(src|href)\s*=", page)
    assert page.count("plotly.js v") == 1
    assert "<b>odd</b>" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    for text in ("tuned-scorer", "predicted-ttft", "round-robin", "&lt;b&gt;odd&lt;/b&gt;"):
        assert text in page
    for title in ("Indicators", "Goodput against predicted-ttft", "Time to first token",
                  "Goodput against load", "Knobs that trained-ppo moved", "Limits:"):  # fmt: skip
        assert title in page
    assert paths.png.read_bytes().startswith(b"\x89PNG\r\n")


def test_only_knobs_that_moved_are_drawn(tmp_path: Path) -> None:
    page = write_report(make_evaluation(), tmp_path).html.read_text(encoding="utf-8")
    for knob in KNOB_NAMES:
        is_drawn = f'"name":"{knob}"' in page
        assert is_drawn == (knob in ("backlog", "externality_batch")), knob


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    bare = make_evaluation({"random": 0.4}, knob_tracks=(), goodput_by_load={"random": ()})
    page = write_report(bare, tmp_path).html.read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["Indicators", "Time to first token"]


def test_a_policy_that_served_nothing_is_drawn(tmp_path: Path) -> None:
    nothing = replace(make_result("random", 0.0), ttft_quantiles_s=np.full(QUANTILES.size, np.nan))
    paths = write_report(make_evaluation(policies=(nothing, make_result("x", 0.5))), tmp_path)
    content = json.loads(paths.json.read_text())
    assert set(content["policies"]["random"]["ttft_quantiles_s"]) == {None}


def test_json_has_every_number() -> None:
    content = as_json(make_evaluation(), settings={"out": Path("x"), "load": 0.8})
    json.dumps(content, allow_nan=False)
    assert content["settings"] == {"out": "x", "load": 0.8}
    policy = content["policies"]["tuned-scorer"]
    assert policy["goodput_frac"]["mean"] == pytest.approx(0.95, abs=0.005)
    assert policy["mean"]["tpot_p99_s"] is None
    assert len(policy["workloads"]) == 12
    assert len(policy["ttft_quantiles_s"]) == len(content["quantiles"])
    assert content["goodput_by_load"]["round-robin"] == [[0.5, 1.0], [1.0, 0.5]]
    assert content["knob_tracks"][0]["policy"] == "trained-ppo"
    assert content["goodput_differences"][0]["base"] == "predicted-ttft"


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    write_report(make_evaluation(), tmp_path)
    paths = write_report(make_evaluation(seed=8), tmp_path)
    assert json.loads(paths.json.read_text())["seed"] == 8
    assert not list(tmp_path.glob("*.tmp"))

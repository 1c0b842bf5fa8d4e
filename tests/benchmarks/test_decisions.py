"""The benchmark of decisions: pairs, intervals, kept loads, resuming, and who is absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from loading import load

from trimtab.agents.run_record import Outcome, RunClock, read_record
from trimtab.agents.value_file import value_bytes
from trimtab.env.value.network import closed_form

decisions = load("decisions")
contenders, jobs = load("decision_contest.contenders"), load("decision_contest.jobs")
results, table = load("decision_contest.results"), load("decision_contest.table")
page = load("decision_contest.page")

NO_KPIS = dict.fromkeys(
    ("violations", "shed", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s", "tokens_per_kwh",
     "request_us"), 0.0,
)  # fmt: skip
FEW = ("least-requests", "llm-d-weighted", "universal-scorer", "marginal-value")


def make_rows(values, contender, load_frac=0.8):
    """Return rows of goodputs [sites][episodes]."""
    return [
        {"site": f"s{i}", "episode": j, "contender": contender, "goodput": value,
         "shape": "chat", "recording": "chat", "load": load_frac, "scrape_s": 0.5, "part": "sites"}
        for i, site in enumerate(values) for j, value in enumerate(site)
    ]  # fmt: skip


@pytest.fixture
def few(monkeypatch):
    """Let few contenders take part, and have them play little."""
    whole = contenders.contenders
    monkeypatch.setattr(
        jobs, "contenders", lambda *args: [one for one in whole(*args) if one.name in FEW]
    )
    monkeypatch.setattr(jobs, "STEADY_SPAN_S", 10.0)


def play_job(known=frozenset(), num_moves=20):
    field = contenders.Field(has_tuned=False, has_bounds=False, num_moves=num_moves)
    job = jobs.Job(jobs.SITES, 0, None, 2, 1)
    return job, jobs.run_job(job, None, field, Path(), known)


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "request_us"} for row in rows]


def test_the_interval_of_a_constant_difference_is_that_difference():
    rows = make_rows([[0.5, 0.7], [0.2, 0.3]], "base") + make_rows([[0.6, 0.8], [0.3, 0.4]], "one")
    found = table.difference(rows, "one", "base")
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_sites_count_alike_and_are_resampled():
    # A site of many episodes counts as one; of two sites, a quarter of the resamples has one twice.
    found = table.nested_bootstrap([[0.0] * 50, [1.0]])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    rng = np.random.default_rng(0)
    means = rng.normal(0.0, 1.0, 400)
    found = table.nested_bootstrap([[value] * 3 for value in means])
    assert found.high - found.low == pytest.approx(2 * 1.96 * means.std() / 20.0, rel=0.08)


def test_only_episodes_that_both_played_are_compared():
    rows = make_rows([[0.5, 0.0], [0.5]], "base") + make_rows([[0.6]], "one")
    assert table.difference(rows, "one", "base").mean == pytest.approx(0.1)
    assert table.difference(rows, "one", "nobody") is None


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([1.0, 0.97, 0.93], 0.9), ([0.94, 0.9, 0.9], None), ([0.99, 0.98, 0.97], np.inf),
     ([1.0, 0.9, 1.0], 0.7)],
)  # fmt: skip
def test_kept_load_is_where_the_curve_crosses(curve, expected):
    found = table.kept_load([0.6, 0.8, 1.0], curve)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_contenders_are_paired_and_a_cut_run_gives_the_same_table(few):
    job, whole = play_job()
    names = {row["contender"] for row in whole.rows}
    assert names == {*FEW, contenders.HINDSIGHT}
    for number in range(2):
        own = [row for row in whole.rows if row["episode"] == number]
        assert len({row["requests"] for row in own}) == 1
    best = max(
        row["goodput"]
        for row in whole.rows
        if row["episode"] == 0 and row["contender"] != contenders.HINDSIGHT
    )
    (bound,) = [row for row in whole.rows if row["contender"] == contenders.HINDSIGHT]
    assert bound["start"] == pytest.approx(best)
    assert bound["goodput"] >= best
    kept = whole.rows[:3] + whole.rows[6:7]
    _, rest = play_job(decisions.known_of(kept, job))
    assert len(rest.rows) == len(whole.rows) - len(kept)
    table_of = [decisions.current(rows, [job], [whole]) for rows in (whole.rows, kept + rest.rows)]
    order = [
        sorted(without_times(rows), key=lambda row: (row["episode"], row["contender"]))
        for rows in table_of
    ]
    assert order[0] == order[1]
    _, nothing = play_job(decisions.known_of(whole.rows, job))
    assert nothing.rows == []


def test_rows_of_contenders_as_they_once_were_are_left_out(few):
    job, whole = play_job(num_moves=0)
    old = [{**row, "maker": "old", "goodput": 0.0} for row in whole.rows]
    assert decisions.current(old + whole.rows, [job], [whole]) == whole.rows
    _, again = play_job(decisions.known_of(old, job), num_moves=0)
    assert without_times(again.rows) == without_times(whole.rows)


def test_a_line_that_was_cut_is_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": 2}\n{"a":')
    assert decisions.read_rows(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]
    assert decisions.read_rows(tmp_path / "none.jsonl") == []


def test_who_does_not_take_part_is_named_with_the_reason():
    quick = contenders.absent(contenders.Field(has_tuned=False, has_bounds=False, num_moves=0))
    assert set(quick) == {
        *("PPO over each base", "learned value network", "site-tuned-scorer", "site-tuned-value"),
        *("lookahead-8x6", "full-information", "hindsight"),
    }
    assert "--bundle" in quick["PPO over each base"]
    one = (("ppo-a", Path("a")),)
    assert contenders.absent(contenders.Field(bundles=one, networks=one)) == {}
    result = decisions.summarise([], contenders.Field(only=frozenset({"nobody"})))
    assert result["absent"]["all others"] == "--only names nobody"
    assert "took part" in result["absent"]["nobody"]
    with pytest.raises(decisions.argparse.ArgumentTypeError, match="got 'nothing'"):
        decisions.bundle_argument("nothing")


def test_a_value_network_of_zeros_places_as_the_closed_form_does(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "STEADY_SPAN_S", 10.0)
    (tmp_path / "value.safetensors").write_bytes(value_bytes(closed_form()))
    name, path = decisions.network_argument(f"none={tmp_path / 'value.safetensors'}")
    both = frozenset({name, contenders.WORTH})
    field = contenders.Field(has_tuned=False, num_moves=0, networks=((name, path),), only=both)
    rows = jobs.run_job(jobs.Job(jobs.SITES, 0, None, 1), None, field, Path()).rows
    assert {row["contender"] for row in rows} == {"network-none", "marginal-value"}
    assert rows[0]["goodput"] == rows[1]["goodput"]
    assert rows[0]["ttft_p99_s"] == rows[1]["ttft_p99_s"]
    assert rows[0]["maker"] != rows[1]["maker"]


def test_peers_shed_by_the_prior_and_by_the_tuned_prediction():
    field = contenders.Field(has_tuned=False, has_bounds=False, num_moves=0)
    site = jobs.site_of(jobs.Job(jobs.SITES, 0), None)
    found = {one.name: one for one in contenders.contenders(site, None, field, Path())}
    assert not found["llm-d-50ms"].knobs["shed_enabled"]
    for suffix in ("+shed", "+tuned-shed"):
        one = found["llm-d-50ms" + suffix]
        assert one.knobs["shed_enabled"] == 1.0
        assert one.scrape_interval_s == 0.05
        assert (
            one.knobs["waiting_share_weight"]
            == found["llm-d-weighted"].knobs["waiting_share_weight"]
        )
    universal = found["universal-scorer"].knobs
    tuned = found["least-requests+tuned-shed"].knobs
    assert tuned["shed_interactive"] == universal["shed_interactive"]


def test_the_page_shows_every_contender_and_who_is_absent(few, tmp_path):
    job, whole = play_job(num_moves=0)
    rows = decisions.current(whole.rows, [job], [whole])
    loads = [{**row, "part": "loads", "load": x} for row in rows for x in (0.6, 1.0)]
    field = contenders.Field(has_tuned=False, has_bounds=False, num_moves=0)
    result = json.loads(json.dumps(decisions.summarise(rows + loads, field)))
    page.write_page(tmp_path / "report.html", result)
    text = (tmp_path / "report.html").read_text()
    for words in (*FEW, "Not taking part", "site-tuned-scorer", "Load at which 95 % is kept"):
        assert words in text
    gain = result["sites"]["differences"]["marginal-value - universal-scorer"]
    by_shape = list(result["sites"]["by_shape"].values())
    assert by_shape[0]["differences"]["marginal-value - universal-scorer"] == gain


def test_a_record_of_the_run_holds_every_paired_difference(tmp_path):
    rows = make_rows([[0.5, 0.7], [0.2, 0.3]], "universal-scorer")
    rows += make_rows([[0.6, 0.8], [0.3, 0.4]], "marginal-value")
    differences = results.part_result([dict(row, **NO_KPIS) for row in rows])
    arguments = decisions.parse(["--quick", "--out", str(tmp_path)])
    decisions.write_run_record(RunClock(), arguments, {"sites": differences}, 7)
    record = read_record(tmp_path / "run.yaml")
    (gain,) = record.results
    assert gain.what == "marginal-value - universal-scorer, 2 test sites"
    assert (gain.mean, gain.low, gain.high, gain.count) == (10.0, 10.0, 10.0, 4)
    assert record.settings["rows_kept"] == 7
    assert record.settings["sites"] == 8
    assert record.outcome is Outcome.MEASURED

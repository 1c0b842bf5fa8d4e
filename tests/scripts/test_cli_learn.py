"""The commands that learn, on a user's trace, from import to a judged bundle; and the demo."""

import json
import re

import pytest
from typer.testing import CliRunner

from trimtab.agents.bundle import load_bundle
from trimtab.agents.evaluation import Evaluation, PolicyResult
from trimtab.agents.run_record import Outcome, read_record
from trimtab.agents.tuning import TuningResult
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, TUNABLE_KNOBS
from trimtab.env.kpis import Kpis
from trimtab.env.scenario import Part
from trimtab.graph_encoder.checkpoint import load_encoder
from trimtab.graph_encoder.pretraining import TASKS
from trimtab.scripts.cli import app
from trimtab.scripts.demo import BASE_NAME, verdict
from trimtab.scripts.steps import TRAINED_NAME, TUNED_NAME
from trimtab.scripts.tune import verdict_text
from trimtab.traces.store import write_store
from trimtab.traces.synthetic import SyntheticConfig, generate


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("learn") / "mine.trace"
    config = SyntheticConfig(num_requests=3000, rate_rps=10.0, seed=0, block_tokens=128)
    write_store(path, generate(config))
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_tune_train_and_evaluate_a_trace(store, two_kinds, tmp_path):
    common = ("--trace", store, "--cluster", two_kinds, "--span", 8, "--load", 0.5)
    knobs, out = tmp_path / "tuned.json", tmp_path / "train"
    printed = run("tune", *common, "--generations", 1, "--out", knobs)
    assert f"next: trimtab train --trace {store} --knobs {knobs}" in printed
    assert re.search(r"validation goodput: old [\d.]+ %, .*tuned [\d.]+ %: kept the ", printed)
    assert set(json.loads(knobs.read_text())) == set(TUNABLE_KNOBS)
    printed = run(
        "train", *common, "--knobs", knobs, "--windows", 16, "--envs", 2,
        "--wandb", "disabled", "--out", out,
    )  # fmt: skip
    assert f"--knobs {knobs} --bundle {out / 'bundle'}" in printed
    bundle = load_bundle(out / "bundle")
    assert bundle.base_knobs["backlog"] == json.loads(knobs.read_text())["backlog"]
    assert "after 0 windows" in bundle.evaluation["validation_goodput_gain"]
    printed = run(
        "evaluate", *common, "--knobs", knobs, "--bundle", out / "bundle",
        "--policies", "round-robin", "--workloads", 1, "--no-load-curve",
        "--out", tmp_path / "report",
    )  # fmt: skip
    for name in ("round-robin", TUNED_NAME, TRAINED_NAME):
        assert name in printed
    gate = ("evaluate", *common[:-4], "--span", 3, "--load", 0.4, "--gate", "--workloads", 30,
            "--wandb", "disabled", "--out", tmp_path / "gate")  # fmt: skip
    judged = CliRunner().invoke(app, [str(a) for a in (*gate, "--bundle", out / "bundle")])
    # It has learned nothing, so it gains nothing.
    assert judged.exit_code == 1, judged.output
    assert "refused: the gain's lower bound is" in judged.output
    assert not load_bundle(out / "bundle").may_act
    for directory in (tmp_path / "tuned-run", out, tmp_path / "gate"):
        record = read_record(directory / "run.yaml")
        assert record.seeds == (0,)
        assert record.cpu_s is not None
        assert record.cpu_s > 0.0
    assert record.results[0].count == 30
    assert record.outcome is Outcome.LEVEL


def test_a_gate_without_a_bundle_is_told_in_one_line():
    result = CliRunner().invoke(app, ["evaluate", "--gate"])
    assert result.exit_code == 2
    assert "--gate needs --bundle" in result.output


def test_a_bundle_of_other_code_is_refused_in_one_line(store, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--bundle", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert "nothing" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("library", "tuned", "message"),
    [
        (0.85, 0.9, "old 80.00 %, best of the library 85.00 %, tuned 90.00 %: kept the new vector"),
        (0.9, 0.85, "old 80.00 %, best of the library 90.00 %, tuned 85.00 %: kept the library's"),
        (0.7, 0.75, "old 80.00 %, best of the library 70.00 %, tuned 75.00 %: kept the old vector"),
        (None, 0.9, "old 80.00 %, tuned 90.00 %: kept the new vector"),
    ],
)
def test_tuning_says_what_it_kept(library, tuned, message):
    result = TuningResult(
        knobs=ANALYTIC_SCORER_KNOBS,
        is_improved=max(tuned, library or 0.0) > 0.8,
        base_goodput=0.8,
        tuned_goodput=tuned,
        num_evaluations=1,
        library_goodput=library,
    )
    assert message in verdict_text(result)


def test_tune_library_writes_what_is_better_than_the_universal_vector(tmp_path):
    out = tmp_path / "new" / "library.json"
    printed = run("tune-library", "--sites", 1, "--generations", 1, "--out", out)
    assert f"wrote {out}" in printed
    content = json.loads(out.read_text())
    assert f"{len(content['vectors'])} of 1 sites" in printed
    record = read_record(tmp_path / "new" / "library-run" / "run.yaml")
    assert record.results[0].mean == len(content["vectors"])
    assert content["found_by"] == "trimtab tune-library --sites 1 --generations 1"
    refused = CliRunner().invoke(app, ["tune-library", "--sites", "0"])
    assert refused.exit_code == 2
    assert "--sites" in refused.output


def make_evaluation(gains: list[float]) -> Evaluation:
    def result(name: str, goodput: list[float]) -> PolicyResult:
        fields = {name: 0.0 for name in Kpis.__slots__} | {"num_requests": 1, "num_preemptions": 0}
        kpis = tuple(Kpis(**(fields | {"goodput_frac": value})) for value in goodput)
        return PolicyResult(name=name, kpis=kpis, ttft_quantiles_s=None)

    return Evaluation(
        scenario="made",
        part=Part.TEST,
        load_frac=0.8,
        rate_rps=1.0,
        seed=0,
        policies=(
            result(BASE_NAME, [0.5] * len(gains)),
            result(TRAINED_NAME, [0.5 + gain for gain in gains]),
        ),
    )


@pytest.mark.parametrize(
    ("gains", "message"),
    [
        ([0.02, 0.03, 0.01] * 4, r"is better than its base, marginal-value: \+2\.00 points"),
        ([-0.02, -0.03, -0.01] * 4, r"is WORSE than marginal-value: -2\.00 points"),
        ([-0.02, 0.02, 0.001] * 4, r"cannot be told from marginal-value: \+0\.03 points"),
    ],
)
def test_the_demo_says_what_training_was_worth(gains, message):
    assert re.search(message, verdict(make_evaluation(gains)))


@pytest.mark.slow
def test_pretrain_writes_an_encoder_that_can_be_loaded(tmp_path):
    out = tmp_path / "encoder"
    printed = run("pretrain", "--fleets", 2, "--windows", 6, "--steps", 20, "--out", out)
    assert "validation at step 0: restore" in printed
    assert f"wrote {out}" in printed
    training = json.loads((out / "config.json").read_text())["training"]
    looks = [sum(look[task] for task in TASKS) for look in training["validation"]]
    assert looks[-1] < looks[0]
    assert load_encoder(out).pooled_size == 512

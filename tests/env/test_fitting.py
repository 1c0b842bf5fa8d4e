"""The fit: it finds what made the samples, also in what it did not see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab.env.calibration import Calibration, bundled_calibration
from trimtab.env.fitting import (
    START,
    calibrated,
    error_rows,
    fit,
    left_out_errors,
    predicted_parts_s,
    prediction_errors,
    with_run_prior,
)
from trimtab.env.hardware import Precision, gpu
from trimtab.env.model_profile import model
from trimtab.env.profiles.live_run import live_samples
from trimtab.env.profiles.samples import IterationSamples, Phase, batch_columns
from trimtab.traces.errors import ConfigError

GPU = gpu("H100-80G")
TRUTH = replace(
    START,
    memory_frac=0.7,
    compute_frac=0.6,
    roofline_power=1.5,
    attention_frac=0.5,
    kv_frac=0.75,
    layer_s=4e-5,
    decode_layer_s=5e-6,
)


def make_truth() -> Calibration:
    bundled = bundled_calibration("H100-80G")
    assert bundled is not None
    return replace(bundled, efficiency=TRUTH, errors=())


def make_samples(
    name: str, tensor_parallel: int = 1, *, noise: float = 0.0, has_parts: bool = True
) -> IterationSamples:
    """Iterations that follow `TRUTH`, with log-normal noise."""
    rows = [(1.0, t, 0.0, 0.0) for t in (64.0, 256.0, 1024.0, 4096.0, 8192.0)]
    rows += [(0.0, 0.0, s, c) for s in (1.0, 8.0, 64.0, 256.0) for c in (128.0, 1024.0, 8192.0)]
    rows += [(1.0, 512.0, s, c) for s in (8.0, 64.0) for c in (512.0, 4096.0)]
    prompts, prompt_tokens, seqs, seq_tokens = np.array(rows).T
    batches = batch_columns(prompts, prompt_tokens, seqs, seqs * seq_tokens)
    nothing = np.full((len(rows), 4), np.nan)
    empty = IterationSamples(
        model=model(name), tensor_parallel=tensor_parallel, precision=Precision.BF16,
        batches=batches, times_s=np.ones(len(rows)), parts_s=nothing,
    )  # fmt: skip
    parts = predicted_parts_s(empty, GPU, make_truth())
    factor = np.exp(noise * np.random.default_rng(0).standard_normal(len(rows)))
    return replace(
        empty, times_s=parts.sum(axis=1) * factor, parts_s=parts if has_parts else nothing
    )


def test_finds_the_coefficients_that_made_the_samples() -> None:
    sets = [
        make_samples("llama-3-8b"),
        make_samples("llama-3-70b", 4),
        make_samples("qwen3-32b", 2),
    ]
    fitted = fit(sets, GPU, replace(make_truth(), efficiency=START)).efficiency
    for name in ("memory_frac", "compute_frac", "attention_frac", "kv_frac", "layer_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(TRUTH, name), rel=0.1)


@pytest.mark.parametrize("has_parts", [True, False])
def test_predicts_a_set_that_was_left_out(has_parts: bool) -> None:
    sets = [
        make_samples(name, width, noise=0.02, has_parts=has_parts)
        for name, width in (("llama-3-8b", 1), ("llama-3-70b", 4), ("qwen3-32b", 2))
    ]
    fitted = fit(sets, GPU, replace(make_truth(), efficiency=START))
    for entry in left_out_errors(sets, GPU, fitted):
        assert entry.is_left_out
        assert np.median(entry.errors) < 0.04


def test_an_outlier_hardly_moves_the_fit() -> None:
    clean = make_samples("llama-3-8b")
    spoilt = replace(
        clean, times_s=np.where(np.arange(len(clean.times_s)) == 2, 10, 1) * clean.times_s
    )
    fitted = fit([spoilt], GPU, replace(make_truth(), efficiency=START))
    errors = prediction_errors(clean, GPU, fitted, is_left_out=False).errors
    assert np.median(errors) < 0.05


def test_coefficients_that_no_sample_tells_stay() -> None:
    start = replace(make_truth(), efficiency=START)
    fitted = fit([make_samples("llama-3-8b")], GPU, start).efficiency
    assert fitted.expert_compute_frac == START.expert_compute_frac
    assert fitted.eight_bit_memory_frac == START.eight_bit_memory_frac
    assert fitted.mixed_tile_rows == START.mixed_tile_rows


def test_error_table_has_sets_and_pools() -> None:
    sets = [make_samples("llama-3-8b"), make_samples("llama-3-70b", 4)]
    rows = error_rows(
        prediction_errors(entry, GPU, make_truth(), is_left_out=False) for entry in sets
    )
    assert {row.model for row in rows} == {"llama-3-8b", "llama-3-70b", "dense", "all"}
    assert {row.phase for row in rows} == {phase.label for phase in Phase}
    assert max(row.p95_frac for row in rows) < 1e-9


def test_needs_samples() -> None:
    with pytest.raises(ValueError, match="fit needs at least one measured iteration"):
        fit([], GPU, make_truth())


def write_run(path: Path, samples: IterationSamples, extra_s: float) -> Path:
    """A recorded run of an engine that takes `extra_s` more in each iteration."""
    lines = ["prefill_tokens,prefill_start_tokens,decode_seqs,decode_context_tokens,time_s"]
    for batch, time_s in zip(samples.batches, samples.times_s, strict=True):
        lines.append(f"{batch[0]:.0f},0,{batch[2]:.0f},{batch[3]:.0f},{time_s + extra_s:.9f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_recorded_run_finds_the_engine_overhead(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.csv", make_samples("llama-3-8b"), 3e-3)
    samples = live_samples(path, model("llama-3-8b"), 1, Precision.BF16)
    start = with_run_prior(GPU, path.name)
    assert start.sources[-1] == "refitted on the recorded run run.csv"
    before = prediction_errors(samples, GPU, start, is_left_out=False).errors
    fitted = calibrated([samples], GPU, start)
    after = prediction_errors(samples, GPU, fitted, is_left_out=False).errors
    assert np.median(after) < 0.04 < np.median(before)
    assert fitted.errors


def test_stalls_are_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.csv", make_samples("llama-3-8b"), 0.0)
    with path.open("a", encoding="utf-8") as file:
        file.write("0,0,1,128,2.0\n")
    samples = live_samples(path, model("llama-3-8b"), 1, Precision.BF16)
    assert samples.times_s.max() < 2.0


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1,0,0,0,0", r"line 2: time_s must be above 0, got 0"),
        ("-1,0,1,0,0.1", r"line 2: prefill_tokens must be at least 0, got -1"),
        ("0,0,0,0,0.1", r"line 2: an iteration without tokens"),
        ("1,0,0,0,0.1", r"has 1 iterations; a fit needs at least 20"),
        ("1,0,0,0,x", r"text where a number belongs"),
    ],
)
def test_faults_of_a_recorded_run(line: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    header = "prefill_tokens,prefill_start_tokens,decode_seqs,decode_context_tokens,time_s"
    path.write_text(f"{header}\n{line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=text):
        live_samples(path, model("llama-3-8b"), 1, Precision.BF16)


def test_a_recorded_run_without_a_column(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("prefill_token,decode_seqs\n1,2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no column 'prefill_tokens'; rename 'prefill_token'"):
        live_samples(path, model("llama-3-8b"), 1, Precision.BF16)

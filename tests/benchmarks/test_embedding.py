"""The embedding's benchmark: its runs, its splits, and probes of vectors whose worth is known."""

from pathlib import Path

import numpy as np
import pytest
from loading import load

from trimtab.env.scenario import Part
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.raw_vectors import summary_names

embedding, runs = load("embedding"), load("embedding_probe.runs")
vectors, kept = load("embedding_probe.vectors"), load("embedding_probe.survival")


def make_recorded(num_runs: int = 12, num_windows: int = 12):
    """Return runs whose violations are linear in summary 0; the embedding holds that and noise."""
    rng = np.random.default_rng(0)
    run = np.repeat(np.arange(num_runs), num_windows)
    window = np.tile(np.arange(num_windows), num_runs)
    summaries = rng.standard_normal((len(run), len(summary_names())))
    fleet = 0.3 + 0.1 * summaries[:, 0]
    noise = rng.standard_normal((len(run), 3))
    is_unseen = run >= 8
    return vectors.Recorded(
        flat=summaries[:, :50].astype(np.float16),
        summaries=summaries,
        embeddings={
            "blind": noise,
            "seeing": np.column_stack([2.0 * summaries[:, 0] + 1.0, noise]),
        },
        fleet=fleet,
        tenants=np.column_stack([fleet, noise[:, 0]]),
        run=run,
        is_fit=~is_unseen & (window < 8),
        is_unseen=is_unseen,
    )


def test_probes_tell_a_good_embedding_from_a_blind_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.graph_encoder.linear_probe.NUM_RESAMPLES", 50)
    found = embedding.probe_all(make_recorded())
    for test in ("unseen runs", "later windows"):
        assert found["seeing"][test]["r2"] > 0.99
        assert found["seeing"][test]["auc_above_median"] > 0.99
        assert found["seeing"][test]["r2_of_best_raw"] >= 0.99
        assert found["blind"][test]["r2"] < 0.2
        assert found["raw state, end to end"][test]["r2_of_best_raw"] <= 1.0


def test_survival_names_what_is_kept_and_what_is_lost() -> None:
    recorded = make_recorded()
    found = kept.survival(recorded)["seeing"]
    first, second = summary_names()[:2]
    assert found[first] > 0.99
    assert found[second] < 0.1
    assert {name.rsplit(".", 1)[1] for name in found} == {"mean", "spread", "most"}


def test_draws_a_picture(tmp_path: Path) -> None:
    names = [f"{kind}.mean" for kind in ("gpu.power_frac", "replica.late_frac")]
    path = tmp_path / "kept.png"
    kept.draw_survival({"one": dict.fromkeys(names, 0.5), "two": dict.fromkeys(names, 0.9)}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_runs_of_both_parts_share_no_seed() -> None:
    seeds = runs.Runs(num_fit_runs=3, num_test_runs=2).seeds
    assert [part for part, _ in seeds] == [Part.TRAIN] * 3 + [Part.TEST] * 2
    assert len({seed for _, seed in seeds}) == 5
    assert runs.Runs().num_gpus == 4096
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        runs.Runs(num_servers=12)


def test_records_encodes_and_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "fleet_saturation_rps", lambda cluster: 60.0)
    few = runs.Runs(num_servers=8, num_fit_runs=1, num_test_runs=1, num_windows=3)
    encoders = {"untrained": AttentionEncoder()}
    first = vectors.joined([part for _, part in vectors.record(few, encoders, tmp_path)])
    assert len(list(tmp_path.iterdir())) == 2
    again = vectors.joined([part for _, part in vectors.record(few, encoders, tmp_path)])
    assert first.is_fit.tolist() == [True, True, False, False, False, False]
    assert first.is_later.tolist() == [False, False, True, False, False, False]
    assert first.is_unseen.tolist() == [False, False, False, True, True, True]
    assert first.embeddings["untrained"].shape == (6, 512)
    assert first.requests_only.shape[1] < first.summaries.shape[1]
    for name in ("flat", "summaries", "fleet"):
        assert np.allclose(getattr(first, name), getattr(again, name), atol=1e-3), name

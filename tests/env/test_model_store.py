"""Models in versions: written once, found by name, used by clusters and simulator at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from model_files import make_cluster_text, make_text

from trimtab.env.cluster_file import load_cluster
from trimtab.env.model_changes import changes
from trimtab.env.model_file import load_model
from trimtab.env.model_profile import MODELS
from trimtab.env.model_store import ModelStore, Outcome, default_store, is_shadowed
from trimtab.env.model_version import is_named, next_version, split_key, version_order, version_text
from trimtab.env.simulator.served_models import model_of_names
from trimtab.traces.atomic import write_new_file
from trimtab.traces.errors import ConfigError


def test_versions_are_sorted_as_numbers() -> None:
    given = ["10", "2", "2.0.1", "1.4"]
    assert sorted(given, key=version_order) == ["1.4", "2", "2.0.1", "10"]
    assert [version_text(each) for each in (2, "2.0", "2.0.0", "1.4.0", 0)] == [
        "2",
        "2",
        "2",
        "1.4",
        "0",
    ]
    assert (next_version(["1.4", "2"]), next_version([])) == ("3", "1")
    assert split_key("own@2.0") == ("own", "2")
    assert split_key("own") == ("own", None)
    assert [is_named("own@2", name) for name in ("own", "own@2.0", "own@1", "other")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"in its shortest form, got '2\.0'"):
        replace(MODELS["llama-3-8b"], version="2.0")
    for wrong in ("01", "1.2.3.4", "", "2a", "٢", True, None, 10**9, -1, 1.5):
        with pytest.raises(ValueError, match="must be a whole number, or up to three"):
            version_text(wrong)


def test_a_version_is_written_once(model_store: ModelStore) -> None:
    first = model_store.add(make_text(version=1))
    assert (first.outcome, first.profile and first.profile.key) == (Outcome.CREATED, "own@1")
    before = model_store.text("own@1")
    again = model_store.add("# the same, said otherwise\n" + make_text(version="1.0.0"))
    assert again.outcome is Outcome.IDENTICAL
    other = model_store.add(make_text(version=1, activation_bytes_per_token=50_000))
    assert other.outcome is Outcome.CONFLICT
    (fault,) = other.faults
    assert fault.text == (
        "1 is there with other content (activation_bytes_per_token: 0 -> 50,000); choose a newer "
        "version"
    )
    assert model_store.text("own@1") == before
    assert [path.name for path in (model_store.directory / "own").iterdir()] == ["1.yaml"]


def test_files_without_a_version_are_numbered(model_store: ModelStore) -> None:
    keys = [
        model_store.add(text).profile.key  # type: ignore[union-attr]
        for text in (
            make_text(),
            make_text(),
            make_text(version="1.5"),
            make_text(source="measured"),
            make_text(),
        )
    ]
    assert keys == ["own@1", "own@1", "own@1.5", "own@2", "own@3"]
    assert model_store.versions("own") == ("1", "1.5", "2", "3")
    assert model_store.names() == ("own",)
    assert model_store.read("own").version == "3"
    assert model_store.read("own@1.5.0").version == "1.5"


def test_faults_and_names_that_are_no_directory(model_store: ModelStore) -> None:
    refused = model_store.add(make_text(vocab_size=1))
    assert (refused.outcome, refused.faults[0].key) == (Outcome.REFUSED, "vocab_size")
    for name in ("a/b", "..", "../up", ".hidden", "x" * 101, "own model"):
        refused = model_store.add(make_text(name=name))
        assert (refused.outcome, refused.faults[0].key) == (Outcome.REFUSED, "name")
        assert model_store.versions(name) == ()
    assert not model_store.directory.exists()
    with pytest.raises(ConfigError, match="has no such model: unknown model 'own@7'"):
        model_store.read("own@7")


def test_writers_at_the_same_time(model_store: ModelStore) -> None:
    """Each content becomes one version; of one version there is one content."""
    texts = [make_text(source=f"writer {i % 4}") for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(model_store.add, texts))
    assert {each.outcome for each in done} <= {Outcome.CREATED, Outcome.IDENTICAL}
    for text, each in zip(texts, done, strict=True):
        assert each.profile is not None
        assert model_store.read(each.profile.key) == each.profile
        assert each.profile.source in text
    with ThreadPoolExecutor(8) as pool:
        fixed = list(
            pool.map(lambda i: model_store.add(make_text(version=99, source=str(i))), range(8))
        )
    assert [each.outcome for each in fixed].count(Outcome.CREATED) == 1
    assert [each.outcome for each in fixed].count(Outcome.CONFLICT) == 7
    left = {path.suffix for path in (model_store.directory / "own").iterdir()}
    assert left == {".yaml"}


def test_a_new_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "file"
    assert write_new_file(target, b"one")
    assert not write_new_file(target, b"two")
    assert target.read_bytes() == b"one"

    def fail(*_: object) -> None:
        msg = "no space left"
        raise OSError(msg)

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_new_file(tmp_path / "deep" / "other", b"two")
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_history_and_difference_in_words(model_store: ModelStore) -> None:
    model_store.add(make_text(version=1))
    model_store.add(
        make_text(
            version=2,
            total_params=7_241_732_096,
            kv_bytes_per_token=65_536,
            recommended_batch={"min": 4, "max": 64},
            precisions=["bf16", "fp8"],
        )
    )
    first, second = model_store.history("own")
    assert first.changes == ()
    assert second.changes == (
        "total_params: 8,030,261,248 -> 7,241,732,096 (-9.82 %)",
        "kv_bytes_per_token: none -> 65536",
        "recommended_batch: none -> 4 to 64",
        "precisions: none -> bf16, fp8",
        "weights in 16 bits: 16.06 -> 14.48 GB (-9.82 %)",
        "KV of a token: 128 -> 64 KiB (-50 %)",
    )
    assert model_store.difference("own@1", "own") == second.changes
    assert changes(first.profile, first.profile) == ()


def test_names_mean_the_newest_version(model_store: ModelStore) -> None:
    model_store.add(make_text(version=1))
    assert load_model("own").key == "own@1"
    model_store.add(make_text(version=2, source="better"))
    assert load_model("own").key == "own@2"
    assert load_model("own@1").source == ""
    assert {"own@1", "own@2"} <= set(MODELS)
    assert "own" not in MODELS
    with pytest.raises(ConfigError, match=r"unknown model 'own@3'; did you mean 'own@[12]'"):
        load_model("own@3")
    with pytest.raises(ConfigError, match="unknown model 'owm'; did you mean 'own'"):
        load_model("owm")
    assert default_store().directory == model_store.directory


def test_a_shipped_name_stays_what_it_was(model_store: ModelStore) -> None:
    done = model_store.add(make_text(name="llama-3-8b", activation_bytes_per_token=60_000))
    assert done.profile is not None
    assert is_shadowed(done.profile)
    assert load_model("llama-3-8b").activation_bytes_per_token == 0
    assert load_model("llama-3-8b@1").activation_bytes_per_token == 60_000


def test_clusters_may_name_models_of_bundled_files(model_store: ModelStore, tmp_path: Path) -> None:
    model_store.add(make_text(name="mistral-7b", version=1))
    path = tmp_path / "cluster.yaml"
    path.write_text(make_cluster_text("mistral-7b"))
    cluster = load_cluster(path)
    assert cluster.model_of(cluster.replicas[0]) == load_model("mistral-7b")
    assert MODELS["mistral-7b"].window_tokens == 4096


def test_a_cluster_is_pinned_when_it_is_read(model_store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(make_cluster_text("own"))
    with pytest.raises(ConfigError, match=r"replicas\[0\].model: unknown model 'own'"):
        load_cluster(path)
    model_store.add(make_text(version=1))
    older = load_cluster(path)
    model_store.add(make_text(version=2, activation_bytes_per_token=100_000))
    newer = load_cluster(path)
    assert [c.replicas[0].model for c in (older, newer)] == ["own@1", "own@2"]
    assert older.model_of(older.replicas[0]).activation_bytes_per_token == 0
    path.write_text(make_cluster_text("own@1"))
    assert load_cluster(path).replicas[0] == older.replicas[0]
    # a cluster's own file says which version its bare name means
    (tmp_path / "own.yaml").write_text(make_text(version=1))
    path.write_text(make_cluster_text("own") + "models: [own.yaml]\n")
    assert load_cluster(path).replicas[0].model == "own@1"
    (tmp_path / "own.yaml").write_text(make_text(version=1, source="other"))
    with pytest.raises(
        ConfigError, match="names model 'own@1', which the catalogue has with other"
    ):
        load_cluster(path)
    conflict = model_store.add(make_text(version=1, source="other"))
    assert conflict.outcome is Outcome.CONFLICT


def test_what_a_profile_forbids_and_advises(
    model_store: ModelStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_store.add(
        make_text(
            version=1,
            precisions=["bf16"],
            recommended_batch={"min": 8, "max": 64},
            activation_bytes_per_token=800_000,
        )
    )
    path = tmp_path / "cluster.yaml"
    path.write_text(make_cluster_text("own", max_num_seqs=64))
    load_cluster(path)
    assert caplog.text == ""
    path.write_text(make_cluster_text("own", max_num_seqs=128))
    load_cluster(path)
    assert "replicas of 'own@1' have max_num_seqs 128, its makers recommend 8 to 64" in caplog.text
    for settings, text in (
        (
            {"precision": "fp8"},
            "precision: model 'own@1' is not had in 'fp8'; expected one of bf16",
        ),
        (
            {"max_batch_tokens": 80_000},
            "16.1 GB of bf16 weights and 64.0 GB of activations does not",
        ),
    ):
        path.write_text(make_cluster_text("own", **settings))
        with pytest.raises(ConfigError, match=text):
            load_cluster(path)


def test_a_trace_names_models_with_or_without_version() -> None:
    served = ["own@2", "other", "own@10"]
    places = model_of_names(["own", "own@2", "other", "own@10"], served, "made")
    assert places.tolist() == [2, 0, 1, 2]
    with pytest.raises(ValueError, match="unknown model 'own@3'"):
        model_of_names(["own@3"], served, "made")


def test_a_damaged_store_is_named(model_store: ModelStore) -> None:
    model_store.add(make_text(version=1))
    path = model_store.directory / "own" / "1.yaml"
    path.write_text("name: own")
    with pytest.raises(ConfigError, match=rf"model '{path}' has \d+ fault"):
        load_model("own")
    (path.parent / "readme.yaml").write_text("")
    (path.parent / "1x.yaml").write_text("")
    assert model_store.model_keys() == ("own@1",)

"""Model files: a model of one's own, and every fault named."""

from pathlib import Path

import pytest

from trimtab.env.hardware import Precision
from trimtab.env.model_file import bundled_model_files, load_model, read_model
from trimtab.env.model_profile import MODELS
from trimtab.env.model_shape import AttentionKind
from trimtab.traces.errors import ConfigError

SIZES = """
name: {name}
num_layers: 2
hidden_size: 256
num_heads: 4
num_kv_heads: 2
head_dim: 64
vocab_size: 1000
has_tied_embeddings: false
total_params: 1_500_000
"""


def write(path: Path, *, name: str = "own", extra: str = "") -> Path:
    path.write_text(SIZES.format(name=name) + extra, encoding="utf-8")
    return path


def test_the_example_is_a_model() -> None:
    assert bundled_model_files() == ("mistral-7b",)
    profile = read_model("mistral-7b")
    assert profile.attention is AttentionKind.SLIDING
    assert profile.window_tokens == 4096
    assert profile.mlp_width == 14336
    assert profile.weight_bytes(Precision.BF16) / 1e9 == pytest.approx(14.48, abs=0.01)


def test_a_file_adds_to_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(MODELS, "own", raising=False)
    path = write(tmp_path / "own.yaml")
    profile = load_model(path)
    assert MODELS["own"] is profile
    assert load_model("own") is profile
    # reading it again changes nothing; other sizes under the same name are refused
    load_model(path)
    write(path, extra="experts_per_token: 0\n")
    load_model(path)
    path.write_text(path.read_text().replace("1_500_000", "1_600_000"), encoding="utf-8")
    with pytest.raises(ConfigError, match="names model 'own', which the catalogue has with other"):
        load_model(path)
    del MODELS["own"]


def test_a_latent_model(tmp_path: Path) -> None:
    latent = "{query_rank: 0, kv_rank: 64, rope_dim: 16, nope_dim: 32, value_dim: 32}"
    extra = f"attention: mla\nlatent: {latent}\n"
    profile = read_model(write(tmp_path / "latent.yaml", extra=extra))
    assert profile.kv_bytes_per_token(Precision.BF16) == 2 * 80 * 2


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("num_layer: 3\n", "num_layer: unknown key with value 3; did you mean 'num_layers'"),
        ("attention: linear\n", r"attention: .*'full', 'gqa', 'mla' or 'sliding', got 'linear'"),
        ("window_tokens: 0\n", r"window_tokens: .*greater than or equal to 1, got 0"),
        ("window_tokens: 64\n", "window_tokens belongs to sliding attention, got 64"),
        ("attention: mla\n", "latent belongs to mla attention, got None"),
        ("latent: {kv_rank: 1}\n", r"latent.rope_dim: key is missing"),
        ("num_experts: 8\n", r"num_experts, experts_per_token must be all 0"),
    ],
)
def test_faults(extra: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        read_model(write(tmp_path / "bad.yaml", extra=extra))


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'mistral-7'; did you mean 'mistral-7b'"):
        load_model("mistral-7")

"""`trimtab model`: check, add, list, show, history and diff, with one line for each fault."""

from pathlib import Path

import pytest
from model_files import make_text
from typer.testing import CliRunner, Result

from trimtab.env.model_store import ModelStore
from trimtab.scripts.cli import app


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["model", *(str(arg) for arg in args)])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(make_text(source="config.json"))
    return path


def test_add_list_history_and_diff(own: Path, model_store: ModelStore) -> None:
    assert run("add", own).stdout == "own@1: added\n"
    assert run("add", own).stdout == "own@1: there already, the same\n"
    own.write_text(make_text(source="config.json", activation_bytes_per_token=40_000))
    assert run("add", own).stdout == "own@2: added\n"
    assert run("list").stdout.startswith("own: 1, 2\nwith the package: llama-3.2-1b, ")
    lines = run("history", "own").stdout.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["own@1", "own@2"]
    change = "activation_bytes_per_token: 0 -> 40,000"
    assert lines[2] == f"  {change}"
    assert run("diff", "own@1", "own").stdout == f"{change}\n"
    assert run("diff", "own", "own@2").stdout == "no difference\n"


def test_a_store_of_ones_own(own: Path, model_store: ModelStore, tmp_path: Path) -> None:
    elsewhere = ("--store", tmp_path / "elsewhere")
    assert run("add", own, *elsewhere).exit_code == 0
    assert run("list", *elsewhere).stdout.startswith("own: 1\n")
    assert run("show", "own@1", *elsewhere).stdout.startswith("own@1\n")
    assert run("list").stdout.startswith("with the package: ")


def test_show_says_what_a_model_comes_to(model_store: ModelStore) -> None:
    shown = run("show", "llama-3-8b").stdout
    assert "parameters: 8.03 B\n" in shown
    assert "weights: 16.1 GB in bf16, 8.0 GB in fp8" in shown
    assert "KV: 131,072 bytes a token in pages; a sequence keeps 134 MB at 1k" in shown
    assert "GFLOPs a token: 13.96, and attention 0.54 at 1k" in shown
    # 0.9 x 80 GiB - 3.5 GiB - 16.06 GB of weights hold 27,413 pages of 2 MiB
    (row, _) = [line.split() for line in shown.splitlines() if line.startswith("H100-80G")]
    assert row == ["H100-80G", "bf16", "1", "438,608"]
    giant = run("show", "deepseek-v3").stdout
    assert "671.03 B, 37.55 B of them for each token" in giant
    # 1,342 GB in 16 bits fit no eight of 80 GB
    assert "H100-80G" not in giant


def test_check_names_faults_with_their_lines(own: Path) -> None:
    assert run("check", own).stdout.startswith(f"{own}: own, no faults\n  parameters: 8.03 B")
    own.write_text(make_text(num_kv_heads=5, vocab_size=1))
    result = run("check", own)
    assert result.exit_code == 2
    assert "has 2 fault(s)" in result.stderr
    assert "- line 5: num_kv_heads: num_heads must be a multiple of num_kv_heads" in result.stderr
    assert "- line 7: vocab_size: expected 250 to 4,000,000 rows, got 1" in result.stderr


def test_what_cannot_be_added(own: Path, model_store: ModelStore) -> None:
    own.write_text(make_text(version=1))
    run("add", own)
    own.write_text(make_text(version=1, source="other"))
    result = run("add", own)
    assert result.exit_code == 2
    assert "version: 1 is there with other content (source: none -> other)" in result.stderr
    assert "unknown model 'owl'; did you mean 'own'" in run("show", "owl").stderr
    assert "give the path of a YAML file" in run("check", own.parent / "none.yaml").stderr


def test_serve_wants_a_token_and_loopback(
    model_store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIMTAB_MODEL_TOKEN", raising=False)
    assert "$TRIMTAB_MODEL_TOKEN is not set" in run("serve").stderr
    monkeypatch.setenv("TRIMTAB_MODEL_TOKEN", "a-token-of-24-characters")
    assert "must be a loopback address" in run("serve", "--host", "0.0.0.0").stderr
    monkeypatch.setenv("TRIMTAB_MODEL_TOKEN", "short")
    assert "at least 16 printable ASCII characters" in run("serve").stderr

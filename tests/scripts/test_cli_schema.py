"""`trimtab schema`: what it prints for each kind, and that the page about files is its output."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

import trimtab
from trimtab.env.cluster_file import load_cluster
from trimtab.env.file_kinds import schema_of
from trimtab.env.state.edges import Edge
from trimtab.env.state.registry import FEATURES
from trimtab.scripts.cli import app
from trimtab.scripts.file_kind_table import KINDS

PAGE = Path(trimtab.__file__).parent / "docs" / "files.md"
STATE_PAGE = PAGE.with_name("state.md")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["schema", *(str(arg) for arg in args)])


@pytest.mark.parametrize("kind", KINDS)
def test_prints_the_schema(kind: str) -> None:
    result = run(kind)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == schema_of(kind, KINDS)


def test_example_can_be_written_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(run("cluster", "--example").stdout)
    assert load_cluster(path).name == yaml.safe_load(path.read_text())["name"] == "example"


def test_without_a_kind_names_them() -> None:
    lines = run().stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(KINDS)


@pytest.mark.skipif(not PAGE.exists(), reason="the installed package has no docs")
def test_page_is_what_the_command_prints() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == run("--markdown").stdout, "run: trimtab schema --markdown > docs/files.md"


@pytest.mark.skipif(not STATE_PAGE.exists(), reason="the installed package has no docs")
def test_page_about_the_state_is_what_the_command_prints() -> None:
    text = STATE_PAGE.read_text(encoding="utf-8")
    expected = run("state", "--markdown").stdout
    assert text == expected, "run: trimtab schema state --markdown > docs/state.md"
    for feature in FEATURES:
        assert f"| `{feature.name}` | {feature.unit} | " in text
    assert all(f"| `{edge}` | " in text for edge in Edge)


def test_features_of_the_state_as_records() -> None:
    records = json.loads(run("state").stdout)
    assert [(r["node"], r["name"]) for r in records] == [(f.node, f.name) for f in FEATURES]
    by_name = {(r["node"], r["name"]): r for r in records}
    assert by_name["gpu", "xid_errors"]["simulator"] is None
    assert by_name["gpu", "hbm_bytes"]["scaled"] == "(log10(x) - 10.9) / 0.3"
    assert by_name["replica", "kv_fragmentation_frac"]["live"] == {}


def test_section_of_one_kind() -> None:
    text = run("cluster", "--markdown").stdout
    assert text.startswith("## Cluster files\n")
    assert "| `max_num_seqs` | whole number, at least 1 | `256` | Most sequences in a" in text
    assert "| `precision` | one of `fp16`, `bf16`," in text
    assert "| `server` | text | needed |" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("clutser",), "unknown file kind 'clutser'; did you mean 'cluster'?"),
        (("--example",), "--example needs a kind of file; name one of cluster"),
        (("state", "--example"), "--example needs a kind of file, 'state' is none"),
        (("cluster", "--example", "--markdown"), "cannot both be printed; leave one out"),
    ],
)
def test_errors(args: tuple[str, ...], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr

"""`trimtab policy check`."""

import json

import pytest
from typer.testing import CliRunner

from trimtab.scripts.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, ["policy", "check", *arguments])


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(
        """\
pools:
  - {name: vip, gpus: [H100-80G], is_exclusive: true}
tiers:
  - {name: gold, pools: [vip]}
tenants:
  - {name: azure-conv, tier: gold}
""",
        encoding="utf-8",
    )
    return path


def test_every_rule_in_a_sentence(rules):
    result = run(str(rules), "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    sentences = {rule["name"]: rule["sentence"] for rule in content["rules"]}
    assert sentences["gold"] == "Tier 'gold' is interactive, uses pool 'vip' only."
    assert {"shed", "engine_page"} <= set(sentences)
    assert "replay" not in content


def test_the_default_rules_and_the_table():
    result = run("default")
    assert result.exit_code == 0, result.output
    assert "memory-pressure" in result.output


def test_what_they_would_have_done_on_a_trace(rules):
    result = run(str(rules), "--trace", "azure", "--span", "20", "--json", "--faults", "none")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)["replay"]
    impacts = {one["name"]: one for one in content["impacts"]}
    assert impacts["azure-conv"]["num_requests"] > 20
    assert impacts["vip"]["num_changed"] > 0
    assert set(content["before"]) == set(content["after"])
    table = run(str(rules), "--trace", "azure", "--span", "20", "--faults", "none")
    assert "without the rules" in " ".join(table.output.split())
    assert "with the rules" in table.output


def test_faults_end_with_their_lines(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("tiers:\n  - {name: gold, pols: []}\n", encoding="utf-8")
    result = run(str(path))
    assert result.exit_code == 2
    assert "line 2" in result.output
    assert "did you mean 'pools'?" in result.output


def test_what_a_cluster_cannot_keep_is_refused(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("pools:\n  - {name: far, zones: [moon]}\n", encoding="utf-8")
    assert run(str(path)).exit_code == 0
    result = run(str(path), "--cluster", "demo-16")
    assert result.exit_code == 2
    assert "unknown zone 'moon'" in result.output


def test_faults_as_json(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("tiers:\n  - {name: gold, pols: []}\n  - {name: 3}\n", encoding="utf-8")
    result = run(str(path), "--json")
    assert result.exit_code == 2
    first, second = json.loads(result.stdout)["faults"]
    assert first.startswith(f"{path} line 2: tiers[0].pols: unknown key")
    assert second.startswith(f"{path} line 3: tiers[1].name")


def test_what_rules_touch_without_a_run(rules):
    trace = ("--trace", "azure-conv", "--cluster", "demo-16", "--count-only")
    result = run(str(rules), *trace, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert "replay" not in content
    touched = {one["name"]: one for one in content["reach"]["rules"]}
    total = content["reach"]["num_requests"]
    assert touched["vip"]["num_requests"] == total > 100
    assert touched["azure-conv"]["num_requests"] in (0, total)
    text = run(str(rules), *trace).output
    assert "replicas" in text
    assert "whole trace" in text

from pathlib import Path

import pytest
from typer.testing import CliRunner

from trimtab.env.sites import Split, sample_site
from trimtab.env.sites.site_file import load_sites
from trimtab.scripts.cli import app

RUNNER = CliRunner()


def run(*arguments: str, code: int = 0) -> str:
    result = RUNNER.invoke(app, ["sites", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_sample_writes_the_sites_of_a_split(tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    said = run("sample", "--split", "test", "--count", "3", "--first", "5", "--out", str(path))
    assert f"wrote 3 sites to {path}" in said.replace("\n", "")
    assert load_sites(path) == [sample_site(Split.TEST, number, None) for number in (5, 6, 7)]


def test_sample_prints_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(run("sample", "--count", "2", "--changing"))
    assert all(site.is_changing for site in load_sites(path))


def test_show_tells_what_is_at_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    site = sample_site(Split.VALIDATION, 2, None, is_changing=True)
    shown = run("show", "2", "--split", "validation", "--changing", "--no-rate")
    assert f"{site.num_replicas} replicas of {site.model}" in shown
    assert f"TTFT {1e3 * site.ttft_slo_s[0]:.0f} ms" in shown
    for word in ("validation/2, changing", site.traffic.shape, "of capacity", "regimes", "load "):
        assert word in shown
    assert "requests/s" not in shown


def test_show_finds_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "requests/s" in run("show", "7", "--steady")


def test_show_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    run("sample", "--count", "2", "--out", str(path))
    assert "train/1, " in run("show", "1", "--file", str(path), "--no-rate")
    said = run("show", "4", "--file", str(path), "--no-rate", code=2)
    assert "no site train/4 in" in said
    assert "there are train/0, train/1" in said.replace("\n", "")


def test_a_directory_without_traces_is_a_fault(tmp_path: Path) -> None:
    said = run("sample", "--traces", str(tmp_path), code=2)
    assert "holds no recorded trace; expected any of" in said

from pathlib import Path

import pytest
from site_makers import make_site

from trimtab.env.sites import Split, sample_site
from trimtab.env.sites.site_file import load_sites, save_sites, sites_yaml
from trimtab.traces.errors import ConfigError


def test_sites_are_read_as_they_were_written(tmp_path: Path) -> None:
    sites = [sample_site(split, number, None) for split in Split for number in range(4)]
    save_sites(tmp_path / "sites.yaml", sites)
    assert load_sites(tmp_path / "sites.yaml") == sites


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ("kv_frac: 1.0", "kv_frac: much", r"sites\[0\]\.kv_frac: .*got 'much'"),
        ("kv_frac: 1.0", "kv_frac: 7.0", r"kv_frac must be in \[0, 1\], got 7\.0"),
        ("split: train", "split: exam", r"sites\[0\]\.split: .*got 'exam'"),
        ("number: 0", "number: 0\n  colour: red", r"sites\[0\]\.colour: .*got 'red'"),
        ("gpu: A100-80G", "gpu: A1000", r"unknown GPU 'A1000'"),
        ("sites:", "places:", "must hold one key 'sites'"),
    ],
)
def test_faults_of_a_file_are_told(tmp_path: Path, before: str, after: str, match: str) -> None:
    text = sites_yaml([make_site()])
    assert before in text
    path = tmp_path / "sites.yaml"
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError, match=match):
        load_sites(path)

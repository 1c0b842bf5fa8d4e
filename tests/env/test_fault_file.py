"""Fault files: bundled profiles, round trips, and all faults of a file at once."""

from pathlib import Path

import pytest

from trimtab.env.fault_file import bundled_fault_names, groups, load_faults
from trimtab.env.scenario import TROUBLED
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.faults.config import Metrics
from trimtab.traces.errors import ConfigError

BUNDLED = ("fleet", "gpu", "mild", "none", "spot", "troubled")


def written(directory: Path, text: str) -> Path:
    path = directory / "faults.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_bundled_profiles_load_and_say_what_they_are():
    assert bundled_fault_names() == BUNDLED
    assert load_faults("none") == FaultConfig()
    assert load_faults("troubled") == TROUBLED.faults
    for name in ("fleet", "gpu", "mild", "spot"):
        assert load_faults(name) != FaultConfig()
    assert load_faults("fleet").server_loss.per_hour * 8760 == pytest.approx(1.53, abs=0.01)


def test_keys_of_a_file_are_those_of_the_settings(tmp_path):
    path = written(
        tmp_path,
        "name: mine\ncrashes_per_hour: 2\nslowdown_factor: [1.5, 3]\n"
        "metrics: {delay_s: 0.3, queue_lie_factor: [0, 0.1]}\n",
    )
    assert load_faults(path) == FaultConfig(
        crashes_per_hour=2.0,
        slowdown_factor=(1.5, 3.0),
        metrics=Metrics(delay_s=0.3, queue_lie_factor=(0.0, 0.1)),
    )


def test_all_faults_of_a_file_are_reported_at_once(tmp_path):
    path = written(
        tmp_path,
        "name: mine\n"
        "crashs_per_hour: 2\n"
        "slowdown_factor: [3, 1]\n"
        "metrics: {delay: 0.3, outages_per_hour: -1}\n"
        "stalls: 7\n"
        "spot: {server_frac: 2, is_zone_wide: maybe}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_faults(path)
    first = str(caught.value)
    for text in (
        "crashs_per_hour: unknown key with value 2; did you mean 'crashes_per_hour'?",
        "slowdown_factor: must be a range (low, high) above 0, got [3, 1]",
    ):
        assert text in first
    path = written(
        tmp_path, path.read_text().replace("crashs", "crashes").replace("[3, 1]", "[1, 3]")
    )
    with pytest.raises(ConfigError) as caught:
        load_faults(path)
    message = str(caught.value)
    for text in (
        "has 5 fault(s)",
        "metrics.delay: unknown key with value 0.3; did you mean 'delay_s'?",
        "metrics.outages_per_hour: must be at least 0, got -1",
        "stalls: must be a mapping of per_hour, span_s, got 7",
        "spot.server_frac: must be in [0, 1], got 2",
        "spot.is_zone_wide: ",
    ):
        assert text in message


def test_unknown_profile_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown fault 'flet'; did you mean 'fleet'"):
        load_faults("flet")


def test_every_group_is_a_key():
    assert set(groups()) == {
        "drift", "links", "gpu_loss", "server_loss", "zone_loss", "spot", "stalls", "kv_failures",
        "metrics",
    }  # fmt: skip

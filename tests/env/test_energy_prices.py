"""Tariffs: steps in time, day curves, CSV series, and errors that say where."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED

from trimtab.env.energy_prices import (
    WORLD_AVERAGE,
    EnergyConfig,
    Tariff,
    bundled_tariff_names,
    fit_day_curve,
    load_tariff,
)
from trimtab.traces.errors import ConfigError

RECORD = SHARED / "traces/energy/carbon_price_hourly.csv.gz"
ZONES = ("au-nsw", "ca-on", "de-lu", "sg", "us-cal-ciso", "us-mida-pjm", "us-ny-nyis",
         "us-tex-erco")  # fmt: skip


def test_steps_repeat_and_changes_fall_on_their_starts():
    tariff = Tariff(name="t", price_usd_per_mwh=(1.0, 2.0, 3.0), carbon_g_per_kwh=(4.0, 5.0, 6.0))
    assert [tariff.at(hour * 3600.0) for hour in (0, 1.5, 3, 5)] == [(1, 4), (2, 5), (1, 4), (3, 6)]
    assert tariff.changes_s(0.0, 7200.0).tolist() == [3600.0, 7200.0]
    assert tariff.changes_s(3000.0, 3600.0).tolist() == [600.0]
    assert tariff.changes_s(3600.0, 10.0).size == 0


def test_bundled_tariffs_are_days_of_plausible_hours():
    assert bundled_tariff_names() == ZONES
    for name in ZONES:
        tariff = load_tariff(name)
        assert len(tariff.price_usd_per_mwh) == 24
        assert 20.0 < np.mean(tariff.price_usd_per_mwh) < 250.0
        assert 30.0 < np.mean(tariff.carbon_g_per_kwh) < 600.0
    means = [np.mean(load_tariff(name).price_usd_per_mwh) for name in ZONES]
    assert WORLD_AVERAGE.price_usd_per_mwh[0] == pytest.approx(np.mean(means), rel=0.02)


@pytest.mark.skipif(not RECORD.exists(), reason=f"no recorded prices at {RECORD}")
@pytest.mark.parametrize("zone", ["DE-LU", "US-TEX-ERCO"])
def test_bundled_day_curves_follow_the_record(zone):
    with gzip.open(RECORD, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["zone"] == zone]
    hour = np.array([int(row["datetime_utc"][11:13]) for row in rows])
    tariff = load_tariff(zone.lower())
    for key, column in (
        ("price_usd_per_mwh", "price_usd_per_mwh"),
        ("carbon_g_per_kwh", "ci_direct_g_per_kwh"),
    ):
        values = np.array([float(row[column]) for row in rows])
        means = np.bincount(hour, values) / np.bincount(hour)
        curve = np.array(getattr(tariff, key))
        assert curve.mean() == pytest.approx(values.mean(), rel=0.01)
        assert np.corrcoef(curve, means)[0, 1] > 0.8


def test_fit_finds_a_day_curve_again():
    hour = np.arange(48)
    angle = 2 * np.pi * (hour + 0.5) / 24
    values = 50.0 + 10.0 * np.cos(angle - 2 * np.pi * 18 / 24) + 4.0 * np.cos(2 * angle)
    assert fit_day_curve(hour, values) == {"mean": 50.0, "waves": [[10.0, 18.0], [4.0, 0.0]]}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_series_from_a_csv_file(tmp_path):
    path = written(
        tmp_path / "mine.csv", "hour,price_usd_per_mwh,carbon_g_per_kwh\n0,-5,100\n1,20.5,0\n"
    )
    tariff = load_tariff(path)
    assert tariff == Tariff(
        name="mine", price_usd_per_mwh=(-5.0, 20.5), carbon_g_per_kwh=(100.0, 0.0)
    )


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("hour,price\n0,1\n", [r"lacks column\(s\) price_usd_per_mwh, carbon_g_per_kwh; it has"]),
        ("price_usd_per_mwh,carbon_g_per_kwh\n", ["it has: no row"]),
        (
            "price_usd_per_mwh,carbon_g_per_kwh\n1,2\nx,-3\nnan,4\n",
            [
                r"has 3 fault\(s\)",
                "line 3: price_usd_per_mwh must be a number, got 'x'",
                "line 4: price_usd_per_mwh must be a number, got 'nan'",
                "line 3: carbon_g_per_kwh must be a number of at least 0, got '-3'",
            ],
        ),
    ],
)
def test_faults_of_a_csv_file_name_line_column_and_value(tmp_path, text, messages):
    path = written(tmp_path / "mine.csv", text)
    for message in messages:
        with pytest.raises(ConfigError, match=message):
            load_tariff(path)


def test_faults_of_a_tariff_file_are_reported_at_once(tmp_path):
    path = written(
        tmp_path / "mine.yaml",
        "name: mine\nprice_usd_per_mwh: {mean: x, wave: []}\ncarbon_g_per_kwh: {waves: [[1]]}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_tariff(path)
    for text in (
        "price_usd_per_mwh.mean: ",
        "price_usd_per_mwh.wave: unknown key with value []; did you mean 'waves'?",
        "carbon_g_per_kwh.mean: key is missing",
        "carbon_g_per_kwh.waves.0",
    ):
        assert text in str(caught.value)
    with pytest.raises(ConfigError, match="unknown tariff 'de-lx'; did you mean 'de-lu'"):
        load_tariff("de-lx")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Tariff(name="t", price_usd_per_mwh=(1.0,), carbon_g_per_kwh=()),
            r"as many prices as carbon values expected, got \(1, 0\)",
        ),
        (
            lambda: Tariff(name="t", price_usd_per_mwh=(1.0,), carbon_g_per_kwh=(1.0,), step_s=0.0),
            "step_s must be above 0, got 0.0",
        ),
        (
            lambda: Tariff(name="t", price_usd_per_mwh=(1.0,), carbon_g_per_kwh=(-1.0,)),
            "carbon values at least 0",
        ),
        (lambda: EnergyConfig(start_s=-1.0), "start_s must be at least 0, got -1.0"),
    ],
)
def test_tariffs_name_key_and_value(make, text):
    with pytest.raises(ValueError, match=text):
        make()

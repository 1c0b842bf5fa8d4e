"""Price and carbon intensity of electricity over time, by zone: bundled, from a file, or constant.

The bundled tariffs are day curves (a mean and two harmonics), fitted on two years of hours; they
have the level and the daily shape of a market, and none of its spikes.

Does not know: how much energy is used.
Source: `env/data/tariffs/*.yaml` name theirs.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ..traces.errors import ConfigError
from .config_file import Entry, bundled_names, faults_message, file_path, read_yaml, validated

HOUR_S = 3600.0
# J in a kWh
JOULES_PER_KWH = 3.6e6
_PRICE, _CARBON = "price_usd_per_mwh", "carbon_g_per_kwh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """Steps of equal length; after the last comes the first again."""

    name: str
    """Zone or market."""
    price_usd_per_mwh: tuple[float, ...]
    """Price in each step; may be negative."""
    carbon_g_per_kwh: tuple[float, ...]
    """Carbon intensity in each step."""
    step_s: float = HOUR_S
    """Length of a step."""

    def __post_init__(self) -> None:
        if not self.price_usd_per_mwh or len(self.price_usd_per_mwh) != len(self.carbon_g_per_kwh):
            sizes = (len(self.price_usd_per_mwh), len(self.carbon_g_per_kwh))
            msg = f"tariff {self.name!r}: as many prices as carbon values expected, got {sizes}"
            raise ValueError(msg)
        if not self.step_s > 0:
            msg = f"tariff {self.name!r}: step_s must be above 0, got {self.step_s}"
            raise ValueError(msg)
        if not np.isfinite(self.price_usd_per_mwh).all() or min(self.carbon_g_per_kwh) < 0:
            msg = f"tariff {self.name!r}: prices must be finite and carbon values at least 0"
            raise ValueError(msg)

    def at(self, moment_s: float) -> tuple[float, float]:
        """Return (USD/MWh, g/kWh) at a moment after the start of the first step."""
        step = int(moment_s // self.step_s) % len(self.price_usd_per_mwh)
        return self.price_usd_per_mwh[step], self.carbon_g_per_kwh[step]

    def changes_s(self, start_s: float, span_s: float) -> np.ndarray:
        """Return when a step begins within a span that starts at `start_s`, from its start."""
        first = start_s // self.step_s + 1
        last = (start_s + span_s) // self.step_s
        return np.arange(first, last + 1) * self.step_s - start_s


# USD/MWh: rounded mean of the bundled zones' wholesale prices in 2022 and 2023; g/kWh: world mean
# of 2023, Ember, Global Electricity Review 2024
WORLD_AVERAGE = Tariff(name="world-average", price_usd_per_mwh=(100.0,), carbon_g_per_kwh=(480.0,))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyConfig:
    """What energy costs where."""

    tariff: Tariff = WORLD_AVERAGE
    """Of zones that `tariff_by_zone` does not name."""
    tariff_by_zone: Mapping[str, Tariff] = field(default_factory=dict)
    """By a cluster's zone names."""
    start_s: float = 0.0
    """Where in the tariffs the run begins, s after their start (UTC midnight for day curves)."""

    def __post_init__(self) -> None:
        if not 0 <= self.start_s < float("inf"):
            msg = f"start_s must be at least 0, got {self.start_s}"
            raise ValueError(msg)

    def of_zone(self, zone: str) -> Tariff:
        """Return the tariff that holds in a zone."""
        return self.tariff_by_zone.get(zone, self.tariff)


_Wave = Annotated[tuple[float, float], Field(strict=False)]


class DayCurve(Entry):
    """Mean, and for one and two waves a day: size and hour (UTC) of the top."""

    mean: float = Field(allow_inf_nan=False)
    """Mean over a day."""
    waves: Annotated[tuple[_Wave, ...], Field(strict=False)] = ()
    """Size and hour (UTC) of the top, of one wave a day, then of two, and so on."""

    def hours(self) -> np.ndarray:
        """Value in the middle of each hour of a day, [24]."""
        hour = np.arange(24) + 0.5
        value = np.full(24, self.mean)
        for number, (size, top_hour) in enumerate(self.waves, start=1):
            value += size * np.cos(2.0 * np.pi * number * (hour - top_hour) / 24.0)
        return value


class TariffFile(Entry):
    """Content of a tariff file."""

    name: str = Field(min_length=1)
    """Zone or market."""
    source: str = ""
    """What the curves were fitted on."""
    price_usd_per_mwh: Any
    """Price over the day, USD/MWh; may fall below 0."""
    carbon_g_per_kwh: Any
    """Carbon intensity over the day, g/kWh; what falls below 0 is taken as 0."""


def fit_day_curve(hour_utc: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Return mean and two waves of a day, by least squares; what a tariff file holds."""
    angle = 2.0 * np.pi * (hour_utc + 0.5) / 24.0
    columns = [np.ones(angle.size)]
    for number in (1, 2):
        columns += [np.cos(number * angle), np.sin(number * angle)]
    mean, *parts = np.linalg.lstsq(np.stack(columns, axis=1), values, rcond=None)[0]
    waves = []
    for number, (cosine, sine) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1):
        top_hour = np.arctan2(sine, cosine) / (2.0 * np.pi * number) * 24.0 % (24.0 / number)
        waves.append([round(float(np.hypot(cosine, sine)), 1), round(float(top_hour), 2)])
    return {"mean": round(float(mean), 1), "waves": waves}


def load_tariff(path_or_name: str | Path) -> Tariff:
    """Read a tariff: a bundled one by its name, a YAML file of day curves, or a CSV series.

    Raises: `ConfigError` with every fault of the file.
    """
    if Path(path_or_name).suffix == ".csv":
        return read_tariff_csv(Path(path_or_name))
    path = file_path("tariff", path_or_name)
    faults: list[str] = []
    file = validated(TariffFile, read_yaml("tariff", path), "", faults)
    if file is not None:
        curves = [validated(DayCurve, getattr(file, key), key, faults) for key in (_PRICE, _CARBON)]
        if curves[0] is not None and curves[1] is not None:
            price, carbon = (curve.hours() for curve in curves if curve is not None)
            return Tariff(
                name=file.name,
                price_usd_per_mwh=tuple(price.tolist()),
                carbon_g_per_kwh=tuple(np.maximum(carbon, 0.0).tolist()),
            )
    raise ConfigError(faults_message("tariff", str(path), faults))


def bundled_tariff_names() -> tuple[str, ...]:
    """Names of the tariffs that come with the package."""
    return bundled_names("tariff")


def read_tariff_csv(path: Path, *, step_s: float = HOUR_S) -> Tariff:
    """Read a series from a CSV file with columns price_usd_per_mwh and carbon_g_per_kwh.

    One row a step, in order of time; other columns are left alone.

    Raises: `ConfigError` with every fault of the file: line, column and value.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"tariff file '{path}' cannot be read as CSV: {error}"
        raise ConfigError(msg) from error
    columns = list(rows[0]) if rows else []
    missing = [name for name in (_PRICE, _CARBON) if name not in columns]
    if missing:
        msg = (
            f"tariff file '{path}' lacks column(s) {', '.join(missing)}; it has: "
            f"{', '.join(columns) or 'no row'}"
        )
        raise ConfigError(msg)
    faults: list[str] = []
    price = _column(rows, _PRICE, -np.inf, faults)
    carbon = _column(rows, _CARBON, 0.0, faults)
    if faults:
        raise ConfigError(faults_message("tariff", str(path), faults))
    return Tariff(name=path.stem, price_usd_per_mwh=price, carbon_g_per_kwh=carbon, step_s=step_s)


def _column(
    rows: Sequence[Mapping[str, str]], name: str, least: float, faults: list[str]
) -> tuple[float, ...]:
    """Return a column's numbers; what is none, or too small, is appended to the faults."""
    values = []
    for line, row in enumerate(rows, start=2):
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = float("nan")
        if not (np.isfinite(value) and value >= least):
            wanted = "a number" if least < 0 else f"a number of at least {least:g}"
            faults.append(f"line {line}: {name} must be {wanted}, got {row[name]!r}")
        values.append(value)
    return tuple(values)

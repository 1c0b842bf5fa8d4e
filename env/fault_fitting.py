"""Fits losses of servers and of spot capacity on recorded ones.

Server faults: rate per server, repair times as quantiles, and bursts: the dispersion of daily
counts gives how likely a fault is to be followed by another, because a Poisson process of
bursts of geometric size with continuation p has the dispersion (1 + p) / (1 - p). Spot: spans up
and down of single nodes, the first and last of each series left out, because they are cut.

Does not know: how the processes are drawn (`simulator/faults/`), or where the data lie.
Source of the data: InfiniteHBD (SIGCOMM 2025) for faults, Can't Be Late (NSDI 2024) for spot.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from ..traces.errors import ConfigError

# Gaps up to this belong to a burst when the time between its faults is taken, h
_BURST_GAP_H = 6.0
# Quantiles are kept at these many even probabilities from 0 to 1
NUM_QUANTILES = 21
# Shortest time that is told apart, s
_SHORTEST_S = 30.0
_FAULT_COLUMNS = ("event_time_days", "node", "event_type", "class", "description")
_SPOT_COLUMNS = (
    "kind", "collection", "zone", "gpus_per_node", "target_nodes", "gap_s", "run_ticks", "nodes_up",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFaultFit:
    """How servers are lost, and how long."""

    num_faults: int
    per_hour: float
    """Per server."""
    burst_frac: float
    burst_gap_s: float
    down_quantiles_s: tuple[float, ...]
    mean_down_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotFit:
    """How spot capacity comes and goes."""

    num_series: int
    days: float
    drops_per_day: float
    up_quantiles_s: tuple[float, ...]
    down_quantiles_s: tuple[float, ...]


def quantiles_of(values: np.ndarray) -> tuple[float, ...]:
    """Return quantiles at even probabilities from 0 to 1, to three figures.

    The highest is not the largest value seen, but the one with which log-linear draws between
    the quantiles have the mean of the values.
    """
    values = np.maximum(values, _SHORTEST_S)
    found = np.quantile(values, np.linspace(0.0, 1.0, NUM_QUANTILES))
    low, high = found[-2], 10.0 * found[-1]
    for _ in range(60):
        found[-1] = np.sqrt(low * high)
        if quantile_mean(found) < values.mean():
            low = found[-1]
        else:
            high = found[-1]
    return tuple(float(f"{value:.3g}") for value in found)


def quantile_mean(quantiles: Sequence[float] | np.ndarray) -> float:
    """Return the mean of log-linear draws between quantiles at even probabilities."""
    a, b = np.array(quantiles[:-1]), np.array(quantiles[1:])
    log_ratio = np.log(b / a)
    flat = log_ratio < 1e-9
    return float(np.where(flat, a, (b - a) / np.where(flat, 1.0, log_ratio)).mean())


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a CSV file, gzip'd or not.

    Raises: `ConfigError` when it cannot be read, or lacks a column.
    """
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        rows = list(csv.DictReader(text.decode("utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"fault record '{path}' cannot be read as CSV: {error}"
        raise ConfigError(msg) from error
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        msg = f"fault record '{path}' lacks column(s) {', '.join(missing)}; expected {columns}"
        raise ConfigError(msg)
    return rows


def repairs_h(rows: list[dict[str, str]]) -> np.ndarray:
    """Return the hours from each fault to its repair; faults still open are left out."""
    open_since: dict[tuple[str, ...], list[float]] = {}
    hours = []
    for row in sorted(rows, key=lambda row: float(row["event_time_days"])):
        key = (row["node"], row["class"], row["description"])
        at_h = 24.0 * float(row["event_time_days"])
        if row["event_type"] == "fault_start":
            open_since.setdefault(key, []).append(at_h)
        elif open_since.get(key):
            hours.append(at_h - open_since[key].pop(0))
    return np.array(hours)


def fit_server_faults(path: Path, *, num_servers: int = 400) -> ServerFaultFit:
    """Fit the faults of a recorded fleet of so many servers.

    Raises: `ConfigError` when the file cannot be read, or holds too few faults.
    """
    rows = _rows(path, _FAULT_COLUMNS)
    days = np.array([float(row["event_time_days"]) for row in rows])
    starts = np.sort(days[[row["event_type"] == "fault_start" for row in rows]])
    down_h = repairs_h(rows)
    if starts.size < 10 or down_h.size < 10:
        msg = f"fault record '{path}' has {starts.size} faults and {down_h.size} repairs; need 10"
        raise ConfigError(msg)
    span_days = float(days.max() - days.min())
    counts = np.bincount((starts - starts[0]).astype(int), minlength=int(span_days))
    dispersion = max(1.0, float(counts.var() / counts.mean()))
    gaps_h = np.diff(starts) * 24.0
    near_h = gaps_h[gaps_h <= _BURST_GAP_H]
    return ServerFaultFit(
        num_faults=starts.size,
        per_hour=starts.size / (24.0 * span_days * num_servers),
        burst_frac=(dispersion - 1.0) / (dispersion + 1.0),
        burst_gap_s=3600.0 * float(near_h.mean()) if near_h.any() else _BURST_GAP_H,
        down_quantiles_s=quantiles_of(3600.0 * down_h),
        mean_down_s=3600.0 * float(down_h.mean()),
    )


def _single_node_series(rows: list[dict[str, str]]) -> Iterator[list[tuple[bool, float]]]:
    """Return for each series of one node its runs: (is up, seconds)."""
    keys = _SPOT_COLUMNS[:6]
    for _, series in groupby(rows, key=lambda row: tuple(row[key] for key in keys)):
        own = list(series)
        if own[0]["target_nodes"] == "1":
            yield [
                (row["nodes_up"] != "0", float(row["run_ticks"]) * float(row["gap_s"]))
                for row in own
            ]


def fit_spot(path: Path) -> SpotFit:
    """Fit when single spot nodes could be had.

    Raises: `ConfigError` when the file cannot be read, or holds too few runs.
    """
    series = list(_single_node_series(_rows(path, _SPOT_COLUMNS)))
    whole = [run for runs in series for run in runs[1:-1]]
    up_s, down_s = (
        np.array([s for is_up, s in whole if is_up is wanted]) for wanted in (True, False)
    )
    if min(up_s.size, down_s.size) < 10:
        msg = f"spot record '{path}' has {up_s.size} spans up, {down_s.size} down; need 10 of each"
        raise ConfigError(msg)
    days = sum(span_s for runs in series for _, span_s in runs) / 86_400.0
    drops = sum(
        before and not after for runs in series for (before, _), (after, _) in pairwise(runs)
    )
    return SpotFit(
        num_series=len(series),
        days=days,
        drops_per_day=drops / days,
        up_quantiles_s=quantiles_of(up_s),
        down_quantiles_s=quantiles_of(down_s),
    )

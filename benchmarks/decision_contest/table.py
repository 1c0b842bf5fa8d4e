"""Sums of the benchmark's rows: means, paired differences, loads at which goodput is kept.

A row is one episode under one contender; of a site at several loads, those of one load are summed
up at a time. Intervals are bootstrapped over sites, and within a site
over its episodes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trimtab.agents.evaluation import Interval

Row = dict[str, Any]
_NUM_RESAMPLES = 4000
KEPT_FRAC = 0.95


def by_site(rows: Iterable[Row], contender: str, key: str) -> dict[str, list[float]]:
    """Return a contender's values of every site, episodes in order."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in rows:
        if row["contender"] == contender:
            found[row["site"]].append((row["episode"], row[key]))
    return {site: [value for _, value in sorted(pairs)] for site, pairs in sorted(found.items())}


def nested_bootstrap(groups: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """Return mean and 95 % interval of group means, resampling groups and then their values.

    Raises:
        ValueError: there is no group.
    """
    if not groups:
        msg = "cannot bootstrap 0 sites; give at least 1"
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(group, float) for group in groups]
    # Means of resampled episodes, for every site and resample.
    means = np.stack(
        [a[rng.integers(a.size, size=(_NUM_RESAMPLES, a.size))].mean(axis=1) for a in arrays]
    )
    chosen = rng.integers(len(arrays), size=(_NUM_RESAMPLES, len(arrays)))
    totals = means[chosen, np.arange(_NUM_RESAMPLES)[:, None]].mean(axis=1)
    low, high = np.percentile(totals, [2.5, 97.5])
    return Interval(float(np.mean([a.mean() for a in arrays])), float(low), float(high))


def difference(rows: Sequence[Row], one: str, base: str, key: str = "goodput") -> Interval | None:
    """Return the paired difference of two contenders in an indicator; None if they never met.

    An episode that only one of them played does not count.
    """
    values: dict[str, dict[tuple[str, int], float]] = {one: {}, base: {}}
    for row in rows:
        if row["contender"] in values:
            values[row["contender"]][row["site"], row["episode"]] = row[key]
    groups: dict[str, list[float]] = defaultdict(list)
    for place, value in sorted(values[one].items()):
        if place in values[base]:
            groups[place[0]].append(value - values[base][place])
    return nested_bootstrap(list(groups.values())) if groups else None


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the contenders in the order in which they come."""
    return list(dict.fromkeys(row["contender"] for row in rows))


def summary(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return what a contender did on average over sites."""
    goodput = nested_bootstrap(list(by_site(rows, name, "goodput").values()))
    found = {"goodput": goodput.mean, "low": goodput.low, "high": goodput.high}
    for key in ("violations", "shed", "ttft_p50_s", "ttft_p99_s", "tpot_p99_s"):
        found[key] = _mean(rows, name, key)
    found["tokens_per_kwh"] = _mean(rows, name, "tokens_per_kwh")
    found["request_us"] = float(
        np.median([row["request_us"] for row in rows if row["contender"] == name])
    )
    return found


def _mean(rows: Sequence[Row], name: str, key: str) -> float:
    values = [np.nanmean(v) for v in by_site(rows, name, key).values() if not np.isnan(v).all()]
    return float(np.mean(values)) if values else float("nan")


def kept_load(loads: Sequence[float], goodputs: Sequence[float]) -> float | None:
    """Return the load up to which goodput stays at 95 %, by interpolation; None if it never is.

    The curve is made to fall; infinity if goodput is kept at the highest load.
    """
    falling = np.minimum.accumulate(goodputs)
    if falling[0] < KEPT_FRAC:
        return None
    if falling[-1] >= KEPT_FRAC:
        return float("inf")
    i = int(np.argmax(falling < KEPT_FRAC))
    share = (falling[i - 1] - KEPT_FRAC) / (falling[i - 1] - falling[i])
    return float(loads[i - 1] + share * (loads[i] - loads[i - 1]))

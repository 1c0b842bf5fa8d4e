"""What the benchmark's rows come to, as plain values.

Does not know: how rows were measured, or how values are shown.
"""

from collections.abc import Callable, Iterable, Sequence

from trimtab.agents.evaluation import Interval

from .contenders import (
    DEEP_LOOKAHEAD,
    FULL,
    HINDSIGHT,
    LLMD,
    LLMD_OWN,
    LLMD_TIES,
    LOOKAHEAD,
    SHED_SUFFIX,
    SITE_TUNED,
    SITE_WORTH,
    TUNED_SHED_SUFFIX,
    UNIVERSAL,
    WORTH,
)
from .table import Row, by_site, difference, kept_load, names_of, summary

# What is compared with what, where both took part.
PAIRS = (
    (UNIVERSAL, LLMD),
    (UNIVERSAL, LLMD_OWN),
    (UNIVERSAL, LLMD_OWN + SHED_SUFFIX),
    (UNIVERSAL, LLMD_OWN + TUNED_SHED_SUFFIX),
    (UNIVERSAL, "least-requests"),
    (UNIVERSAL, "least-requests" + SHED_SUFFIX),
    (UNIVERSAL, "predicted-ttft" + TUNED_SHED_SUFFIX),
    (UNIVERSAL, "analytic-scorer"),
    (LLMD, "least-requests"),
    (LLMD_TIES, LLMD),
    (LLMD_OWN, LLMD_TIES),
    (SITE_TUNED, UNIVERSAL),
    (LOOKAHEAD, UNIVERSAL),
    (LOOKAHEAD, SITE_TUNED),
    (DEEP_LOOKAHEAD, SITE_TUNED),
    (WORTH, UNIVERSAL),
    (WORTH, SITE_TUNED),
    (WORTH, LOOKAHEAD),
    (WORTH, DEEP_LOOKAHEAD),
    (WORTH, LLMD_OWN + SHED_SUFFIX),
    (SITE_WORTH, SITE_TUNED),
    (SITE_WORTH, WORTH),
    (FULL, WORTH),
    (HINDSIGHT, FULL),
    (HINDSIGHT, WORTH),
)
# The same, for parts of the sites: too many rows say nothing.
_SPLIT_PAIRS = (
    *((one, base) for one in (UNIVERSAL, WORTH) for base in (LLMD_OWN, "least-requests")),
    *((LOOKAHEAD, base) for base in (UNIVERSAL, SITE_TUNED, "analytic-scorer", "least-requests")),
    *((WORTH, base) for base in (UNIVERSAL, SITE_TUNED, LOOKAHEAD)),
    (HINDSIGHT, WORTH),
)
Values = dict[str, float | None]


def points(interval: Interval) -> Values:
    """Return an interval of shares in points."""
    low, high = (round(100 * end, 3) for end in (interval.low, interval.high))
    return {"points": round(100 * interval.mean, 3), "low": low, "high": high}


def _differences(
    rows: Sequence[Row], pairs: Iterable[tuple[str, str]], key: str = "goodput"
) -> dict[str, Values]:
    found = {}
    for one, base in pairs:
        interval = difference(rows, one, base, key)
        if interval is not None:
            found[f"{one} - {base}"] = points(interval)
    return found


def _own_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs to compare; whoever is not known here meets the schedulers that ship."""
    known = {name for pair in PAIRS for name in pair}
    learned = [name for name in names if name.startswith(("ppo-", "network-"))]
    bases = (UNIVERSAL, WORTH)
    return [*PAIRS, *((name, base) for name in learned if name not in known for base in bases)]


def part_result(rows: list[Row]) -> dict[str, object]:
    """Return means, paired differences, and both by shape and by load, of one part."""
    names = names_of(rows)
    return {
        "sites": len({row["site"] for row in rows}),
        "episodes": len({(row["site"], row["episode"]) for row in rows}),
        "contenders": {name: summary(rows, name) for name in names},
        "differences": _differences(rows, _own_pairs(names)),
        "by_shape": _split(rows, lambda row: str(row["shape"])),
        "by_load": _split(rows, _load_bin),
        "by_scrape": _split(rows, lambda row: "1 s and more" if row["scrape_s"] >= 1 else "< 1 s"),
    }


def _load_bin(row: Row) -> str:
    load = row["load"]
    return "below .7" if load < 0.7 else ".7 to .9" if load < 0.9 else "above .9"


def _split(rows: list[Row], bin_of: Callable[[Row], str]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for name in sorted({bin_of(row) for row in rows}):
        own = [row for row in rows if bin_of(row) == name]
        found[name] = {
            "sites": len({row["site"] for row in own}),
            "goodput": {one: summary(own, one)["goodput"] for one in names_of(own)},
            "differences": _differences(own, (*_SPLIT_PAIRS, (LLMD, "least-requests"))),
        }
    return found


def regimes_result(rows: list[Row]) -> dict[str, dict[str, object]]:
    """Return goodput and paired differences in each kind of regime."""
    found: dict[str, dict[str, object]] = {}
    for kind in sorted({kind for row in rows for kind in row["by_regime"]}):
        own = [{**row, "share": row["by_regime"][kind]} for row in rows if kind in row["by_regime"]]
        names = names_of(own)
        found[kind] = {
            "goodput": {name: _mean_of_sites(own, name, "share") for name in names},
            "differences": _differences(own, _own_pairs(names), "share"),
        }
    return found


def _mean_of_sites(rows: Sequence[Row], name: str, key: str) -> float:
    values = by_site(rows, name, key).values()
    return sum(sum(v) / len(v) for v in values) / len(values)


def loads_result(rows: list[Row]) -> dict[str, dict[str, object]]:
    """Return goodput by recording and load, and the load up to which 95 % is kept."""
    found: dict[str, dict[str, object]] = {}
    for recording in sorted({row["recording"] for row in rows}):
        own = [row for row in rows if row["recording"] == recording]
        loads = sorted({row["load"] for row in own})
        curves: dict[str, dict[str, object]] = {}
        for name in names_of(own):
            at_load = [[row for row in own if row["load"] == load] for load in loads]
            if not all(name in names_of(rows) for rows in at_load):
                continue
            curve = [_mean_of_sites(rows, name, "goodput") for rows in at_load]
            curves[name] = {"goodput": curve, **_kept(loads, curve)}
        table = {f"{load:g}": _table(own, load) for load in loads}
        found[recording] = {"loads": loads, "curves": curves, "tables": table}
    return found


def _kept(loads: Sequence[float], curve: Sequence[float]) -> dict[str, object]:
    """Return the load at which 95 % is kept, or the side of the grid that it lies on."""
    load = kept_load(loads, curve)
    if load is None:
        return {"kept_load": None, "kept_text": f"< {loads[0]:g}"}
    if load == float("inf"):
        return {"kept_load": None, "kept_text": f"> {loads[-1]:g}"}
    return {"kept_load": load, "kept_text": f"{load:.2f}"}


def _table(rows: Sequence[Row], load: float) -> dict[str, object]:
    own = [row for row in rows if row["load"] == load]
    return {
        "contenders": {name: summary(own, name) for name in names_of(own)},
        "differences": _differences(own, _SPLIT_PAIRS),
    }

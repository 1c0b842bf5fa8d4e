"""The benchmark's page: table, goodput by scheduler, paired differences, shapes, and loads.

Does not know: how it was measured.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from trimtab.traces.atomic import replace_file

_OWN = ("universal", "marginal", "site-tuned", "lookahead", "analytic", "ppo-", "network-")
_BOUNDS = ("full-information", "hindsight")
_BLUE, _GREY, _INK = "#0072B2", "#9A9A9A", "#333333"
_CURVES = (
    ("hindsight", "#000000"),
    ("full-information", "#888888"),
    ("marginal-value", "#0072B2"),
    ("lookahead-4x3", "#56B4E9"),
    ("universal-scorer", "#009E73"),
    ("llm-d-50ms", "#D55E00"),
    ("llm-d-50ms+shed", "#E69F00"),
    ("least-requests", "#CC79A7"),
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;color:#222}"
    "h2{margin:1.6em 0 .2em;font-size:1.2em} .note{color:#555}"
    "table{border-collapse:collapse;font-size:.85em;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3em .6em;text-align:right;border-bottom:1px solid #E6E6E6}"
    "th:first-child,td:first-child{text-align:left} .own{color:#0072B2;font-weight:600}"
    ".wide{overflow-x:auto}"
)
# Heading, key, factor and digits of the table's columns behind the goodput.
_COLUMNS = (
    ("violations %", "violations", 100, 1),
    ("shed %", "shed", 100, 1),
    ("TTFT p50 ms", "ttft_p50_s", 1e3, 0),
    ("TTFT p99 ms", "ttft_p99_s", 1e3, 0),
    ("TPOT p99 ms", "tpot_p99_s", 1e3, 0),
    ("tokens / kWh", "tokens_per_kwh", 1e-6, 2),
    ("us / request", "request_us", 1, 0),
)
# Columns of the table by shape.
_SHAPE_COLUMNS = (
    *("least-requests", "llm-d-weighted", "llm-d-50ms", "predicted-ttft", "universal-scorer"),
    *("site-tuned-scorer", "lookahead-4x3", "marginal-value", "full-information", "hindsight"),
)


def _is_own(name: str) -> bool:
    return name.startswith(_OWN)


def _colour(name: str) -> str:
    if name in _BOUNDS:
        return "#000000"
    return _BLUE if _is_own(name) else _GREY


def _html_table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a table; the first cell of each row names it."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headings)
    body = "".join(
        f"<tr{' class=own' if _is_own(row[0]) else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _contenders_table(part: dict[str, Any]) -> str:
    ranked = sorted(part["contenders"].items(), key=lambda item: -item[1]["goodput"])
    rows = [
        [
            name,
            f"{100 * own['goodput']:.1f} [{100 * own['low']:.1f}, {100 * own['high']:.1f}]",
            *(f"{factor * own[key]:.{digits}f}" for _, key, factor, digits in _COLUMNS),
        ]
        for name, own in ranked
    ]
    headings = ["scheduler", "goodput %", *(heading for heading, *_ in _COLUMNS)]
    return _html_table([cell.replace("tokens", "M tokens") for cell in headings], rows)


def _split_table(split: dict[str, Any], label: str) -> str:
    names = [n for n in _SHAPE_COLUMNS if any(n in own["goodput"] for own in split.values())]
    rows = [
        [
            f"{name} ({own['sites']})" if "sites" in own else name,
            *(f"{100 * own['goodput'][n]:.1f}" if n in own["goodput"] else "" for n in names),
        ]
        for name, own in split.items()
    ]
    return _html_table([label, *names], rows)


def _kept_table(loads: dict[str, Any]) -> str:
    names = list(dict.fromkeys(n for one in loads.values() for n in one["curves"]))
    rows = [
        [name, *(one["curves"].get(name, {}).get("kept_text", "") for one in loads.values())]
        for name in names
    ]
    return _html_table(["scheduler", *loads], rows)


def _layout(figure: go.Figure, height_px: int, title: str) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height_px,
        font={"color": _INK},
        margin={"l": 190, "r": 20, "t": 20, "b": 50},
        xaxis_title=title,
    )
    return figure


def _goodput(part: dict[str, Any]) -> go.Figure:
    ranked = sorted(part["contenders"].items(), key=lambda item: item[1]["goodput"])
    means = [100 * own["goodput"] for _, own in ranked]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=[name for name, _ in ranked],
            mode="markers",
            marker={"size": 10, "color": [_colour(n) for n, _ in ranked]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * own["high"] - m for m, (_, own) in zip(means, ranked, strict=True)],
                "arrayminus": [
                    m - 100 * own["low"] for m, (_, own) in zip(means, ranked, strict=True)
                ],
                "color": "#777777",
            },
        )
    )
    return _layout(figure, 60 + 24 * len(ranked), "goodput, % of weighted requests, 95 % interval")


def _differences(part: dict[str, Any]) -> go.Figure:
    items = list(part["differences"].items())[::-1]
    figure = go.Figure(
        go.Scatter(
            x=[gain["points"] for _, gain in items],
            y=[name for name, _ in items],
            mode="markers",
            marker={"size": 10, "color": _BLUE},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [gain["high"] - gain["points"] for _, gain in items],
                "arrayminus": [gain["points"] - gain["low"] for _, gain in items],
                "color": "#777777",
            },
        )
    )
    figure.add_vline(x=0.0, line_color="#333333")
    _layout(figure, 60 + 28 * len(items), "paired difference, points of goodput, 95 % interval")
    return figure.update_layout(margin={"l": 300})


def _over_load(recording: dict[str, Any]) -> go.Figure:
    figure = go.Figure()
    for name, colour in _CURVES:
        if name in recording["curves"]:
            curve = [100 * share for share in recording["curves"][name]["goodput"]]
            figure.add_scatter(
                x=recording["loads"], y=curve, name=name, line={"color": colour, "width": 2.5}
            )
    figure.update_yaxes(title="goodput, %")
    _layout(figure, 360, "load over capacity")
    return figure.update_layout(margin={"l": 70})


def _sections(result: dict[str, Any]) -> Iterator[tuple[str, str, str | go.Figure]]:
    """Yield heading, note, and a figure or a table."""
    for part in ("sites", "changing"):
        if part not in result:
            continue
        own = result[part]
        note = (
            f"{own['sites']} unseen sites, {own['episodes']} episodes. Blue: this project's; grey: "
            "rules of other projects; black: bounds that see what no scheduler can (hindsight: of "
            "first episodes)."
        )
        yield f"Goodput, {part}", note, _goodput(own)
        note = (
            "Means over sites; hindsight is searched in a site's first episode only, so compare it "
            "in pairs. The time is the simulation's with the decision in it."
        )
        yield f"All figures, {part}", note, _contenders_table(own)
        note = "The same episodes under both, resampled by site and by episode within."
        yield f"Paired differences, {part}", note, _differences(own)
        for key, label in (("by_shape", "shape"), ("by_load", "load"), ("by_scrape", "scrape")):
            yield (
                f"Goodput % by {label}, {part}",
                "In brackets: sites.",
                _split_table(own[key], label),
            )
    if "regimes" in result:
        yield (
            "Goodput % by regime",
            "Requests that arrived in it.",
            _split_table(result["regimes"], "regime"),
        )
    if result["loads"]:
        note = "Where a curve falls to 95 %, by interpolation; < and >: outside of what was tried."
        yield "Load at which 95 % is kept", note, _kept_table(result["loads"])
    for name, recording in result["loads"].items():
        note = "Test sites on this recording, at shares of their capacity."
        yield f"Over load: {name}", note, _over_load(recording)


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Write the page, whole or not at all."""
    parts, has_script = [], False
    for title, note, content in _sections(result):
        parts.append(f"<h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>")
        if isinstance(content, str):
            parts.append(content)
            continue
        parts.append(
            content.to_html(
                full_html=False,
                include_plotlyjs=not has_script,
                config={"displayModeBar": False},
            )
        )
        has_script = True
    absent = "".join(
        f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in result["absent"].items()
    )
    if absent:
        parts.append(f"<h2>Not taking part</h2><ul>{absent}</ul>")
    page = (
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Decisions</title>"
        f"<style>{_STYLE}</style><h1>Whose decisions are better</h1>{''.join(parts)}</html>"
    )
    replace_file(path, page.encode())

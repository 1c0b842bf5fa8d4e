"""The benchmark's page: goodput by scheduler, paired differences, goodput over load.

Does not know: how it was measured.
"""

from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from trimtab.traces.atomic import replace_file

_OWN = ("universal", "marginal", "site-tuned", "lookahead", "analytic", "full-information")
_BLUE, _GREY, _INK = "#0072B2", "#9A9A9A", "#333333"
_CURVES = (
    ("full-information", "#000000"),
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
)


def _is_own(name: str) -> bool:
    return name.startswith(_OWN)


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
            marker={"size": 10, "color": [_BLUE if _is_own(n) else _GREY for n, _ in ranked]},
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


def write_page(path: Path, result: dict[str, Any]) -> None:
    """Write the page, whole or not at all."""
    figures = []
    for part in ("sites", "changing"):
        if part in result:
            num = result[part]["sites"]
            note = f"{num} test sites; blue: this project's, grey: rules of other projects."
            figures.append((f"Goodput, {part}", note, _goodput(result[part])))
            figures.append((f"Differences, {part}", "Same episodes.", _differences(result[part])))
    for name, recording in result["loads"].items():
        note = "Test sites on this recording, at shares of their capacity."
        figures.append((f"Over load: {name}", note, _over_load(recording)))
    body = "".join(
        f"<h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>"
        + figure.to_html(full_html=False, include_plotlyjs=i == 0, config={"displayModeBar": False})
        for i, (title, note, figure) in enumerate(figures)
    )
    page = (
        "<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Decisions</title>"
        f"<style>{_STYLE}</style><h1>Whose decisions are better</h1>{body}</html>"
    )
    replace_file(path, page.encode())

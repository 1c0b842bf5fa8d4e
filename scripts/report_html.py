"""The report's page: one HTML file with its figures and their code inside, readable offline.

Does not know: files.
"""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from ..agents.evaluation import QUANTILES, Evaluation, KnobTrack
from ..env.knobs import KNOB_INDEX, KNOB_SPECS
from ..env.state.feature import FloatArray
from .palette import Style, emphasise, policy_styles
from .summary import base_policy, best_imported, conditions, differences, headline, limits
from .table import COLUMNS, rows

_INK = "#333333"
_GRID = "#E6E6E6"
_FIGURE_HEIGHT_PX = 440
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; margin-bottom: .2em; }
h2 { font-size: 1.15em; margin: 2em 0 .2em; }
p { margin: .4em 0; }
.headline { font-size: 1.2em; }
.note { color: #555; font-size: .9em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums;
        width: 100%; }
th, td { padding: .35em .6em; text-align: right; border-bottom: 1px solid #E6E6E6;
         white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr.best { font-weight: bold; background: #EAF3F9; }
tr.imported { font-weight: bold; }
"""


def html_page(evaluation: Evaluation, ttft_slos_s: Sequence[float]) -> str:
    """Return the whole page."""
    is_first = True
    parts = []
    for title, note, figure in _figures(evaluation, ttft_slos_s):
        parts.append(
            f"<h2>{escape(title)}</h2>\n<p class='note'>{escape(note)}</p>\n"
            + figure.to_html(
                full_html=False,
                include_plotlyjs=is_first,
                config={"displayModeBar": False, "responsive": True},
            )
        )
        is_first = False
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trimtab: {escape(evaluation.scenario)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Schedulers compared on {escape(evaluation.scenario)}</h1>
<p class="headline">{escape(headline(evaluation))}</p>
<p class="note">{escape(conditions(evaluation))}</p>
<p class="note">{escape(limits(evaluation))}</p>
<h2>Indicators</h2>
{_table(evaluation)}
{"".join(parts)}
</body>
</html>
"""


def _table(evaluation: Evaluation) -> str:
    imported = best_imported(evaluation)
    lines = []
    for place, (name, *cells) in enumerate(rows(evaluation)):
        kind = "best" if place == 0 else "imported" if name == imported else "other"
        shown = f"{escape(name)}*" if name == imported else escape(name)
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr class='{kind}'><td>{shown}</td>{data}</tr>")
    header = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    star = f"<p class='note'>* best imported scheduler: {escape(imported)}</p>" if imported else ""
    body = "\n".join(lines)
    return f"<div class='wide'><table><tr>{header}</tr>\n{body}\n</table></div>\n{star}"


def _figures(
    evaluation: Evaluation, ttft_slos_s: Sequence[float]
) -> Iterable[tuple[str, str, go.Figure]]:
    """Yield title, note and figure of each section that there is something to show in."""
    styles = policy_styles(evaluation)
    if differences(evaluation):
        yield (
            f"Goodput against {base_policy(evaluation)}",
            "Paired difference over the same workloads, with its 95 % bootstrap interval. An "
            "interval that touches the line is no clear difference. The table has the policies "
            "that are left out here.",
            _difference_figure(evaluation, styles),
        )
    yield (
        "Time to first token",
        "Share of the requests that got a first token and had it within this time. Refused and "
        "failed requests have none and are not in these lines. Grey: all other policies.",
        _ttft_figure(evaluation, styles, ttft_slos_s),
    )
    if any(evaluation.goodput_by_load.values()):
        yield (
            "Goodput against load",
            "Load is the rate of arrivals over the highest rate that the fleet keeps up with.",
            _load_figure(evaluation, styles),
        )
    for track in evaluation.knob_tracks:
        yield from _knob_figures(track)


def _knob_figures(track: KnobTrack) -> Iterable[tuple[str, str, go.Figure]]:
    """Yield the knobs that are shown as factors and those shown as shifts, where any moved."""
    for is_factor, kind in ((True, "factor on its start"), (False, "shift from its start")):
        moved = [knob for knob in _moved_knobs(track) if _is_factor(knob) == is_factor]
        if moved:
            yield (
                f"Knobs that {track.policy} moved: {kind}",
                "Over the first workload; knobs that stayed where they started are left out. In "
                "colour: the six that moved farthest.",
                _knob_figure(track, moved, kind),
            )


def _layout(figure: go.Figure, x_title: str, y_title: str, height: int = _FIGURE_HEIGHT_PX) -> None:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 20, "b": 55},
        font={"color": _INK, "size": 13},
        legend={"itemsizing": "constant"},
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False)
    figure.update_layout(xaxis_title=x_title, yaxis_title=y_title)


def _by_emphasis(styles: dict[str, Style]) -> list[str]:
    """Names with the grey ones first, so that they lie below; the legend turns this round."""
    return sorted(reversed(styles), key=lambda name: styles[name].is_emphasised)


def _difference_figure(evaluation: Evaluation, styles: dict[str, Style]) -> go.Figure:
    shown = [each for each in differences(evaluation) if styles[each.name].is_emphasised]
    figure = go.Figure()
    for each in shown:
        points = each.points
        figure.add_scatter(
            x=[points.mean],
            y=[each.name],
            error_x={
                "array": [points.high - points.mean],
                "arrayminus": [points.mean - points.low],
                "thickness": 2,
                "width": 6,
            },
            mode="markers+text",
            text=[f"{points.mean:+.1f} [{points.low:.1f}, {points.high:.1f}]"],
            textposition="top center",
            marker={"color": styles[each.name].colour, "size": 11},
            hovertemplate=f"{each}<extra></extra>",
            showlegend=False,
        )
    figure.add_vline(x=0, line={"color": _INK, "width": 1.2})
    _layout(figure, "difference in goodput, points", "", height=110 + 55 * max(1, len(shown)))
    figure.update_yaxes(automargin=True, range=[len(shown) - 0.6, -0.8])
    return figure


def _ttft_figure(
    evaluation: Evaluation, styles: dict[str, Style], ttft_slos_s: Sequence[float]
) -> go.Figure:
    figure = go.Figure()
    for name in _by_emphasis(styles):
        _add_line(
            figure,
            name,
            styles[name],
            x=1e3 * evaluation.result(name).ttft_quantiles_s,
            y=100 * QUANTILES,
            hover="%{y:.1f} % within %{x:.0f} ms",
        )
    for slo_s in ttft_slos_s:
        figure.add_vline(x=1e3 * slo_s, line={"color": _INK, "width": 1.2, "dash": "dash"})
        figure.add_annotation(
            # Annotations on a logarithmic axis take the exponent.
            x=float(np.log10(1e3 * slo_s)),
            y=2,
            text=f"limit {1e3 * slo_s:g} ms",
            textangle=-90,
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
        )
    _layout(figure, "time to first token, ms", "requests with a first token, %")
    figure.update_xaxes(type="log", dtick=1, exponentformat="none", separatethousands=False)
    figure.update_yaxes(range=[0, 101])
    figure.update_layout(legend={"traceorder": "reversed"})
    return figure


def _load_figure(evaluation: Evaluation, styles: dict[str, Style]) -> go.Figure:
    figure = go.Figure()
    for name in _by_emphasis(styles):
        points = evaluation.goodput_by_load.get(name, ())
        if points:
            load_frac, goodput_frac = zip(*points, strict=True)
            _add_line(
                figure,
                name,
                styles[name],
                x=100 * np.array(load_frac),
                y=100 * np.array(goodput_frac),
                hover="%{y:.1f} % at %{x:.0f} % load",
                mode="lines+markers",
            )
    _layout(figure, "load, % of saturation", "goodput, % of weighted requests")
    figure.update_layout(legend={"traceorder": "reversed"})
    return figure


def _add_line(
    figure: go.Figure,
    name: str,
    style: Style,
    *,
    x: FloatArray,
    y: FloatArray,
    hover: str,
    mode: str = "lines",
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode=mode,
        line={"color": style.colour, "width": style.width, "dash": style.dash},
        hovertemplate=f"{name}: {hover}<extra></extra>",
    )


def _is_factor(knob: str) -> bool:
    """Whether a knob is shown as a factor on its start, rather than as a shift from it."""
    return knob in KNOB_INDEX and KNOB_SPECS[KNOB_INDEX[knob]].is_log


def _relative(knob: str, values: FloatArray) -> FloatArray:
    moved: FloatArray = values / values[0] if _is_factor(knob) else values - values[0]
    return moved


def _moved_knobs(track: KnobTrack) -> list[str]:
    """Names of the knobs that moved, the farthest first."""
    reach = {}
    for knob, values in track.values.items():
        relative = _relative(knob, values)
        reach[knob] = float(np.abs(np.log(relative) if _is_factor(knob) else relative).max())
    return sorted((knob for knob in reach if reach[knob] > 1e-9), key=lambda knob: -reach[knob])


def _knob_figure(track: KnobTrack, moved: list[str], kind: str) -> go.Figure:
    figure = go.Figure()
    for knob, style in reversed(emphasise(moved).items()):
        _add_line(
            figure,
            knob,
            style,
            x=track.at_s,
            y=_relative(knob, track.values[knob]),
            hover="%{y:.3g} at %{x:.0f} s",
        )
    figure.update_traces(line={"shape": "hv"})
    _layout(figure, "time in the workload, s", kind)
    if _is_factor(moved[0]):
        figure.update_yaxes(type="log")
    figure.update_layout(legend={"traceorder": "reversed"})
    return figure

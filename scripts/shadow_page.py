"""The shadow report as one page that needs nothing else.

Does not know: how its figures were made.
"""

from html import escape
from io import StringIO
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rich.console import Console

from ..runtime.shadow.report import ShadowReport
from ..traces.atomic import replace_file
from .shadow_text import print_report

_BASE, _OTHER = "#8a8f98", "#1f6feb"


def shadow_figure(report: ShadowReport) -> go.Figure:
    """Return the report's pictures: who would have had what, why, and what would come of it."""
    titles = ("Requests by replica", "Why they differ", "Goodput over time, simulated")
    figure = make_subplots(rows=1, cols=3, subplot_titles=titles, horizontal_spacing=0.08)
    names = sorted({name for pair in report.flows for name in pair})
    for column, (label, colour) in enumerate(
        ((report.base_name, _BASE), (report.other_name, _OTHER))
    ):
        counts = [
            sum(n for pair, n in report.flows.items() if pair[column] == name) for name in names
        ]
        figure.add_bar(x=names, y=counts, name=label, marker_color=colour, row=1, col=1)
    reasons = sorted(report.reasons.items(), key=lambda item: item[1])
    figure.add_bar(
        x=[number for _, number in reasons], y=[reason for reason, _ in reasons],
        orientation="h", marker_color=_OTHER, showlegend=False, row=1, col=2,
    )  # fmt: skip
    for run, colour in ((report.base_run, _BASE), (report.other_run, _OTHER)):
        if run is not None:
            share = run.credit_by_block / np.maximum(run.weight_by_block, 1e-9)
            figure.add_scatter(
                x=5.0 * np.arange(share.size), y=100 * share, name=run.name, mode="lines",
                line={"color": colour, "width": 2}, showlegend=False, row=1, col=3,
            )  # fmt: skip
    figure.update_xaxes(title_text="decisions", row=1, col=2)
    figure.update_xaxes(title_text="s", row=1, col=3)
    figure.update_yaxes(title_text="requests", row=1, col=1)
    figure.update_yaxes(title_text="% of weight met", rangemode="tozero", row=1, col=3)
    figure.update_layout(
        template="plotly_white", height=420, width=1280, margin={"t": 60, "b": 80},
        legend={"orientation": "h", "y": -0.25},
    )  # fmt: skip
    return figure


def write_shadow_page(report: ShadowReport, path: Path) -> None:
    """Write the report as an HTML page."""
    console = Console(record=True, width=110, file=StringIO(), highlight=False)
    print_report(console, report)
    text = escape(console.export_text())
    title = escape(f"{report.other_name} in shadow beside {report.base_name}")
    picture = shadow_figure(report).to_html(full_html=False, include_plotlyjs=True)
    page = (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{title}</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1300px;color:#1f2328}"
        "pre{background:#f6f8fa;padding:1em;border-radius:6px;overflow-x:auto}</style></head>"
        f"<body><h1>{title}</h1><p><b>Advice: {escape(report.advice)}</b></p>"
        f"<pre>{text}</pre>{picture}</body></html>"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode())

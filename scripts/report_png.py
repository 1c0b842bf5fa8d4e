"""The report's picture: goodput with its intervals, and the distribution of TTFT.

Draws on a canvas of its own, so that no global state of matplotlib is touched.

Does not know: files.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..agents.evaluation import QUANTILES, Evaluation
from .palette import policy_styles
from .summary import goodput, ranked

_SIZE_INCHES = (11.0, 4.4)
_DOTS_PER_INCH = 150
_LINE_STYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_INK = "#333333"


def png_bytes(evaluation: Evaluation, ttft_slos_s: Sequence[float]) -> bytes:
    """Return the picture as a PNG file."""
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    _draw_goodput(left, evaluation)
    _draw_ttft(right, evaluation, ttft_slos_s)
    figure.suptitle(
        f"{evaluation.scenario}: {evaluation.load_frac:.0%} load, "
        f"{evaluation.rate_rps:.0f} requests/s, {evaluation.num_workloads} unseen workloads, "
        "simulated",
        fontsize=11,
        color=_INK,
    )
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _clear_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)


def _draw_goodput(axes: Axes, evaluation: Evaluation) -> None:
    styles = policy_styles(evaluation)
    names = [result.name for result in ranked(evaluation)][::-1]
    intervals = [goodput(evaluation.result(name)) for name in names]
    means = 100 * np.array([interval.mean for interval in intervals])
    errors = 100 * np.array([[i.mean - i.low, i.high - i.mean] for i in intervals]).T
    axes.barh(
        names,
        means,
        xerr=np.maximum(errors, 0.0),
        color=[styles[name].colour for name in names],
        height=0.72,
        error_kw={"ecolor": _INK, "capsize": 2.5, "elinewidth": 1.1},
    )
    for place, (mean, interval) in enumerate(zip(means, intervals, strict=True)):
        axes.annotate(
            f"{mean:.1f}",
            (100 * max(interval.high, interval.mean), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=_INK,
        )
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("goodput, % of weighted requests, with 95 % CI", fontsize=9)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    _clear_frame(axes)


def _draw_ttft(axes: Axes, evaluation: Evaluation, ttft_slos_s: Sequence[float]) -> None:
    styles = policy_styles(evaluation)
    # Grey lines first, so that they lie below.
    for name in sorted(styles, key=lambda name: styles[name].is_emphasised):
        style = styles[name]
        axes.plot(
            1e3 * evaluation.result(name).ttft_quantiles_s,
            100 * QUANTILES,
            color=style.colour,
            linestyle=_LINE_STYLES[style.dash],
            linewidth=0.8 * style.width,
        )
    for name, style in styles.items():
        if style.is_emphasised:
            line_style = _LINE_STYLES[style.dash]
            axes.plot([], [], color=style.colour, linestyle=line_style, label=name)
    if not all(style.is_emphasised for style in styles.values()):
        grey = next(style for style in styles.values() if not style.is_emphasised)
        axes.plot([], [], color=grey.colour, linewidth=1.0, label="others")
    for slo_s in ttft_slos_s:
        axes.axvline(1e3 * slo_s, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            f"limit {1e3 * slo_s:g} ms",
            (1e3 * slo_s, 2),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
            color=_INK,
            rotation=90,
            va="bottom",
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_xlabel("time to first token, ms", fontsize=9)
    axes.set_ylabel("% of requests that got one", fontsize=9)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clear_frame(axes)

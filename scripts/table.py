"""An evaluation as one table, for a terminal and for Markdown.

Latencies are means over workloads of each workload's percentile (see `docs/metrics.md`).

Does not know: figures.
"""

import math
import warnings

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..agents.evaluation import Evaluation, PolicyResult
from .summary import best_imported, conditions, goodput, key_differences, ranked

COLUMNS: tuple[str, ...] = (
    "policy",
    "goodput %, 95% CI",
    "SLO miss %",
    "TTFT P50 ms",
    "TTFT P99 ms",
    "TPOT P99 ms",
    "tokens /kWh",
    "cache hit %",
    "shed %",
)


def mean_kpi(result: PolicyResult, kpi: str) -> float:
    """Return the mean of an indicator over the workloads that have it, NaN if none has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return result.mean(kpi)


def rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return the cells of each policy, the highest goodput first."""
    return [_row(result) for result in ranked(evaluation)]


def _row(result: PolicyResult) -> tuple[str, ...]:
    interval = goodput(result)

    def percent(kpi: str) -> str:
        return _number(100 * mean_kpi(result, kpi), 1)

    def milliseconds(kpi: str) -> str:
        return _number(1e3 * mean_kpi(result, kpi), 0)

    return (
        result.name,
        f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]",
        percent("slo_violation_frac"),
        milliseconds("ttft_p50_s"),
        milliseconds("ttft_p99_s"),
        milliseconds("tpot_p99_s"),
        _short(mean_kpi(result, "output_tokens_per_kwh")),
        percent("prefix_hit_frac"),
        percent("shed_frac"),
    )


def _number(value: float, num_digits: int) -> str:
    return f"{value:.{num_digits}f}" if math.isfinite(value) else "-"


def _short(value: float) -> str:
    """A count with k or M."""
    if not math.isfinite(value):
        return "-"
    return f"{value / 1e6:.2f}M" if value >= 1e6 else f"{value / 1e3:.0f}k"


def notes(evaluation: Evaluation) -> list[str]:
    """Return the lines below the table: conditions, marks and paired differences."""
    lines = [conditions(evaluation)]
    imported = best_imported(evaluation)
    if imported:
        lines.append(f"* best imported scheduler: {imported}")
    return lines + [str(each) for each in key_differences(evaluation)]


def _mark(name: str, evaluation: Evaluation) -> str:
    return f"{name}*" if name == best_imported(evaluation) else name


def rich_table(evaluation: Evaluation) -> Group:
    """Return table and notes for a terminal of 80 columns; best overall in bold green, best
    imported in bold cyan.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column(COLUMNS[0], no_wrap=True)
    table.add_column(COLUMNS[1], no_wrap=True, justify="right")
    for name in COLUMNS[2:]:
        table.add_column(name.replace(" ", "\n"), justify="right", vertical="bottom")
    for place, (name, *cells) in enumerate(rows(evaluation)):
        style = "bold cyan" if name == best_imported(evaluation) else None
        table.add_row(_mark(name, evaluation), *cells, style="bold green" if place == 0 else style)
    return Group(table, "", *(Text(line) for line in notes(evaluation)))


def markdown_table(evaluation: Evaluation) -> str:
    """Return the table as GitHub Markdown; best overall in bold, best imported with a star."""
    lines = [_markdown_row(COLUMNS), _markdown_row(("---", *["---:"] * (len(COLUMNS) - 1)))]
    for place, (name, *cells) in enumerate(rows(evaluation)):
        # Escaped, because a bare star may open an emphasis.
        marked = _mark(name, evaluation).replace("*", "\\*")
        lines.append(_markdown_row((f"**{marked}**" if place == 0 else marked, *cells)))
    below = [line.replace("*", "\\*") for line in notes(evaluation)]
    return "\n".join(lines) + "\n\n" + "  \n".join(below) + "\n"


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"

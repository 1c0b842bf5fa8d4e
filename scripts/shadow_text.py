"""The shadow report on a terminal.

Does not know: how its figures were made.
"""

from rich.console import Console
from rich.table import Table

from ..agents.evaluation import Interval
from ..runtime.shadow.report import ShadowReport

_NUM_FLOWS = 8


def interval_text(value: Interval, *, is_percent: bool = True) -> str:
    """Return a mean with its interval."""
    if is_percent:
        return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}] points"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def print_report(console: Console, report: ShadowReport) -> None:
    """Print a report."""
    agreement = report.agreement
    console.print(
        f"{report.other_name} beside {report.base_name}, {report.num_decisions} decisions: they "
        f"agree in {agreement.mean:.0%} [{agreement.low:.0%}, {agreement.high:.0%}]"
    )
    if report.reasons:
        table = Table("why they differ", "decisions", box=None)
        for reason, number in sorted(report.reasons.items(), key=lambda item: -item[1]):
            table.add_row(reason, str(number))
        console.print(table)
        flows = Table("had it", "would have had it", "decisions", box=None)
        different = [(pair, n) for pair, n in report.flows.items() if pair[0] != pair[1]]
        for (taken, other), number in sorted(different, key=lambda item: -item[1])[:_NUM_FLOWS]:
            flows.add_row(taken, other, str(number))
        console.print(flows)
    if report.base_run is not None and report.other_run is not None:
        runs = Table("simulated", "goodput %", "TTFT p50 ms", "TTFT p99 ms", box=None)
        for run in (report.base_run, report.other_run):
            runs.add_row(
                run.name, f"{100 * run.goodput_frac:.1f}", f"{1e3 * run.ttft_p50_s:.1f}",
                f"{1e3 * run.ttft_p99_s:.1f}",
            )  # fmt: skip
        console.print(runs)
    if report.gain is not None:
        console.print(f"simulated gain: {interval_text(report.gain)} of the weight")
    if report.error is not None and report.error.num_requests:
        error = report.error
        console.print(
            f"the simulator's own error on what did happen ({error.num_requests} requests): TTFT "
            f"off by {error.median_abs_frac:.0%} in the median, {error.p95_abs_frac:.0%} at p95"
        )
    if report.windows is not None:
        windows = report.windows
        gain = "nothing compared" if windows.gain is None else interval_text(windows.gain)
        doubts = ", ".join(f"{n} x {d}" for d, n in windows.doubts.items()) or "none"
        console.print(
            f"{windows.num_windows} windows: the gateway's own estimate {gain}; doubts {doubts}; "
            f"overridden in {windows.overridden_frac:.0%}"
        )
    if report.decision_p50_s == report.decision_p50_s:
        console.print(
            f"a decision took {1e6 * report.decision_p50_s:.0f} us in the median, "
            f"{1e6 * report.decision_p99_s:.0f} us at p99"
        )
    if report.base_run is not None:
        why = f": {'; '.join(report.objections)}" if report.objections else ""
        console.print(f"advice: {report.advice}{why}", style="bold")

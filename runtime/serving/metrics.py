"""The gateway's own metrics page, as Prometheus reads it.

Does not know: who asks for it.
"""

from typing import TYPE_CHECKING

import numpy as np

from ...agents.shield.doubt import Doubt
from ...env.masks import Mask
from ...env.shed_reason import ShedReason

if TYPE_CHECKING:
    from .server import Server


_LOOP_PLACES = {
    "loop_late_total": 0,
    "loop_busy_seconds_total": 1,
    "loop_worst_lag_seconds": 2,
    "loop_failures_total": 3,
}


class _Page:
    """Lines of a page, family by family."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, text: str) -> None:
        self.lines += [f"# HELP trimtab_{name} {text}", f"# TYPE trimtab_{name} {kind}"]

    def sample(self, name: str, value: float, **labels: str) -> None:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        self.lines.append(f"trimtab_{name}{{{inside}}} {value:.10g}" if inside else
                          f"trimtab_{name} {value:.10g}")  # fmt: skip

    def single(self, name: str, kind: str, text: str, value: float) -> None:
        self.family(name, kind, text)
        self.sample(name, value)


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def metrics_text(server: "Server") -> str:
    """Return the page of this moment."""
    page = _Page()
    _fill_gateway(page, server)
    _fill_requests(page, server)
    _fill_replicas(page, server)
    _fill_latencies(page, server)
    _fill_steering(page, server)
    _fill_loop(page, server)
    return "\n".join(page.lines) + "\n"


def _fill_gateway(page: _Page, server: "Server") -> None:
    counts = server.gateway.counts
    page.single("connections", "gauge", "Open connections of clients.", counts.connections)
    page.family("answers_total", "counter", "Answers by HTTP status.")
    for status, number in sorted(counts.answers.items()):
        page.sample("answers_total", number, status=str(status))
    for name, text in (
        ("num_retries", "Requests sent to another replica."),
        ("num_evicted", "Of these, for the silence of a replica."),
        ("num_aborts", "Clients that went away before their answer was whole."),
        ("num_cut", "Answers that ended before they were whole."),
        ("num_timeouts", "Requests whose deadline passed."),
        ("num_slow_clients", "Connections closed because a client was slow."),
        ("num_malformed", "Requests that were no proper HTTP."),
        ("num_faults", "Requests in which the gateway itself failed; its log says more."),
    ):
        metric = f"{name.removeprefix('num_')}_total"
        page.single(metric, "counter", text, getattr(counts, name))
    page.single("ticks_late_total", "counter", "Ticks of the shield later than 20 ms.",
                server.num_late_ticks)  # fmt: skip


def _fill_requests(page: _Page, server: "Server") -> None:
    totals = server.dispatcher.totals
    page.family("requests_total", "counter", "Requests by what became of them.")
    for fate in ("arrived", "placed", "finished", "failed", "aborted", "refused", "shed"):
        page.sample("requests_total", getattr(totals, f"num_{fate}"), fate=fate)
    page.single("requests_open", "gauge", "Requests at a replica.", totals.num_open)
    page.family("requests_shed_total", "counter", "Refused requests by reason.")
    for reason in ShedReason:
        number = totals.shed_by_reason[reason]
        page.sample("requests_shed_total", number, reason=str(reason.name).lower())
    page.single("goodput_weight_total", "counter", "Weight of requests within both limits.",
                totals.credit)  # fmt: skip
    page.single("arrived_weight_total", "counter", "Weight of all requests.",
                totals.arrived_weight)  # fmt: skip
    page.single("output_tokens_total", "counter", "Output tokens of all answers.",
                totals.output_tokens)  # fmt: skip


def _fill_replicas(page: _Page, server: "Server") -> None:
    dispatcher = server.dispatcher
    names = [replica.name for replica in dispatcher.cluster.replicas]
    now_s = server.clock()
    columns = {
        "replica_available": ("Whether requests are sent there.", "is_available"),
        "replica_outstanding_requests": ("Requests sent and not ended.", "outstanding_requests"),
        "replica_pending_tokens": ("Prompt tokens without a first token.", "pending_tokens"),
        "replica_slow_factor": ("Predicted slow-down.", "slow_factor"),
    }
    for metric, (text, field) in columns.items():
        page.family(metric, "gauge", text)
        for name, view in zip(names, dispatcher.views, strict=True):
            page.sample(metric, float(view[field]), replica=name)
    page.family("replica_page_age_seconds", "gauge", "Time since a metrics page was read.")
    for name, at_s in zip(names, server.control.page_at_s, strict=True):
        if np.isfinite(at_s):
            page.sample("replica_page_age_seconds", now_s - at_s, replica=name)
    page.family("replica_masked", "gauge", "Whether a reason bars the replica.")
    for name, view in zip(names, dispatcher.views, strict=True):
        for reason in Mask:
            if int(view["mask"]) & reason:
                page.sample("replica_masked", 1, replica=name, reason=str(reason.name).lower())


def _fill_steering(page: _Page, server: "Server") -> None:
    steering, dispatcher = server.steering, server.dispatcher
    page.family("ruler", "gauge", "Who sets the knobs.")
    page.sample("ruler", 1, ruler=steering.ruler)
    page.single("knob_version", "counter", "Settings of the knobs so far.", dispatcher.knob_version)
    if dispatcher.can_place_by_worth:
        page.single("unmirrored_requests", "gauge", "Open requests that worth knows nothing of.",
                    dispatcher.num_unmirrored)  # fmt: skip
    page.family("knob", "gauge", "Values of the knobs.")
    for name, value in dispatcher.knobs.as_dict().items():
        page.sample("knob", value, knob=name)
    page.family("doubts_total", "counter", "Windows by what was wrong with the proposal.")
    for doubt in Doubt:
        page.sample("doubts_total", steering.counts.doubts[doubt], doubt=str(doubt))
    for name, text, value in (
        ("rulers_total", "Changes of who rules.", steering.counts.num_rulers),
        ("windows_total", "Windows that were judged.", steering.counts.num_windows),
        ("policy_windows_total", "Windows that the policy ruled.",
         steering.counts.num_policy_windows),
        ("overrides_total", "Proposals brought within their limits.",
         steering.counts.num_overrides),
        ("policy_swaps_total", "Policies that took the seat.", steering.counts.num_swaps),
        ("proposals_ignored_total", "Proposals from nobody's seat, or beyond a window's first.",
         steering.counts.num_ignored),
    ):  # fmt: skip
        page.single(name, "counter", text, value)


def _fill_loop(page: _Page, server: "Server") -> None:
    for name, kind, text in (
        ("loop_late_total", "counter", "Rounds that came more than 20 ms late."),
        ("loop_busy_seconds_total", "counter", "Time that the rounds took."),
        ("loop_worst_lag_seconds", "gauge", "How late a round came at most."),
        ("loop_failures_total", "counter", "Rounds that failed."),
    ):
        page.family(name, kind, text)
        for pacer in server.pacers:
            lag = pacer.lag
            values = (lag.num_late, lag.span_s, lag.longest_s, lag.num_failures)
            page.sample(name, values[_LOOP_PLACES[name]], loop=pacer.name)
    page.family("child_restarts_total", "counter", "Restarts of processes beside.")
    for name, child in server.children.items():
        page.sample("child_restarts_total", child.num_restarts, child=name)
    page.family("moves_total", "counter", "Moves of capacity that were made.")
    for move, number in server.plan.num_made.items():
        page.sample("moves_total", number, kind=str(move))
    page.family("moves_refused_total", "counter", "Moves of capacity that were not, by reason.")
    for reason, number in server.plan.num_refused.items():
        page.sample("moves_refused_total", number, reason=reason)


def _fill_latencies(page: _Page, server: "Server") -> None:
    for name, text, found in (
        ("ttft_seconds", "Time to first token of streams.", server.latencies.ttft),
        ("tpot_seconds", "Time per later token of streams.", server.latencies.tpot),
    ):
        page.family(name, "histogram", text)
        for (tenant, kind), histogram in found.items():
            total = 0
            bounds = (*histogram.bounds_s, float("inf"))
            for bound_s, number in zip(bounds, histogram.counts, strict=True):
                total += number
                label = "+Inf" if bound_s == float("inf") else f"{bound_s:g}"
                page.sample(f"{name}_bucket", total, tenant=tenant, kind=kind, le=label)
            page.sample(f"{name}_sum", histogram.sum_s, tenant=tenant, kind=kind)
            page.sample(f"{name}_count", total, tenant=tenant, kind=kind)

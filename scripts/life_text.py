"""The life of one request as text: what arrived, its moments, why it went where, how it ended.

Does not know: how a life is noted.
"""

import re

from rich import box
from rich.console import Console
from rich.table import Table

from ..env.placement import LOOKAHEAD_RULE, Candidate, Placement
from ..env.request_life import RequestLife

NUM_CANDIDATES_SHOWN = 5
_NUM_ADVANTAGES_SHOWN = 3


def print_life(console: Console, life: RequestLife) -> None:
    """Print the life of a request."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False)

    for line in arrival_lines(life):
        say(line)
    console.print(_note_table(life))
    for place, placement in enumerate(life.placements):
        say(_placement_line(place, placement, len(life.placements)))
        if placement.candidates:
            console.print(_candidate_table(placement))
        say(f"  {reason(placement)}")
    say("")
    for line in outcome_lines(life):
        say(line)


def arrival_lines(life: RequestLife) -> list[str]:
    """Return what arrived."""
    kind = "interactive" if life.priority == 0 else "batch"
    return [
        f"request {life.request} arrived at {life.arrival_s:.4f} s: priority {life.priority} "
        f"({kind}), request {life.session_place} of its session",
        f"  {life.input_tokens} prompt tokens, {life.output_tokens} output tokens (not known to "
        f"the gateway), limits: TTFT {life.ttft_slo_s:g} s, TPOT {life.tpot_slo_s:g} s",
    ]


def _note_table(life: RequestLife) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    for name in ("at s", "since\narrival s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("replica", no_wrap=True)
    table.add_column("what happened")
    for note in life.notes:
        since = f"{note.since_arrival_s:.4f}"
        table.add_row(f"{note.at_s:.4f}", since, note.replica or "", note.text)
    return table


def _placement_line(place: int, placement: Placement, num_placements: int) -> str:
    number = f" {place + 1} of {num_placements}" if num_placements > 1 else ""
    unable = f", {placement.num_unable} not looked at" if placement.num_unable else ""
    return (
        f"\nplacement{number} at {placement.at_s:.4f} s by {placement.rule}: "
        f"{len(placement.candidates)} candidates{unable}"
    )


def _shown(placement: Placement) -> tuple[Candidate, ...]:
    """The best candidates, and the winner where it is not among them."""
    best, winner = placement.candidates[:NUM_CANDIDATES_SHOWN], placement.winner
    return best if winner is None or winner in best else (*best, winner)


def _candidate_table(placement: Placement) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("candidate", no_wrap=True, vertical="bottom")
    terms = list(dict.fromkeys(name for c in _shown(placement) for name in c.terms))
    for name in ("cached tokens", "predicted TTFT s", "cost", *terms):
        table.add_column(re.sub("[ _]", "\n", name), justify="right", vertical="bottom")
    for candidate in _shown(placement):
        is_chosen = candidate.name == placement.chosen
        table.add_row(
            f"{candidate.name} *" if is_chosen else candidate.name,
            str(candidate.cached_tokens),
            f"{candidate.predicted_ttft_s:.4f}",
            f"{candidate.cost:.4f}",
            *(f"{candidate.terms.get(name, 0.0):.4g}" for name in terms),
            style="bold" if is_chosen else None,
        )
    return table


def reason(placement: Placement) -> str:
    """Return in a sentence why the winner won, or why there is none."""
    winner, other = placement.winner, placement.runner_up
    if not placement.candidates:
        return "refused: no replica was up that could hold it"
    if winner is None:
        best = placement.candidates[0]
        if placement.rule == LOOKAHEAD_RULE:
            return "refused: no replica looked at is expected to gain goodput by it"
        return (
            f"refused: even on {best.name} its first token was predicted in "
            f"{best.predicted_ttft_s:.4f} s, too far over its limit"
        )
    if other is None:
        return f"{winner.name} was the only candidate"
    gap = other.cost - winner.cost
    if gap == 0.0:
        return f"{winner.name} and {other.name} cost the same; the gateway took the first"
    parts = [
        f"{name} {'lower' if gain > 0 else 'higher'} by {abs(gain):.4g}"
        for name, gain in list(placement.advantages.items())[:_NUM_ADVANTAGES_SHOWN]
    ]
    if gap < 0.0:
        return f"{winner.name} was chosen though {other.name} costs {-gap:.4g} less"
    return f"{winner.name} costs {gap:.4g} less than {other.name}: {', '.join(parts)}"


def _against(name: str, value_s: float | None, limit_s: float) -> str:
    if value_s is None:
        return f"{name} none"
    word = "within" if value_s <= limit_s else "over"
    return f"{name} {value_s:.4f} s, {word} its limit of {limit_s:g} s"


def outcome_lines(life: RequestLife) -> list[str]:
    """Return how it ended: status, TTFT and TPOT against their limits, what TTFT was made of."""
    is_over = life.status in ("finished", "shed", "failed")
    status = life.status if is_over else f"not finished: still {life.status} when the run ended"
    lines = [f"outcome: {status}{', met its limits' if life.is_met else ', a miss'}"]
    if life.refusal:
        lines.append(f"  refused: {life.refusal}")
    if life.worth_frac < 1.0:
        lines.append(
            f"  an emergency cut its answer to {100 * life.worth_frac:.0f} % of its tokens"
        )
    lines.append("  " + _against("TTFT", life.ttft_s, life.ttft_slo_s))
    if life.ttft_split_s and life.ttft_s is not None:
        total_s = max(life.ttft_s, 1e-12)
        parts = [
            f"{name} {span_s:.4f} s ({100 * span_s / total_s:.0f} %)"
            for name, span_s in life.ttft_split_s.items()
        ]
        lines.append(f"    of it {', '.join(parts)}")
    lines.append("  " + _against("TPOT", life.tpot_s, life.tpot_slo_s))
    if life.e2e_s is not None:
        lines.append(f"  E2E {life.e2e_s:.4f} s")
    if life.num_preemptions or life.num_dispatches > 1:
        lines.append(f"  preemptions {life.num_preemptions}, dispatches {life.num_dispatches}")
    return lines

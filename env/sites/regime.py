"""Regimes of a changing site, and the schedule of one episode.

Does not know: requests, or fleets.
Source: the regimes and their loads of the project's headroom measurement.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

# Length of a regime, s.
_SPAN_RANGE_S = (60.0, 180.0)


class RegimeKind(StrEnum):
    """What a stretch of an episode is like."""

    STEADY = "steady"  # a steady site: all of the episode
    USUAL = "usual"
    BURSTS = "bursts"  # traffic becomes bursty code completion
    LONG_PROMPTS = "long-prompts"
    FAILURE = "failure"  # a quarter of the replicas is lost for 40-60 s, others are slow
    OVERLOAD = "overload"
    SLO_MIX = "slo-mix"  # most requests are urgent, with tighter limits


CHANGING: tuple[RegimeKind, ...] = tuple(RegimeKind)[1:]
"""Regimes of a changing site."""

USUAL_LOAD_FRAC = 0.8
"""Load of the usual regime to which the loads of the others belong."""
# Load over capacity, at a site whose usual load is `USUAL_LOAD_FRAC`.
_LOAD_FRACS: dict[RegimeKind, float] = {
    RegimeKind.STEADY: USUAL_LOAD_FRAC,
    RegimeKind.USUAL: USUAL_LOAD_FRAC,
    RegimeKind.BURSTS: 0.7,
    RegimeKind.LONG_PROMPTS: 0.8,
    RegimeKind.FAILURE: 0.75,
    RegimeKind.OVERLOAD: 1.25,
    RegimeKind.SLO_MIX: 0.9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeSpan:
    """One regime of an episode."""

    kind: RegimeKind
    start_s: float
    end_s: float
    load_frac: float
    """Rate over the capacity for this regime's traffic."""

    @property
    def span_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


def draw_schedule(
    kinds: tuple[RegimeKind, ...], load_frac: float, span_s: float, rng: np.random.Generator
) -> tuple[RegimeSpan, ...]:
    """Return the regimes of an episode, in order: each kind once in random order, then again.

    No kind follows itself where there is another. What is left at the end, if it is short, belongs
    to the last regime, which may so be half as long again as others.
    """
    spans: list[RegimeSpan] = []
    order: list[RegimeKind] = []
    start_s = 0.0
    while start_s < span_s:
        if not order:
            order = [kinds[i] for i in rng.permutation(len(kinds))]
            if spans and len(order) > 1 and order[0] is spans[-1].kind:
                order.append(order.pop(0))
        kind = order.pop(0)
        end_s = start_s + float(rng.uniform(*_SPAN_RANGE_S))
        if span_s - end_s < 0.5 * _SPAN_RANGE_S[0]:
            end_s = span_s
        load = _LOAD_FRACS[kind] * load_frac / USUAL_LOAD_FRAC
        spans.append(RegimeSpan(kind=kind, start_s=start_s, end_s=end_s, load_frac=load))
        start_s = end_s
    return tuple(spans)

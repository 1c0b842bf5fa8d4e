"""Policies compared on a live fleet: they take turns, and the order of a round mirrors the last.

With two policies the turns go A B, B A, A B: what drifts slowly weighs on both alike. Everything
is paired by round, as an evaluation in the simulator is by workload, so the same table shows it.

Does not know: where requests come from (`live_traffic.py`), or how results are shown.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...agents.evaluation import (
    DEFAULT_WINDOW_S,
    Evaluation,
    KnobTrack,
    PolicyMaker,
    PolicyResult,
    knob_track,
    policy_result,
)
from ...agents.policy import Policy
from ...env.fleet import Fleet, WindowOutcome
from ...env.knobs import Knobs
from ...env.scenario import Part
from .live_traffic import Traffic, TurnOutcome

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Turn:
    outcome: TurnOutcome
    track: KnobTrack
    num_arrived: int
    span_s: float


def turn_order(names: list[str], round_index: int) -> list[str]:
    """Return who plays when in a round: forth, then back."""
    return names if round_index % 2 == 0 else names[::-1]


def evaluate_live(
    fleet: Fleet,
    makers: Mapping[str, PolicyMaker],
    traffic: Traffic,
    *,
    num_rounds: int,
    window_s: float = DEFAULT_WINDOW_S,
    on_run: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Let every policy play one turn in each round; `on_run` is called after each turn.

    Raises:
        ValueError: there is no round or no policy.
        TrimtabError: the fleet cannot be reached, or a load fails.
    """
    if num_rounds < 1 or not makers:
        msg = f"expected at least 1 round and 1 policy, got {num_rounds} and {len(makers)}"
        raise ValueError(msg)
    turns: dict[str, list[_Turn]] = {name: [] for name in makers}
    for round_index in range(num_rounds):
        for turn_index, name in enumerate(turn_order(list(makers), round_index)):
            policy = makers[name]()
            turns[name].append(_play(fleet, policy, traffic, (round_index, turn_index), window_s))
            on_run()
    every = [turn for row in turns.values() for turn in row]
    return Evaluation(
        scenario=f"{traffic.name} on {fleet.cluster.name}",
        part=Part.TEST,
        load_frac=float("nan"),
        rate_rps=sum(turn.num_arrived for turn in every) / sum(turn.span_s for turn in every),
        seed=0,
        policies=tuple(_result(name, row) for name, row in turns.items()),
        knob_tracks=tuple(row[0].track for row in turns.values() if row[0].track.at_s.size > 1),
        is_live=True,
    )


def _result(name: str, turns: list[_Turn]) -> PolicyResult:
    return policy_result(
        name, [turn.outcome.kpis for turn in turns], [turn.outcome.ttft_s for turn in turns]
    )


def _play(
    fleet: Fleet, policy: Policy, traffic: Traffic, place: tuple[int, int], window_s: float
) -> _Turn:
    """Let a policy rule while the requests of its turn come."""
    knobs = policy.begin()
    fleet.reset(seed=0, knobs=knobs)
    moments: list[float] = []
    settings: list[Knobs] = []
    windows: list[WindowOutcome] = []
    with contextlib.closing(traffic.begin(*place)) as turn:
        while not turn.is_over:
            asked = knobs if policy.is_constant else policy.act(fleet.state())
            # Those of a constant policy are said again too: their lease is short.
            in_force = fleet.apply(asked)
            if not windows and not np.allclose(in_force.values, asked.values):
                _LOG.warning("knobs of '%s' are beyond the gateway's limits", policy.name)
            windows.append(fleet.advance(window_s))
            moments.append(windows[-1].start_s - windows[0].start_s)
            settings.append(in_force)
        outcome = turn.outcome(windows)
    changes = 1 if policy.is_constant else len(settings)
    return _Turn(
        outcome=outcome,
        track=knob_track(policy.name, moments[:changes], settings[:changes]),
        num_arrived=sum(window.num_arrived for window in windows),
        span_s=windows[-1].end_s - windows[0].start_s,
    )

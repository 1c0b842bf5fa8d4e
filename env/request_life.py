"""The life of one request, read from what a fleet noted of it (`FleetConfig.watched_request`).

TTFT and the whole life are split by what the request did: it waited, or was admitted and waited
for its first chunk, or was in prefill, or decoded. Time before a crash or a preemption counts as
what it was, though its result was lost.

Does not know: how a life is shown (`scripts/simulate.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .kpis import is_met, tpot_s
from .placement import Placement, read_placement
from .shed_reason import shed_text
from .simulated_fleet import SimulatedFleet
from .simulator.layout import (
    DECODING,
    FAILED,
    FINISHED,
    FROZEN,
    MOVING,
    NONE,
    PENDING,
    PREFILLING,
    SHED,
    WAITING,
)
from .simulator.life import Moment, Phase

_MOMENTS = tuple(Moment)

STATUS_NAMES = {
    PENDING: "pending",
    WAITING: "waiting",
    PREFILLING: "prefilling",
    DECODING: "decoding",
    FINISHED: "finished",
    SHED: "shed",
    FAILED: "failed",
    MOVING: "moving",
    FROZEN: "frozen",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeNote:
    """One moment of a request's life."""

    at_s: float
    """On the fleet's clock."""
    since_arrival_s: float
    moment: str
    """Name of the kind of moment."""
    phase: Phase
    """What the request does from then on."""
    replica: str | None
    text: str
    """What happened, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLife:
    """All that is known of one request after a run."""

    request: int
    """Row in the workload, counted from 0."""
    arrival_s: float
    priority: int
    session_place: int
    """How many requests of its session had arrived, itself included."""
    input_tokens: int
    output_tokens: int
    weight: float
    ttft_slo_s: float
    tpot_slo_s: float
    status: str
    refusal: str | None
    """Why it was refused, if it was."""
    worth_frac: float
    """Share of its worth that is left: below 1 if an emergency cut its answer."""
    is_met: bool
    """Whether it finished within both limits."""
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    hit_tokens: int
    """Prompt tokens found in the prefix cache at its first admission."""
    num_preemptions: int
    num_dispatches: int
    ttft_split_s: dict[str, float]
    """TTFT by what the request did: waiting, prefill, rest; empty if there was no token."""
    phases_s: dict[str, float]
    """Time from arrival to the last note, by phase."""
    notes: tuple[LifeNote, ...]
    placements: tuple[Placement, ...]


def _notes(fleet: SimulatedFleet, arrival_s: float, names: list[str]) -> Iterator[LifeNote]:
    num_notes = min(int(fleet.arrays.fleet["num_notes"][0]), fleet.arrays.life.size)
    for row in fleet.arrays.life[:num_notes]:
        moment = _MOMENTS[int(row["moment"])]
        replica = None if row["replica"] == NONE else names[int(row["replica"])]
        yield LifeNote(
            at_s=float(row["at_s"]),
            since_arrival_s=float(row["at_s"]) - arrival_s,
            moment=moment.name.lower(),
            phase=moment.phase,
            replica=replica,
            text=_text(moment, replica, float(row["value"])),
        )


def _text(moment: Moment, replica: str | None, value: float) -> str:
    """Return what happened, in words; the value of a refusal is its reason."""
    text = moment.text.format(replica=replica, value=value)
    reason = shed_text(int(value)) if moment is Moment.SHED else None
    return f"{text}: {reason}" if reason else text


def _phases(notes: tuple[LifeNote, ...], until_s: float) -> dict[str, float]:
    """Return the time from the first note until a moment, by phase."""
    spans: dict[str, float] = {}
    for one, next_one in pairwise(notes):
        span_s = max(0.0, min(next_one.at_s, until_s) - one.at_s)
        if span_s > 0.0:
            spans[one.phase.value] = spans.get(one.phase.value, 0.0) + span_s
    return spans


def _ttft_split(
    notes: tuple[LifeNote, ...], first_token_s: float, ttft_s: float
) -> dict[str, float]:
    if not np.isfinite(first_token_s):
        return {}
    spans = _phases(notes, first_token_s)
    waiting_s, prefill_s = (spans.get(phase, 0.0) for phase in (Phase.WAITING, Phase.PREFILL))
    rest_s = max(0.0, ttft_s - waiting_s - prefill_s)
    return {"waiting": waiting_s, "prefill": prefill_s, "rest": rest_s}


def _placements(fleet: SimulatedFleet, names: list[str]) -> Iterator[Placement]:
    """Placements in order; each ends in a dispatch or a refusal."""
    ends = fleet.arrays.life[: int(fleet.arrays.fleet["num_notes"][0])]
    ends = ends[np.isin(ends["moment"], (Moment.DISPATCHED, Moment.SHED))]
    count = min(int(fleet.arrays.fleet["num_placements"][0]), fleet.arrays.placements.size)
    for place, end in zip(range(count), ends, strict=False):
        chosen = int(end["replica"]) if end["moment"] == Moment.DISPATCHED else None
        yield read_placement(fleet.arrays, place, names, chosen)


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def read_life(fleet: SimulatedFleet) -> RequestLife:
    """Return what a fleet noted of its watched request until now.

    Raises:
        ValueError: no request is watched.
    """
    row = int(fleet.arrays.fleet["watched_request"][0])
    if row == NONE:
        msg = "no request is watched; set FleetConfig(watched_request=...) before the run"
        raise ValueError(msg)
    request = fleet.arrays.requests[row : row + 1]
    query, arrival_s = request["query"], float(request["arrival_s"][0])
    names = [replica.name for replica in fleet.cluster.replicas]
    notes = tuple(_notes(fleet, arrival_s, names))
    ttft_s = float(request["first_token_s"][0]) - arrival_s
    is_done = int(request["status"][0]) == FINISHED
    sessions = fleet.arrays.requests["query"]["session_hash"][: row + 1]
    return RequestLife(
        request=row,
        arrival_s=arrival_s,
        priority=int(query["priority"][0]),
        session_place=int((sessions == sessions[-1]).sum()),
        input_tokens=int(query["input_tokens"][0]),
        output_tokens=int(request["output_tokens"][0]),
        weight=float(request["weight"][0]),
        ttft_slo_s=float(query["ttft_slo_s"][0]),
        tpot_slo_s=float(query["tpot_slo_s"][0]),
        status=STATUS_NAMES[int(request["status"][0])],
        refusal=shed_text(int(request["shed_reason"][0])),
        worth_frac=float(request["worth_frac"][0]),
        is_met=bool(is_met(request)[0]),
        ttft_s=_or_none(ttft_s),
        tpot_s=_or_none(float(tpot_s(request)[0])),
        e2e_s=_or_none(float(request["finish_s"][0]) - arrival_s) if is_done else None,
        hit_tokens=int(request["hit_tokens"][0]),
        num_preemptions=int(request["num_preemptions"][0]),
        num_dispatches=int(request["num_dispatches"][0]),
        ttft_split_s=_ttft_split(notes, float(request["first_token_s"][0]), ttft_s),
        phases_s=_phases(notes, np.inf),
        notes=notes,
        placements=tuple(_placements(fleet, names)),
    )

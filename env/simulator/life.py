"""What happens to one watched request, noted while the simulation runs.

Costs one comparison at each note when nobody is watched. A new kind of moment is one line of
`Moment` and one call of `note` where it happens.

Does not know: why something happened, or how it is shown (`..request_life`).
"""

from enum import IntEnum, StrEnum

import numpy as np

from ..compiled import compiled
from ..dispatch import VIEW_DTYPE
from ..lookahead.decide import CHOICE_DTYPE
from ..lookahead.settings import MAX_CANDIDATES
from .layout import FINISHED, LIFE_DTYPE, NONE, PLACEMENT_DTYPE, PREFILLING
from .memory import (
    fleet_of,
    gateways_of,
    hits_of,
    life_of,
    placements_of,
    random_of,
    replicas_of,
    requests_of,
    seen_hits_of,
    seen_views_of,
    views_of,
)

# Most notes and placements of the watched request that are kept; later ones are only counted.
MAX_NOTES = 256
MAX_PLACEMENTS = 16


class Phase(StrEnum):
    """What a request does between two moments."""

    WAITING = "waiting"
    """Is on its way to running: in a waiting list, or between replicas."""
    ADMITTED = "admitted"
    """Has its KV pages, and no chunk of it is computed yet."""
    PREFILL = "prefill"
    DECODE = "decode"
    ENDED = "ended"


class Moment(IntEnum):
    """Kinds of moments in a request's life.

    Each has the phase that it begins and its words, in which `{replica}` and `{value}` are those
    of the note.
    """

    phase: Phase
    text: str

    def __new__(cls, number: int, phase: Phase, text: str) -> "Moment":
        """Make a member that carries its phase and words."""
        moment = int.__new__(cls, number)
        moment._value_ = number
        moment.phase = phase
        moment.text = text
        return moment

    DISPATCHED = 0, Phase.WAITING, "sent here; first token predicted in {value:.4f} s"
    SHED = 1, Phase.ENDED, "refused by the gateway"
    ADMITTED = 2, Phase.ADMITTED, "admitted; {value:.0f} tokens of it cached"
    PREFILL = 3, Phase.PREFILL, "first chunk starts; {value:.0f} tokens to compute"
    FIRST_TOKEN = 4, Phase.DECODE, "first token"
    RESUMED = 5, Phase.DECODE, "computed anew; token {value:.0f}"
    PREEMPTED = 6, Phase.WAITING, "preempted after token {value:.0f}"
    LOST = 7, Phase.WAITING, "the replica crashed; it had streamed {value:.0f} tokens"
    FINISHED = 8, Phase.ENDED, "finished with {value:.0f} tokens"
    FAILED = 9, Phase.ENDED, "failed after {value:.0f} tokens"
    DEPARTED = 10, Phase.WAITING, "leaves with {value:.0f} tokens of KV"
    LANDED = 11, Phase.DECODE, "its KV has come; it decodes from the next iteration on"
    SWAPPED_OUT = 12, Phase.WAITING, "its KV goes to host memory, {value:.0f} pages"
    SWAPPED_IN = 13, Phase.DECODE, "its KV is back, {value:.0f} pages; it decodes on"
    FROZEN = (
        14,
        Phase.WAITING,
        "stands still by an emergency action; it keeps {value:.0f} tokens of KV",
    )
    THAWED = 15, Phase.DECODE, "decodes on, with {value:.0f} tokens of KV"


def life_arrays(
    watched_request: int | None, num_requests: int, num_replicas: int
) -> dict[str, np.ndarray]:
    """Return the arrays that notes go into, by name; empty when nobody is watched.

    Raises:
        ValueError: there is no such request.
    """
    is_watched = watched_request is not None
    if watched_request is not None and not 0 <= watched_request < num_requests:
        msg = f"watched_request must be a row from 0 to {num_requests - 1}, got {watched_request}"
        raise ValueError(msg)
    num_placements = MAX_PLACEMENTS * is_watched
    return {
        "life": np.zeros(MAX_NOTES * is_watched, dtype=LIFE_DTYPE),
        "placements": np.zeros(num_placements, dtype=PLACEMENT_DTYPE),
        "seen_views": np.zeros((num_placements, num_replicas), dtype=VIEW_DTYPE),
        "seen_hits": np.zeros((num_placements, num_replicas), dtype=np.int64),
        "seen_choices": np.zeros((num_placements, MAX_CANDIDATES), dtype=CHOICE_DTYPE),
    }


@compiled
def note(sim, index, moment, at_s, replica, value):
    """Write down a moment of a request if it is the watched one."""
    fleet = fleet_of(sim)
    if index != fleet.watched_request:
        return
    if fleet.num_notes < life_of(sim).size:
        row = life_of(sim)[fleet.num_notes]
        row.at_s = at_s
        row.moment = moment
        row.replica = replica
        row.value = value
    fleet.num_notes += 1


@compiled
def note_token(sim, index):
    """Note that a prefill has ended in a token: the first, or one after a preemption."""
    request = requests_of(sim)[index]
    moment = Moment.FIRST_TOKEN if request.generated_tokens == 1 else Moment.RESUMED
    clock_s = replicas_of(sim)[request.replica].clock_s
    note(sim, index, moment, clock_s, request.replica, request.generated_tokens)


@compiled
def note_end(sim, index):
    """Note that a request has finished or failed."""
    request = requests_of(sim)[index]
    moment = Moment.FINISHED if request.status == FINISHED else Moment.FAILED
    note(sim, index, moment, request.finish_s, request.replica, request.generated_tokens)


@compiled
def _is_in_chunk(sim, r, index, chunk_tokens):
    """Whether the next chunk of a replica's prefill list reaches a request."""
    requests, before = requests_of(sim), replicas_of(sim)[r].prefill_head
    while before != NONE and before != index and chunk_tokens > 0:
        chunk_tokens -= (
            requests[before].prefill_target_tokens - requests[before].prefill_done_tokens
        )
        before = requests[before].next
    return before == index and chunk_tokens > 0


@compiled
def note_first_chunk(sim, r, chunk_tokens):
    """Note that the iterations which start on a replica are the watched request's first."""
    fleet = fleet_of(sim)
    index = fleet.watched_request
    if index == NONE or fleet.num_notes == 0 or fleet.num_notes > life_of(sim).size:
        return
    request = requests_of(sim)[index]
    if (
        request.replica == r
        and request.status == PREFILLING
        and life_of(sim)[fleet.num_notes - 1].moment == Moment.ADMITTED
        and _is_in_chunk(sim, r, index, chunk_tokens)
    ):
        left = request.prefill_target_tokens - request.prefill_done_tokens
        note(sim, index, Moment.PREFILL, replicas_of(sim)[r].clock_s, r, left)


@compiled
def keep_view(sim, index, now_s):
    """Keep what the gateway goes by when it is about to place the watched request."""
    fleet = fleet_of(sim)
    if index != fleet.watched_request:
        return
    if fleet.num_placements < placements_of(sim).size:
        placement = placements_of(sim)[fleet.num_placements]
        placement.at_s = now_s
        placement.expected_output_tokens = requests_of(sim)[index].query.expected_output_tokens
        g = requests_of(sim)[index].gateway
        placement.cursor = gateways_of(sim)[g].cursor
        placement.random_state = random_of(sim, 2 * g)[0]
        views = seen_views_of(sim, fleet.num_placements)
        hits = seen_hits_of(sim, fleet.num_placements)
        for r in range(sim.num_replicas):
            views[r] = views_of(sim, g)[r]
            hits[r] = hits_of(sim)[r]
    fleet.num_placements += 1

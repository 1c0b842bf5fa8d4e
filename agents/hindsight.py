"""What an episode could have come to: the best placements that a search finds when all is known.

A placement says to which replica each request goes, or that it is refused. Given one, the replicas
of a site do not touch each other: a request that goes elsewhere changes two of them, and they
alone are simulated anew, exactly. The search begins at a schedule that is known and keeps what is
not worse, so it never ends below its start, and is itself a lower bound on the best there is.

Does not know: the scheduler that it begins with, or regimes in which replicas are lost.
Source: the project's headroom study, section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..env.knobs import Knobs
from ..env.kpis import is_met
from ..env.masks import Mask
from ..env.restrictions import Restrictions, open_groups
from ..env.simulated_fleet import SimulatedFleet
from ..env.simulator.layout import SHED
from ..env.sites import Episode

Placement = NDArray[np.int64]
"""Replica of each request in order of arrival; the number of replicas for one that is refused."""

# Nothing is placed by what pages say, so none need be read.
_SCRAPE_S = 1e6
# Of the moves: share that takes a request which is not met, and of the others, share that takes
# the rest of its session along.
_MISSED_FRAC, _SESSION_FRAC = 0.6, 0.3


def placement_of(requests: np.ndarray, num_replicas: int) -> Placement:
    """Return where the requests of a drained fleet went; REQUEST_DTYPE [N] to int64 [N]."""
    return np.where(requests["status"] == SHED, num_replicas, requests["replica"])


class Replay:
    """An episode's fleet under placements that are given, its trouble as it was.

    Raises:
        ValueError: replicas are lost in the episode, so placements cannot be obeyed.
    """

    def __init__(self, episode: Episode) -> None:
        if episode.config.script:
            msg = (
                f"episode {episode.number} of site '{episode.site.name}' loses replicas; "
                "hindsight needs one without failures"
            )
            raise ValueError(msg)
        self.num_replicas = episode.site.num_replicas
        config = replace(
            episode.config,
            scrape_interval_s=_SCRAPE_S,
            restrictions=_one_group_each(self.num_replicas),
        )
        self._fleet = SimulatedFleet(episode.cluster, episode.workload, config)
        self._fleet.reset(seed=episode.number, knobs=Knobs())
        self._start = self._fleet.snapshot()

    def run(self, placement: Placement) -> SimulatedFleet:
        """Return the fleet at the end of a placement; the next run overwrites it.

        Raises:
            ValueError: the placement is of another number of requests.
        """
        self._fleet.restore(self._start)
        groups = self._fleet.arrays.requests["query"]["group"]
        if placement.shape != groups.shape:
            msg = f"placement must have shape {groups.shape}, got {placement.shape}"
            raise ValueError(msg)
        groups[:] = placement
        self._fleet.drain()
        return self._fleet

    def worth(self, placement: Placement, replicas: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weight that each request of some replicas brings in, 0 for all others; [N]."""
        chosen = np.isin(placement, replicas)
        requests = self.run(np.where(chosen, placement, self.num_replicas)).arrays.requests
        return np.where(is_met(requests), requests["weight"] * requests["worth_frac"], 0.0)


def _one_group_each(num_replicas: int) -> Restrictions:
    """Return a group of requests for each replica, and one that may go nowhere."""
    masks = np.full((num_replicas + 1, num_replicas), int(Mask.PLAN), np.uint16)
    np.fill_diagonal(masks, 0)
    return Restrictions(
        names=(*(f"replica {i}" for i in range(num_replicas)), "refused"),
        masks=masks,
        penalties=np.zeros(masks.shape),
        groups=open_groups(num_replicas + 1),
        table=np.zeros((1, 1), np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """What a search found."""

    placement: Placement
    start_goodput: float
    """Of the placement that it began with."""
    goodput: float
    goodput_by_quarter: tuple[float, ...]
    """After each quarter of the moves; still rising at the end, it is a loose bound."""
    num_kept: int
    """Moves that were kept."""


def search(replay: Replay, start: Placement, *, num_moves: int, seed: int = 0) -> Hindsight:
    """Return the best placement found: first what misses is refused, then requests are moved.

    Raises:
        ValueError: `num_moves` is below 0.
    """
    if num_moves < 0:
        msg = f"num_moves must be at least 0, got {num_moves}"
        raise ValueError(msg)
    place = start.copy()
    worth = replay.worth(place, np.arange(replay.num_replicas))
    requests = replay.run(place).arrays.requests
    weight, sessions = float(requests["weight"].sum()), requests["query"]["session_hash"].copy()
    first, rng, num_kept, quarters = float(worth.sum()), np.random.default_rng(seed), 0, []
    for moved, to in _refusals(replay, place, worth):
        num_kept += _try(replay, place, worth, moved, to)
    for i in range(num_moves):
        moved, to = _draw_move(place, worth, sessions, replay.num_replicas, rng)
        num_kept += _try(replay, place, worth, moved, to)
        if (i + 1) * 4 // num_moves > i * 4 // num_moves:
            quarters.append(float(worth.sum()) / weight)
    return Hindsight(
        placement=place,
        start_goodput=first / weight,
        goodput=float(worth.sum()) / weight,
        goodput_by_quarter=tuple(quarters),
        num_kept=num_kept,
    )


Move = tuple[NDArray[np.int64], int]


def _refusals(replay: Replay, place: Placement, worth: NDArray[np.float64]) -> Iterator[Move]:
    """Yield, for each replica, the refusal of all its requests that miss."""
    for r in range(replay.num_replicas):
        yield np.flatnonzero((place == r) & (worth == 0.0)), replay.num_replicas


def _draw_move(
    place: Placement,
    worth: NDArray[np.float64],
    sessions: NDArray[np.uint64],
    num_replicas: int,
    rng: np.random.Generator,
) -> Move:
    """Return requests to move, and the replica that they go to."""
    missed = np.flatnonzero(worth == 0.0)
    to = int(rng.integers(num_replicas))
    if missed.size and rng.random() < _MISSED_FRAC:
        return missed[[rng.integers(missed.size)]], to
    i = int(rng.integers(place.size))
    if rng.random() < _SESSION_FRAC:
        is_rest = (sessions == sessions[i]) & (place == place[i])
        is_rest[:i] = False
        return np.flatnonzero(is_rest), to
    return np.array([i]), to


def _try(
    replay: Replay, place: Placement, worth: NDArray[np.float64], moved: NDArray[np.int64], to: int
) -> bool:
    """Make a move if it is not worse, or better where it takes in what was refused."""
    if moved.size == 0 or (place[moved] == to).all():
        return False
    after = place.copy()
    after[moved] = to
    touched = np.union1d(place[moved], [to])
    new = replay.worth(after, touched[touched < replay.num_replicas])
    is_touched = np.isin(after, touched)
    gain = new[is_touched].sum() - worth[is_touched].sum()
    is_taken_in = bool((place[moved] == replay.num_replicas).any())
    if gain < 0.0 or (is_taken_in and gain == 0.0):
        return False
    place[moved] = to
    worth[is_touched] = new[is_touched]
    return True

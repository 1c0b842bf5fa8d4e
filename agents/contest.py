"""Schedulers on the same episodes of sites.

All contenders meet the same arrivals, trouble and lost scrapes, so their goodput is compared in
pairs.

Does not know: how results are summed up or shown.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..env.guard import Guard
from ..env.knobs import Knobs
from ..env.kpis import Kpis
from ..env.lookahead.settings import LookaheadSettings
from ..env.simulated_fleet import SimulatedFleet
from ..env.simulator.setup import FleetConfig
from ..env.sites import Episode, RegimeKind
from ..env.value.network import ValueNetwork
from .policy import Policy

WINDOW_S = 2.0
"""Time between two settings of the knobs by a policy that moves them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One scheduler, with all that it needs."""

    name: str
    knobs: Knobs
    """In force where no policy moves them."""
    lookahead: LookaheadSettings | None = None
    """Places by worth, found by rollouts."""
    value: ValueNetwork | None = None
    """Places by worth, foretold by a network."""
    scrape_interval_s: float | None = None
    """Its own time between reads of metrics pages; None: the site's."""
    make_policy: Callable[[], Policy] | None = None
    """Makes what moves the knobs in a run; None: they stay."""
    make_guard: Callable[[], Guard] | None = None
    """Makes what stands between policy and fleet in a run."""

    def config(self, base: FleetConfig) -> FleetConfig:
        """Return a site's configuration with this scheduler."""
        own = replace(base, lookahead=self.lookahead, value=self.value)
        if self.scrape_interval_s is None:
            return own
        return replace(own, scrape_interval_s=self.scrape_interval_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One episode under one contender."""

    contender: str
    site: str
    number: int
    """Of the episode."""
    goodput_frac: float
    goodput_by_regime: dict[RegimeKind, float]
    """Goodput of the requests that arrived in each kind of regime."""
    kpis: Kpis


def start(episode: Episode, contender: Contender) -> tuple[SimulatedFleet, Policy | None]:
    """Return the fleet of an episode under a contender, at its start, and what moves its knobs."""
    guard = contender.make_guard() if contender.make_guard is not None else None
    config = contender.config(episode.config)
    fleet = SimulatedFleet(episode.cluster, episode.workload, config, guard=guard)
    policy = contender.make_policy() if contender.make_policy is not None else None
    knobs = contender.knobs if policy is None else policy.begin()
    fleet.reset(seed=episode.number, knobs=knobs)
    return fleet, policy


def play_out(episode: Episode, contender: Contender) -> SimulatedFleet:
    """Play an episode and return its fleet at the end; its number is also the trouble's seed."""
    fleet, policy = start(episode, contender)
    while policy is not None and not policy.is_constant and fleet.now_s < episode.span_s:
        fleet.apply(policy.act(fleet.state()))
        fleet.advance(WINDOW_S)
    fleet.drain()
    return fleet


def run_of(episode: Episode, name: str, fleet: SimulatedFleet) -> Run:
    """Return what an episode came to, by the fleet at its end."""
    kpis = fleet.kpis()
    return Run(
        contender=name,
        site=episode.site.name,
        number=episode.number,
        goodput_frac=kpis.goodput_frac,
        goodput_by_regime=episode.goodput_by_regime(fleet.requests),
        kpis=kpis,
    )


def play(episode: Episode, contender: Contender) -> Run:
    """Play an episode to its end; its number is also the seed of its trouble."""
    return run_of(episode, contender.name, play_out(episode, contender))


def play_all(
    episodes: Sequence[Episode],
    contenders: Sequence[Contender],
    *,
    num_workers: int | None = None,
    on_run: Callable[[Run], None] = lambda run: None,
) -> dict[str, list[Run]]:
    """Play every episode under every contender; by contender's name, in the episodes' order.

    `on_run` is called after each run, from the thread that asked for all of them.
    """
    with ThreadPoolExecutor(max_workers=num_workers or os.cpu_count()) as pool:
        futures = {
            contender.name: [pool.submit(play, episode, contender) for episode in episodes]
            for contender in contenders
        }
        runs: dict[str, list[Run]] = {}
        for name, row in futures.items():
            runs[name] = []
            for future in row:
                runs[name].append(future.result())
                on_run(runs[name][-1])
    return runs

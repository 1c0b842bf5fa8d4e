"""Who takes part in the benchmark of decisions.

Rules of other projects take part as they ship, without shedding, and again with this project's
predictive shedding; llm-d's also with its own scrape interval and random choice among equals.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trimtab.agents.contest import Contender
from trimtab.agents.heuristics import HEURISTICS
from trimtab.agents.knob_search import SearchBudget
from trimtab.agents.site_tuning import SiteTuningConfig, tune_on_episodes
from trimtab.agents.universal import universal_scorer, universal_worth
from trimtab.env.knobs import KNOBS_DTYPE, Knobs
from trimtab.env.lookahead.settings import LookaheadSettings
from trimtab.env.sites import Site, TraceLibrary, site_episode
from trimtab.traces.atomic import replace_file

UNIVERSAL = "universal-scorer"
SITE_TUNED = "site-tuned-scorer"
WORTH = "marginal-value"
SITE_WORTH = "site-tuned-value"
LOOKAHEAD = "lookahead-4x3"
DEEP_LOOKAHEAD = "lookahead-8x6"
FULL = "full-information"
SHED_SUFFIX = "+shed"

# llm-d's endpoint picker reads metrics pages every 50 ms, whatever the site does.
_LLMD_SCRAPE_S = 0.05
# Below any difference of scores that a rule means: its picker draws among equals.
_TIE_WEIGHT = 1e-6
# What a site's own tuning may see, none of which is judged on.
_TUNING_EPISODES, _VALIDATION_EPISODES = range(1000, 1006), range(1006, 1010)
_TUNING_SPAN_S = 30.0
_BUDGET = SearchBudget(num_generations=12, population=10, step_size=0.4)
_MOST_REQUESTS = 6000


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Which contenders take part."""

    has_tuned: bool = True
    """Those that are tuned for the site, seconds of CPU each."""
    has_bounds: bool = True
    """Deep rollouts, and full information."""


def contenders(
    site: Site, traces: TraceLibrary | None, field: Field, cache: Path
) -> list[Contender]:
    """Return the schedulers for a site."""
    found = [Contender(name=one.name, knobs=one.knobs) for one in HEURISTICS.values()]
    found += _with_shedding()
    found += _llmd()
    found += _rollouts(field)
    if field.has_tuned:
        tuned = {SITE_TUNED: universal_scorer(), SITE_WORTH: universal_worth()}
        found += [
            Contender(name=name, knobs=site_tuned(site, traces, base, cache))
            for name, base in tuned.items()
        ]
    return found


def _with_shedding() -> Iterator[Contender]:
    for one in HEURISTICS.values():
        if one.is_imported and one.name != "random":
            shed = one.knobs.replace({"shed_enabled": 1.0})
            yield Contender(name=one.name + SHED_SUFFIX, knobs=shed)


def _llmd() -> Iterator[Contender]:
    knobs = HEURISTICS["llm-d-weighted"].knobs.replace({"random_weight": _TIE_WEIGHT})
    yield Contender(name="llm-d-50ms", knobs=knobs, scrape_interval_s=_LLMD_SCRAPE_S)
    yield Contender(
        name="llm-d-50ms" + SHED_SUFFIX,
        knobs=knobs.replace({"shed_enabled": 1.0}),
        scrape_interval_s=_LLMD_SCRAPE_S,
    )


def _rollouts(field: Field) -> Iterator[Contender]:
    knobs = universal_scorer()
    yield Contender(name=LOOKAHEAD, knobs=knobs, lookahead=LookaheadSettings())
    if field.has_bounds:
        deep = LookaheadSettings(num_candidates=8, num_samples=6)
        yield Contender(name=DEEP_LOOKAHEAD, knobs=knobs, lookahead=deep)
        all_seen = LookaheadSettings(num_candidates=32, num_samples=1, sees_all=True, cache_s=0.0)
        whole = knobs.replace({"slo_margin": 1.0})
        yield Contender(name=FULL, knobs=whole, lookahead=all_seen)


def site_tuned(site: Site, traces: TraceLibrary | None, base: Knobs, cache: Path) -> Knobs:
    """Return knobs tuned for a site from a universal setting, remembered on disk."""
    content = repr((site, base.as_dict(), KNOBS_DTYPE.names, _BUDGET, _TUNING_SPAN_S))
    file = cache / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if file.is_file():
        return base.replace(json.loads(file.read_text(encoding="utf-8")))
    rate_span_s = _TUNING_SPAN_S
    train = [site_episode(site, i, traces, span_s=rate_span_s) for i in _TUNING_EPISODES]
    while max(episode.workload.requests.size for episode in train) > _MOST_REQUESTS:
        rate_span_s /= 2.0
        train = [site_episode(site, i, traces, span_s=rate_span_s) for i in _TUNING_EPISODES]
    check = [site_episode(site, i, traces, span_s=rate_span_s) for i in _VALIDATION_EPISODES]
    config = SiteTuningConfig(budget=_BUDGET, episodes_per_generation=3)
    found = tune_on_episodes(base, train, check, config).knobs
    changed = {name: v for name, v in found.as_dict().items() if v != base[name]}
    replace_file(file, json.dumps(changed).encode())
    return found


__all__ = [
    "DEEP_LOOKAHEAD",
    "FULL",
    "LOOKAHEAD",
    "SHED_SUFFIX",
    "SITE_TUNED",
    "SITE_WORTH",
    "UNIVERSAL",
    "WORTH",
    "Field",
    "contenders",
    "site_tuned",
]

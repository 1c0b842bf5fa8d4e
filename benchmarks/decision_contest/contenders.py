"""Who takes part in the benchmark of decisions.

Rules of other projects take part as they ship, without shedding, and again with this project's
predictive shedding, untuned and tuned over sites. llm-d's also take part with random choice among
equals, and with that and its own scrape interval: its weights live on the metrics pages, and where
a site reads them every second all that arrives in between goes to one replica.

To add one: a name, a line in `contenders`, and where it may lack, one in `absent`.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.agents.bundle import load_bundle
from trimtab.agents.contest import Contender
from trimtab.agents.heuristics import HEURISTICS
from trimtab.agents.knob_search import SearchBudget
from trimtab.agents.policy import LearnedPolicy
from trimtab.agents.site_tuning import SiteTuningConfig, tune_on_episodes
from trimtab.agents.universal import universal_scorer, universal_worth
from trimtab.agents.value_file import load_value
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
HINDSIGHT = "hindsight"
SHED_SUFFIX, TUNED_SHED_SUFFIX = "+shed", "+tuned-shed"
LLMD, LLMD_TIES, LLMD_OWN = "llm-d-weighted", "llm-d-ties", "llm-d-50ms"

# llm-d's endpoint picker reads metrics pages every 50 ms, whatever the site does, s.
_LLMD_SCRAPE_S = 0.05
# Below any difference of scores that a rule means: its max-score picker shuffles equals first.
_TIE_WEIGHT = 1e-6
# What the prediction behind shedding, and its thresholds, are made of.
_SHED_KNOBS = (
    *("backlog", "elapsed", "iteration", "ttft_drift", "iteration_drift"),
    *("shed_interactive", "shed_batch"),
)
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
    num_moves: int = 1500
    """Of the search in hindsight, for each episode without failures; 0: none."""
    bundles: tuple[tuple[str, Path], ...] = ()
    """Names and directories of policies that move the knobs."""
    networks: tuple[tuple[str, Path], ...] = ()
    """Names and files of value networks, to place by instead of the closed form."""
    only: frozenset[str] = frozenset()
    """Contenders that take part; empty for all."""

    def has(self, name: str) -> bool:
        """Whether a contender is wanted."""
        return not self.only or name in self.only


def contenders(
    site: Site, traces: TraceLibrary | None, field: Field, cache: Path
) -> list[Contender]:
    """Return the schedulers for a site; the search in hindsight is none, it needs their runs."""
    found = [Contender(name=one.name, knobs=one.knobs) for one in HEURISTICS.values()]
    found += _llmd()
    found += [shedding for one in found for shedding in _with_shedding(one)]
    found += _rollouts(field)
    found += [_learned(name, path) for name, path in field.bundles]
    found += [
        Contender(name=name, knobs=universal_worth(), value=load_value(path))
        for name, path in field.networks
    ]
    if field.has_tuned:
        tuned = {SITE_TUNED: universal_scorer(), SITE_WORTH: universal_worth()}
        found += [
            Contender(name=name, knobs=site_tuned(site, traces, base, cache))
            for name, base in tuned.items()
            if field.has(name)
        ]
    return [one for one in found if field.has(one.name)]


def absent(field: Field) -> dict[str, str]:
    """Return who does not take part, and why."""
    found = {}
    if not field.bundles:
        found["PPO over each base"] = "no bundle; give --bundle NAME=DIRECTORY"
    if not field.networks:
        found["learned value network"] = "no weights; give --network NAME=FILE"
    if not field.has_tuned:
        found |= dict.fromkeys((SITE_TUNED, SITE_WORTH), "--quick or --no-tuned leaves tuning out")
    if not field.has_bounds:
        found |= dict.fromkeys((DEEP_LOOKAHEAD, FULL), "--quick leaves bounds out")
    if field.num_moves == 0:
        found[HINDSIGHT] = "--quick or --moves 0 leaves the search out"
    if field.only:
        found["all others"] = f"--only names {', '.join(sorted(field.only))}"
    return found


def _is_imported(name: str) -> bool:
    return name not in HEURISTICS or HEURISTICS[name].is_imported


def _with_shedding(one: Contender) -> Iterator[Contender]:
    # What is placed without a look at the fleet is refused without one.
    if not _is_imported(one.name) or one.name == "random":
        return
    tuned = {name: universal_scorer()[name] for name in _SHED_KNOBS}
    for suffix, own in ((SHED_SUFFIX, {}), (TUNED_SHED_SUFFIX, tuned)):
        knobs = one.knobs.replace({"shed_enabled": 1.0, **own})
        yield replace(one, name=one.name + suffix, knobs=knobs)


def _llmd() -> Iterator[Contender]:
    knobs = HEURISTICS[LLMD].knobs.replace({"random_weight": _TIE_WEIGHT})
    yield Contender(name=LLMD_TIES, knobs=knobs)
    yield Contender(name=LLMD_OWN, knobs=knobs, scrape_interval_s=_LLMD_SCRAPE_S)


def _rollouts(field: Field) -> Iterator[Contender]:
    knobs = universal_scorer()
    yield Contender(name=LOOKAHEAD, knobs=knobs, lookahead=LookaheadSettings())
    if field.has_bounds:
        deep = LookaheadSettings(num_candidates=8, num_samples=6)
        yield Contender(name=DEEP_LOOKAHEAD, knobs=knobs, lookahead=deep)
        all_seen = LookaheadSettings(num_candidates=32, num_samples=1, sees_all=True, cache_s=0.0)
        whole = knobs.replace({"slo_margin": 1.0})
        yield Contender(name=FULL, knobs=whole, lookahead=all_seen)


def _learned(name: str, path: Path) -> Contender:
    bundle = load_bundle(path)
    return Contender(
        name=name,
        knobs=bundle.base_knobs,
        make_policy=lambda: LearnedPolicy(bundle, name=name),
    )


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

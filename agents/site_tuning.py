"""Tuning over episodes of sites: one setting that is good at many fleets, or that of one site.

Every generation meets the same few episodes, drawn anew for the next. What is found is kept only if
it is better than the start on validation episodes.

Does not know: how sites are drawn.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..env.knobs import Knobs
from ..env.sites import Episode, Split, TraceLibrary, sample_site, site_episode
from ..env.state.feature import FloatArray
from .contest import Contender, play
from .knob_search import Progress, SearchBudget, knobs_to_tune, search_knobs
from .tuning import TuningResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTuningConfig:
    """Budget of a search over episodes.

    Raises:
        ValueError: a number is too small.
    """

    budget: SearchBudget = field(default_factory=lambda: SearchBudget(step_size=0.4))
    episodes_per_generation: int = 20
    """Episodes that all candidates of a generation meet."""
    num_workers: int = 1
    """Threads that play."""

    def __post_init__(self) -> None:
        for name in ("episodes_per_generation", "num_workers"):
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(msg)


def goodput_of(
    candidates: Sequence[Knobs], episodes: Sequence[Episode], pool: ThreadPoolExecutor
) -> FloatArray:
    """Return the goodput of each candidate on each episode, [candidates, episodes]."""
    contenders = [Contender(name=str(i), knobs=knobs) for i, knobs in enumerate(candidates)]
    rows = [[pool.submit(play, episode, one) for episode in episodes] for one in contenders]
    return np.array([[future.result().goodput_frac for future in row] for row in rows])


def tune_on_episodes(
    base: Knobs,
    episodes: Sequence[Episode],
    validation: Sequence[Episode],
    config: SiteTuningConfig | None = None,
    *,
    on_generation: Progress = lambda goodput: None,
) -> TuningResult:
    """Return knobs fitted to episodes; `base` itself unless they are better on the validation ones.

    Raises:
        ValueError: there is no episode to train or to validate on.
    """
    config = config or SiteTuningConfig()
    if not episodes or not validation:
        msg = f"need episodes to tune and validate on, got {len(episodes)} and {len(validation)}"
        raise ValueError(msg)
    rng = np.random.default_rng(config.budget.seed)
    num_chosen = min(config.episodes_per_generation, len(episodes))
    with ThreadPoolExecutor(max_workers=config.num_workers) as pool:

        def judge(candidates: Sequence[Knobs]) -> FloatArray:
            chosen = rng.choice(len(episodes), num_chosen, replace=False)
            met = goodput_of(candidates, [episodes[i] for i in chosen], pool)
            return np.asarray(met.mean(axis=1))

        names = knobs_to_tune(base)
        tuned = search_knobs(base, names, judge, config.budget, on_generation=on_generation)
        old, new = goodput_of([base, tuned], validation, pool).mean(axis=1)
    is_improved = bool(new > old)
    return TuningResult(
        knobs=tuned if is_improved else base,
        is_improved=is_improved,
        base_goodput=float(old),
        tuned_goodput=float(new),
        num_evaluations=config.budget.num_generations * config.budget.population,
    )


# Of three sites in a row, the one that changes.
EVERY_CHANGING = 3
_STEADY_SPAN_S, _CHANGING_SPAN_S = 30.0, 90.0
# Episodes with more requests take too long for what they say.
_MOST_REQUESTS = 8000


def training_episodes(
    split: Split, num_sites: int, traces: TraceLibrary | None, *, number: int = 0
) -> list[Episode]:
    """Return one short episode of each of the first sites of a split; a third of them change."""
    episodes = []
    for i in range(num_sites):
        is_changing = i % EVERY_CHANGING == EVERY_CHANGING - 1
        site = sample_site(split, i, traces, is_changing=is_changing)
        span_s = _CHANGING_SPAN_S if is_changing else _STEADY_SPAN_S
        episode = site_episode(site, number, traces, span_s=span_s)
        if episode.workload.requests.size <= _MOST_REQUESTS:
            episodes.append(episode)
    return episodes

"""The library: vectors of the scorer, each tuned at one training site, to be tried at one's own.

What is good at a site cannot be told from what the site looks like, but trying a few dozen vectors
on a few workloads of it finds one that suits it better than the universal vector does.

Does not know: how vectors are tried (`halving.py`), or whose site it is.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources

from ..env.knobs import SCORER_KNOBS, Knobs
from ..env.sites import Episode, Split, TraceLibrary, sample_site, site_episode
from .knob_search import SearchBudget
from .site_tuning import EVERY_CHANGING, SiteTuningConfig, tune_on_episodes

_FILE = "library.json"
# Digits that a stored value keeps.
_DIGITS = 4
# Episodes of a site: the first ones are tuned on, the next ones validate.
_STEADY_SPAN_S, _CHANGING_SPAN_S = 30.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryVector:
    """A vector that is better at one training site than the universal one."""

    site: str
    """Where it was tuned."""
    start_goodput: float
    """Mean goodput share of the universal vector on held-out episodes of that site."""
    found_goodput: float
    """The same of this vector."""
    knobs: dict[str, float]
    """Its analytic scorer."""

    def on(self, base: Knobs) -> Knobs:
        """Return a setting with this scorer in the place of its own."""
        return base.replace(self.knobs)


@cache
def knob_library() -> tuple[LibraryVector, ...]:
    """Return the vectors that ship."""
    text = resources.files("trimtab.agents.data").joinpath(_FILE).read_text(encoding="utf-8")
    return tuple(LibraryVector(**one) for one in json.loads(text)["vectors"])


def library_text(vectors: Sequence[LibraryVector], **found: object) -> str:
    """Return the text of a library's file; `found` says how its vectors were found."""
    content = {**found, "vectors": [asdict(one) for one in vectors]}
    return json.dumps(content, indent=1) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryConfig:
    """How a library is made."""

    budget: SearchBudget = field(
        default_factory=lambda: SearchBudget(num_generations=10, population=10, step_size=0.4)
    )
    num_episodes: int = 6
    """Episodes of a site that are tuned on."""
    episodes_per_generation: int = 3
    """Of these, those that a generation meets."""
    num_validation: int = 6
    """Further episodes of the same site, which decide whether what was found is kept."""


def make_library(
    base: Knobs,
    numbers: Sequence[int],
    traces: TraceLibrary | None,
    config: LibraryConfig | None = None,
) -> Iterator[LibraryVector | None]:
    """Yield what each training site gives: a vector better than `base`, or None."""
    config = config or LibraryConfig()
    tuning = SiteTuningConfig(
        budget=config.budget, episodes_per_generation=config.episodes_per_generation
    )
    for number in numbers:
        episodes = _episodes(number, traces, config.num_episodes + config.num_validation)
        tuned_on, validation = episodes[: config.num_episodes], episodes[config.num_episodes :]
        result = tune_on_episodes(base, tuned_on, validation, tuning)
        yield (
            None
            if not result.is_improved
            else LibraryVector(
                site=validation[0].site.name,
                start_goodput=round(result.base_goodput, _DIGITS),
                found_goodput=round(result.tuned_goodput, _DIGITS),
                knobs={name: round(result.knobs[name], _DIGITS) for name in SCORER_KNOBS},
            )
        )


def _episodes(number: int, traces: TraceLibrary | None, count: int) -> list[Episode]:
    is_changing = number % EVERY_CHANGING == EVERY_CHANGING - 1
    site = sample_site(Split.TRAIN, number, traces, is_changing=is_changing)
    span_s = _CHANGING_SPAN_S if is_changing else _STEADY_SPAN_S
    return [site_episode(site, i, traces, span_s=span_s) for i in range(count)]

"""Paired runs for the gate: a bundle's policy and its base on the same unseen workloads.

Does not know: what follows from them (`gate.py`).
"""

from collections.abc import Callable, Sequence

from ..env.observation import fits_layout
from ..env.sites import Episode, Site
from .bundle import Bundle
from .contest import Contender, play
from .evaluation import Evaluation
from .gate import PairedRun
from .policy import LearnedPolicy
from .shielded_training import training_guard


def fits(site: Site, bundle: Bundle) -> bool:
    """Whether a bundle's padded sizes hold the fleet of a site."""
    return fits_layout(site.cluster, bundle.layout)


def runs_on_sites(
    bundle: Bundle,
    episodes: Sequence[Episode],
    *,
    on_run: Callable[[], None] = lambda: None,
) -> list[PairedRun]:
    """Play every episode under the policy and under its base, both behind the training's guard."""
    base = Contender(name="base", knobs=bundle.base_knobs, make_guard=training_guard)
    learned = Contender(
        name="learned",
        knobs=bundle.base_knobs,
        make_policy=lambda: LearnedPolicy(bundle),
        make_guard=training_guard,
    )
    runs = []
    for episode in episodes:
        one, other = play(episode, learned), play(episode, base)
        regimes = {
            kind.value: (one.goodput_by_regime[kind], other.goodput_by_regime[kind])
            for kind in one.goodput_by_regime
        }
        runs.append(
            PairedRun(
                site=one.site,
                candidate=one.goodput_frac,
                base=other.goodput_frac,
                regimes=regimes,
            )
        )
        on_run()
    return runs


def runs_of(evaluation: Evaluation, candidate: str, base: str) -> list[PairedRun]:
    """Return the paired runs of two policies of an evaluation of one scenario."""
    pairs = zip(
        evaluation.result(candidate).values("goodput_frac"),
        evaluation.result(base).values("goodput_frac"),
        strict=True,
    )
    return [
        PairedRun(
            site=evaluation.scenario,
            candidate=float(one),
            base=float(other),
            regimes={"steady": (float(one), float(other))},
        )
        for one, other in pairs
    ]

"""What an evaluation says: who is best, by how much, and under which conditions, in words.

Differences are paired over workloads and given in points (hundredths of a share).

Does not know: tables or figures.
"""

from dataclasses import dataclass

import numpy as np

from ..agents.evaluation import Evaluation, Interval, PolicyResult, bootstrap
from ..agents.heuristics import HEURISTICS

# Below this many workloads a bootstrap interval is too narrow to rely on.
_FEW_WORKLOADS = 10
# From this share on, failed requests are spoken of: something else than scheduling is wrong.
_MANY_FAILED_FRAC = 0.01
LIMITS = (
    "Limits: a simulated fleet, not a measurement. Iteration times are roofline estimates of each "
    "GPU, faults are drawn at random, and the intervals cover the drawn workloads only, not the "
    "simulator's own error."
)
LIVE_LIMITS = (
    "Limits: one live fleet on one day. Policies took turns in mirrored order, so what drifts "
    "slowly cancels; what happened in one turn alone does not. The intervals cover the rounds "
    "only. Latencies are those that a load's clients saw; energy is not measured."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Goodput of one policy minus that of another, paired over workloads, as shares."""

    name: str
    base: str
    interval: Interval

    @property
    def points(self) -> Interval:
        """The same in points."""
        interval = self.interval
        return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high)

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval.low > 0.0 or self.interval.high < 0.0

    def __str__(self) -> str:
        points = self.points
        return (
            f"{self.name} - {self.base}: {points.mean:+.1f} points "
            f"[{points.low:.1f}, {points.high:.1f}]"
        )


def is_imported(name: str) -> bool:
    """Return whether a policy is somebody else's rule."""
    return name in HEURISTICS and HEURISTICS[name].is_imported


def goodput(result: PolicyResult) -> Interval:
    """Return a policy's mean goodput share with its interval over workloads."""
    return bootstrap(result.values("goodput_frac"))


def ranked(evaluation: Evaluation) -> list[PolicyResult]:
    """Return the results, the highest mean goodput first."""
    return sorted(evaluation.policies, key=lambda result: -result.mean("goodput_frac"))


def best_imported(evaluation: Evaluation) -> str | None:
    """Return the name of the best policy that is somebody else's rule, or None."""
    return next((r.name for r in ranked(evaluation) if is_imported(r.name)), None)


def base_policy(evaluation: Evaluation) -> str:
    """Return what the others are compared with: the best imported policy, else the last one."""
    return best_imported(evaluation) or ranked(evaluation)[-1].name


def difference(evaluation: Evaluation, name: str, base: str) -> Difference:
    """Return the paired difference in goodput of two policies."""
    return Difference(name, base, evaluation.difference(name, base))


def differences(evaluation: Evaluation) -> list[Difference]:
    """Return every other policy minus the base, in order of goodput."""
    base = base_policy(evaluation)
    return [difference(evaluation, r.name, base) for r in ranked(evaluation) if r.name != base]


def key_differences(evaluation: Evaluation) -> list[Difference]:
    """Return the differences to read first: this project's policies, or the runner-up."""
    found = differences(evaluation)
    own = [each for each in found if not is_imported(each.name)]
    return own or found[:1]


def limits(evaluation: Evaluation) -> str:
    """Return what an evaluation does not say."""
    return LIVE_LIMITS if evaluation.is_live else LIMITS


def conditions(evaluation: Evaluation) -> str:
    """Return scenario, load, rate, workloads and seed in one line."""
    part = f"{evaluation.part} part"
    load = f"load {evaluation.load_frac:.0%} of saturation, "
    if evaluation.is_live:
        part, load = "live", ""
    text = (
        f"scenario {evaluation.scenario} ({part}), {load}{evaluation.rate_rps:.1f} requests/s, "
        f"{evaluation.num_workloads} workloads, seed {evaluation.seed}"
    )
    if evaluation.num_workloads < _FEW_WORKLOADS:
        text += f"; fewer than {_FEW_WORKLOADS} workloads: the intervals are too narrow"
    failed = {r.name: np.mean([k.failed_frac for k in r.kpis]) for r in evaluation.policies}
    shares = [f"{name} {share:.0%}" for name, share in failed.items() if share >= _MANY_FAILED_FRAC]
    if shares:
        text += f"; requests failed, neither met nor shed: {', '.join(shares)}"
    return text


def headline(evaluation: Evaluation) -> str:
    """Return the result in one sentence."""
    best, *others = ranked(evaluation)
    interval = goodput(best)
    text = (
        f"{best.name} serves {interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}] of the "
        "weighted requests within both limits"
    )
    if not others:
        return text + "."
    is_own = not is_imported(best.name)
    imported = best_imported(evaluation)
    rival = imported if is_own and imported else others[0].name
    kind = "best imported scheduler" if rival == imported else "runner-up"
    gap = difference(evaluation, best.name, rival)
    points = gap.points
    if not gap.is_clear:
        return (
            f"{text}; its difference to the {kind}, {rival}, is not clear "
            f"({points.mean:+.1f} points [{points.low:.1f}, {points.high:.1f}])."
        )
    return (
        f"{text}, {points.mean:.1f} points [{points.low:.1f}, {points.high:.1f}] more than the "
        f"{kind}, {rival}."
    )

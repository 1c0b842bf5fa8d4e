"""Steps of `trimtab evaluate --gate`: play a bundle and its base, judge, and write the verdict.

Does not know: how it is judged (`..agents.gate`).
"""

from collections.abc import Callable
from pathlib import Path

from ..agents.bundle import Bundle, load_bundle, record_verdict
from ..agents.evaluation import PolicyMaker, evaluate
from ..agents.gate import LEAST_WORKLOADS, PairedRun, Verdict, judge
from ..agents.gate_runs import fits, runs_of, runs_on_sites
from ..agents.generalist import bundle_directory
from ..agents.policy import ConstantPolicy, LearnedPolicy
from ..env.scenario import Scenario
from ..env.sites import Episode, Split, TraceLibrary, sample_site, site_episode
from ..traces.errors import ConfigError
from .steps import progress_bar

# Test sites whose regime changes are every third, as in tuning.
_EVERY_CHANGING = 3
_STEADY_SPAN_S, _CHANGING_SPAN_S = 60.0, 240.0
# Sites that are looked at for each one that is asked for, as some fleets do not fit.
_MOST_DRAWS = 20


def run_gate(
    bundle_path: Path | None,
    *,
    sites: tuple[int, Path | None],
    make: Callable[[], Scenario],
    num_workloads: int,
) -> tuple[Verdict, list[PairedRun]]:
    """Judge a bundle on test sites, or on a scenario's test part; write the verdict into it.

    Return the paired runs too.

    Raises:
        ConfigError: there is no bundle, or too few test sites fit it.
        BundleError: it cannot be read.
    """
    if bundle_path is None:
        msg = "--gate needs --bundle: a policy is judged against the base of its own bundle"
        raise ConfigError(msg)
    bundle_path = bundle_directory(bundle_path)
    bundle = load_bundle(bundle_path)
    num_sites, directory = sites
    if num_sites > 0:
        runs = _on_sites(bundle, num_sites, directory)
    else:
        runs = _on_scenario(bundle, make(), max(num_workloads, LEAST_WORKLOADS))
    verdict = judge(runs)
    record_verdict(bundle_path, verdict.as_dict())
    return verdict, runs


def _on_scenario(bundle: Bundle, scenario: Scenario, num_workloads: int) -> list[PairedRun]:
    base = ConstantPolicy(name="base", knobs=bundle.base_knobs)
    makers: dict[str, PolicyMaker] = {
        "base": lambda: base,
        "learned": lambda: LearnedPolicy(bundle),
    }
    with progress_bar() as progress:
        task = progress.add_task("the bundle and its base", total=2 * num_workloads)
        evaluation = evaluate(
            scenario, makers, num_workloads=num_workloads, on_run=lambda: progress.advance(task)
        )
    return runs_of(evaluation, "learned", "base")


def _on_sites(bundle: Bundle, num_sites: int, directory: Path | None) -> list[PairedRun]:
    episodes = _episodes(bundle, num_sites, None if directory is None else TraceLibrary(directory))
    with progress_bar() as progress:
        task = progress.add_task("the bundle and its base", total=len(episodes))
        return runs_on_sites(bundle, episodes, on_run=lambda: progress.advance(task))


def _episodes(bundle: Bundle, num_sites: int, traces: TraceLibrary | None) -> list[Episode]:
    """Return one episode of each of the first test sites whose fleets fit the bundle."""
    found: list[Episode] = []
    for number in range(_MOST_DRAWS * num_sites):
        is_changing = number % _EVERY_CHANGING == _EVERY_CHANGING - 1
        site = sample_site(Split.TEST, number, traces, is_changing=is_changing)
        if fits(site, bundle):
            span_s = _CHANGING_SPAN_S if is_changing else _STEADY_SPAN_S
            found.append(site_episode(site, 0, traces, span_s=span_s))
        if len(found) == num_sites:
            return found
    msg = (
        f"only {len(found)} of {_MOST_DRAWS * num_sites} test sites fit the bundle's layout "
        f"{bundle.layout}; ask for fewer with --sites"
    )
    raise ConfigError(msg)


def verdict_text(verdict: Verdict) -> str:
    """Return the verdict with its figures, a line each."""
    lines = [verdict.sentence]
    lines += [
        f"  regime {kind}: {100 * gain:+.2f} points" for kind, gain in verdict.regime_gains.items()
    ]
    lines.append("the bundle's policy is " + ("on" if verdict.may_act else "off"))
    return "\n".join(lines)

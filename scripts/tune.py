"""Command `trimtab tune`: fit a scheduler's knobs to a trace and a cluster, or to many sites.

Does not know: the learned policy.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.knob_file import read_knobs
from ..agents.knob_library import knob_library
from ..agents.knob_search import SearchBudget
from ..agents.site_tuning import SiteTuningConfig, training_episodes, tune_on_episodes
from ..agents.tuning import TuningConfig, TuningResult
from ..env.knobs import Knobs
from ..env.sites import Split, TraceLibrary
from .evaluate import make_scenario
from .site_steps import PlaceBy, universal_base
from .steps import progress_bar, trace_option, tune_with_progress, write_knobs


def _tune_on_sites(
    base: Knobs, num_sites: int, traces: Path | None, num_generations: int, seed: int
) -> TuningResult:
    """Tune over training sites, validated on a third as many others, showing how far it is."""
    library = None if traces is None else TraceLibrary(traces)
    with progress_bar() as progress:
        task = progress.add_task("drawing sites", total=num_generations)
        episodes = training_episodes(Split.TRAIN, num_sites, library)
        validation = training_episodes(Split.VALIDATION, max(3, num_sites // 3), library)
        budget = SearchBudget(num_generations=num_generations, step_size=0.4, seed=seed)

        def show(goodput: float) -> None:
            text = f"tuning over {num_sites} sites, goodput {100 * goodput:.2f} %"
            progress.update(task, advance=1, description=text)

        config = SiteTuningConfig(budget=budget)
        return tune_on_episodes(base, episodes, validation, config, on_generation=show)


def verdict_text(result: TuningResult) -> str:
    """Return what was kept, with the validation goodput of all that was found."""
    tuned = f"tuned {100 * result.tuned_goodput:.2f} %"
    if result.library_goodput is not None:
        tuned = f"best of the library {100 * result.library_goodput:.2f} %, {tuned}"
    kept = "kept the old vector"
    if result.is_improved:
        is_library = (result.library_goodput or 0.0) >= result.tuned_goodput
        kept = "kept the library's vector" if is_library else "kept the new vector"
    return f"validation goodput: old {100 * result.base_goodput:.2f} %, {tuned}: {kept}"


def tune(
    *,
    trace: Annotated[
        str | None, typer.Option(help="Trace store; by default the bundled Azure traces.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="A bundled cluster, or a YAML file.")] = "demo-16",
    start: Annotated[
        Path | None, typer.Option(help="Knob file to start from; by default the universal one.")
    ] = None,
    place_by: Annotated[
        PlaceBy, typer.Option(help="What is tuned: the scorer's cost, or the worth of a placement.")
    ] = PlaceBy.COST,
    sites: Annotated[
        int, typer.Option(min=0, help="Tune over so many training sites, and not one cluster.")
    ] = 0,
    traces: Annotated[
        Path | None, typer.Option(help="Recorded traces that sites resample; else synthetic.")
    ] = None,
    has_library: Annotated[
        bool,
        typer.Option(
            "--library/--no-library", help="One cluster, by cost: try the stored vectors first."
        ),
    ] = True,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    span: Annotated[float, typer.Option(help="Length of a workload, s.")] = 60.0,
    generations: Annotated[int, typer.Option(min=1, help="Generations of CMA-ES.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same knobs.")] = 0,
    out: Annotated[Path, typer.Option(help="Knob file to write.")] = Path("runs/tuned.json"),
) -> None:
    """Tune a scheduler to a trace and a cluster, or one that is good at many sites."""
    base = read_knobs(start) if start is not None else universal_base(place_by)
    if sites > 0:
        result = _tune_on_sites(base, sites, traces, generations, seed)
    else:
        scenario = make_scenario(trace, cluster=cluster, load_frac=load, seed=seed, span_s=span)
        config = TuningConfig(num_generations=generations, seed=seed)
        is_tried = has_library and base["value_weight"] == 0.0
        library = [one.on(base) for one in knob_library()] if is_tried else []
        result = tune_with_progress(scenario, base, config, library)
    write_knobs(out, result.knobs)
    console = Console(highlight=False)
    console.print(verdict_text(result))
    console.print(f"wrote {out}", soft_wrap=True, markup=False)
    for command in ("evaluate", "train"):
        next_command = f"trimtab {command}{trace_option(trace)} --knobs {out}"
        console.print(f"next: {next_command}", soft_wrap=True, markup=False)

"""Command `trimtab tune-library`: tune the scorer at each of many training sites.

Does not know: how the vectors are tried at a site of one's own (`tune.py`).

Run: `trimtab tune-library --sites 48 --traces TRACES --out agents/data/library.json`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.knob_library import LibraryConfig, LibraryVector, library_text, make_library
from ..agents.knob_search import SearchBudget
from ..agents.run_record import Result, RunClock
from ..agents.universal import universal_scorer
from ..env.sites import TraceLibrary
from ..traces.atomic import replace_file
from .run_records import this_command
from .steps import progress_bar


def tune_library(
    *,
    sites: Annotated[int, typer.Option(min=1, help="Training sites, from the first on.")] = 48,
    traces: Annotated[
        Path | None, typer.Option(help="Recorded traces that sites resample; else synthetic.")
    ] = None,
    generations: Annotated[int, typer.Option(min=1, help="Generations of CMA-ES a site.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same library.")] = 0,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("runs/library.json"),
) -> None:
    """Tune the scorer at each training site, from the universal vector; keep what is better."""
    clock = RunClock()
    recordings = None if traces is None else TraceLibrary(traces)
    budget = SearchBudget(num_generations=generations, population=10, step_size=0.4, seed=seed)
    made = make_library(universal_scorer(), range(sites), recordings, LibraryConfig(budget=budget))
    started_s = time.process_time()
    vectors: list[LibraryVector] = []
    with progress_bar() as progress:
        task = progress.add_task("tuning at each site", total=sites)
        for one in made:
            if one is not None:
                vectors.append(one)
            text = f"tuning at each site, {len(vectors)} better vectors"
            progress.update(task, advance=1, description=text)
    found_by = f"trimtab tune-library --sites {sites} --generations {generations}"
    if traces is not None:
        found_by += " --traces TRACES"
    cpu_s = round(time.process_time() - started_s)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, library_text(vectors, found_by=found_by, seed=seed, cpu_s=cpu_s).encode())
    clock.record(
        out.with_name(f"{out.stem}-run"),
        title="Tuning the scorer at each training site",
        command=this_command(),
        seeds=[seed],
        settings={"sites": sites, "generations": generations},
        results=_results(vectors, sites),
    )
    console = Console(highlight=False)
    console.print(f"{len(vectors)} of {sites} sites gave a better vector")
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


def _results(vectors: Sequence[LibraryVector], num_sites: int) -> list[Result]:
    """Return at how many sites a better vector was found, and what it gained there."""
    found = Result(
        what="sites with a better vector", mean=len(vectors), unit="sites", count=num_sites
    )
    if not vectors:
        return [found]
    gains = [100 * (one.found_goodput - one.start_goodput) for one in vectors]
    mean = round(sum(gains) / len(gains), 2)
    return [found, Result(what="found - universal, at these sites", mean=mean, count=len(gains))]

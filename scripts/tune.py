"""Command `trimtab tune`: fit the analytic scorer's knobs to a trace and a cluster.

Does not know: the learned policy.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.heuristics import ANALYTIC_SCORER
from ..agents.knob_file import read_knobs
from ..agents.tuning import TuningConfig
from .evaluate import make_scenario
from .steps import trace_option, tune_with_progress, write_knobs


def tune(
    *,
    trace: Annotated[
        str | None, typer.Option(help="Trace store; by default the bundled Azure traces.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="A bundled cluster, or a YAML file.")] = "demo-16",
    start: Annotated[
        Path | None, typer.Option(help="Knob file to start from; by default the analytic scorer.")
    ] = None,
    load: Annotated[float, typer.Option(help="Mean rate, as a share of saturation.")] = 0.8,
    span: Annotated[float, typer.Option(help="Length of a workload, s.")] = 60.0,
    generations: Annotated[int, typer.Option(min=1, help="Generations of CMA-ES.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same knobs.")] = 0,
    out: Annotated[Path, typer.Option(help="Knob file to write.")] = Path("runs/tuned.json"),
) -> None:
    """Tune the analytic scorer to a trace and a cluster."""
    base = ANALYTIC_SCORER.knobs if start is None else read_knobs(start)
    scenario = make_scenario(trace, cluster=cluster, load_frac=load, seed=seed, span_s=span)
    config = TuningConfig(num_generations=generations, seed=seed)
    result = tune_with_progress(scenario, base, config)
    write_knobs(out, result.knobs)
    console = Console(highlight=False)
    verdict = "kept the new vector" if result.is_improved else "kept the old vector"
    console.print(
        f"validation goodput {100 * result.base_goodput:.2f} % -> "
        f"{100 * result.tuned_goodput:.2f} %: {verdict}"
    )
    console.print(f"wrote {out}", soft_wrap=True, markup=False)
    for command in ("evaluate", "train"):
        next_command = f"trimtab {command}{trace_option(trace)} --knobs {out}"
        console.print(f"next: {next_command}", soft_wrap=True, markup=False)

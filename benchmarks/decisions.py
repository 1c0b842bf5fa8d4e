"""Whose decisions are better: every scheduler on the same unseen fleets and traffic.

Three parts. `sites`: steady test sites. `changing`: test sites whose regime changes, also by
regime. `loads`: test sites on each recorded trace at loads .6, .8 and 1.0 of their capacity and
more, for the load up to which goodput stays at 95 %. All contenders meet the same arrivals,
trouble and lost scrapes; nothing was tuned on what is judged. Rows are kept in a file, so that a
run that was cut goes on where it was.

Run: python benchmarks/decisions.py [--json] [--sites 20] [--traces DIR] [--out runs/decisions]
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from decision_contest.contenders import (
    DEEP_LOOKAHEAD,
    FULL,
    LOOKAHEAD,
    SHED_SUFFIX,
    SITE_TUNED,
    SITE_WORTH,
    UNIVERSAL,
    WORTH,
    Field,
    contenders,
)
from decision_contest.page import write_page
from decision_contest.table import Row, by_site, difference, kept_load, names_of, summary
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trimtab.agents.contest import Run, play
from trimtab.agents.evaluation import Interval
from trimtab.env.sites import Site, Split, TraceLibrary, sample_site, site_episode

SITES, CHANGING, LOADS = "sites", "changing", "loads"
LOAD_FRACS = (0.4, 0.6, 0.8, 1.0, 1.2)
# Of each recording, how many sites are taken through all loads.
SITES_PER_RECORDING = 2
STEADY_SPAN_S, CHANGING_SPAN_S = 60.0, 300.0
MICRO = 1e6
# What is compared with what, where both took part.
PAIRS = (
    (UNIVERSAL, "llm-d-weighted"),
    (UNIVERSAL, "llm-d-50ms"),
    (UNIVERSAL, "llm-d-50ms" + SHED_SUFFIX),
    (UNIVERSAL, "least-requests"),
    (UNIVERSAL, "analytic-scorer"),
    (SITE_TUNED, UNIVERSAL),
    (LOOKAHEAD, UNIVERSAL),
    (LOOKAHEAD, SITE_TUNED),
    (DEEP_LOOKAHEAD, SITE_TUNED),
    (WORTH, UNIVERSAL),
    (WORTH, SITE_TUNED),
    (WORTH, LOOKAHEAD),
    (WORTH, DEEP_LOOKAHEAD),
    (SITE_WORTH, SITE_TUNED),
    (SITE_WORTH, WORTH),
    (FULL, WORTH),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One site of one part, under all contenders."""

    part: str
    number: int
    load_frac: float | None = None
    num_episodes: int = 3

    @property
    def key(self) -> str:
        """What tells it from others in the file of rows."""
        return f"{self.part}/{self.number}/{self.load_frac}/{self.num_episodes}"


def site_of(job: Job, traces: TraceLibrary | None) -> Site:
    """Return the site of a job."""
    site = sample_site(Split.TEST, job.number, traces, is_changing=job.part == CHANGING)
    return site if job.load_frac is None else replace(site, load_frac=job.load_frac)


def field_of(job: Job, is_quick: bool) -> Field:
    """Return who takes part in a job; tuning takes too long for more than the steady sites."""
    return Field(has_tuned=job.part == SITES and not is_quick, has_bounds=not is_quick)


def run_job(job: Job, directory: Path | None, field: Field, cache: Path) -> list[Row]:
    """Play a site's episodes under all contenders."""
    traces = None if directory is None else TraceLibrary(directory)
    site = site_of(job, traces)
    span_s = CHANGING_SPAN_S if job.part == CHANGING else STEADY_SPAN_S
    episodes = [site_episode(site, i, traces, span_s=span_s) for i in range(job.num_episodes)]
    taking_part = contenders(site, traces, field, cache)
    rows = []
    for contender in taking_part:
        for episode in episodes:
            start_s = time.process_time()
            run = play(episode, contender)
            spent_s = time.process_time() - start_s
            rows.append(row_of(job, site, run, spent_s))
    return rows


def row_of(job: Job, site: Site, run: Run, spent_s: float) -> Row:
    """Return what is kept of a run."""
    kpis = run.kpis
    return {
        "job": job.key,
        "part": job.part,
        "site": run.site,
        "shape": site.traffic.shape.value,
        "recording": site.traffic.recording,
        "load": site.load_frac,
        "replicas": site.num_replicas,
        "episode": run.number,
        "contender": run.contender,
        "requests": kpis.num_requests,
        "goodput": run.goodput_frac,
        "by_regime": {kind.value: share for kind, share in run.goodput_by_regime.items()},
        "violations": kpis.slo_violation_frac,
        "shed": kpis.shed_frac,
        "ttft_p50_s": kpis.ttft_p50_s,
        "ttft_p99_s": kpis.ttft_p99_s,
        "tpot_p99_s": kpis.tpot_p99_s,
        "tokens_per_kwh": kpis.output_tokens_per_kwh,
        "request_us": spent_s / kpis.num_requests * MICRO,
    }


def jobs_of(arguments: argparse.Namespace, traces: TraceLibrary | None) -> Iterator[Job]:
    """Return all sites to play."""
    num = arguments.episodes
    yield from (Job(SITES, i, None, num) for i in range(arguments.sites))
    yield from (Job(CHANGING, i, None, max(1, num - 1)) for i in range(arguments.changing))
    names = () if traces is None else traces.names
    left = {name: SITES_PER_RECORDING for name in names}
    for number in range(arguments.sites, 400 if arguments.loads else 0):
        recording = sample_site(Split.TEST, number, traces, is_changing=False).traffic.recording
        if left.get(recording, 0) > 0:
            left[recording] -= 1
            yield from (Job(LOADS, number, load, max(1, num - 1)) for load in LOAD_FRACS)
        if not any(left.values()):
            return


def collect(arguments: argparse.Namespace, traces: TraceLibrary | None) -> list[Row]:
    """Play what the file of rows lacks, and return all rows."""
    file = arguments.out / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    jobs = list(jobs_of(arguments, traces))
    known = {row["job"] for row in rows}
    missing = [job for job in jobs if job.key not in known]
    cache = arguments.out / "tuned"
    with (
        ProcessPoolExecutor(arguments.processes) as pool,
        Progress(console=Console(stderr=True), transient=True) as progress,
        file.open("a") as out,
    ):
        task = progress.add_task("sites", total=len(jobs), completed=len(jobs) - len(missing))
        futures = [
            pool.submit(run_job, job, arguments.traces, field_of(job, arguments.quick), cache)
            for job in missing
        ]
        for future in futures:
            found = future.result()
            out.writelines(json.dumps(row) + "\n" for row in found)
            out.flush()
            rows += found
            progress.advance(task)
    keys = {job.key for job in jobs}
    return [row for row in rows if row["job"] in keys]


def points(interval: Interval) -> dict[str, float]:
    """Return an interval of shares in points."""
    return {
        "points": round(100 * interval.mean, 3),
        "low": round(100 * interval.low, 3),
        "high": round(100 * interval.high, 3),
    }


def part_result(rows: list[Row]) -> dict[str, object]:
    """Return means and paired differences of one part."""
    names = names_of(rows)
    return {
        "sites": len({row["site"] for row in rows}),
        "contenders": {name: summary(rows, name) for name in names},
        "differences": {
            f"{one} - {base}": points(difference(rows, one, base))
            for one, base in PAIRS
            if one in names and base in names
        },
    }


def regimes_result(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return the mean goodput of each contender in each kind of regime."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for kind, share in row["by_regime"].items():
            found.setdefault(row["contender"], {}).setdefault(kind, []).append(share)
    return {
        name: {kind: sum(v) / len(v) for kind, v in kinds.items()} for name, kinds in found.items()
    }


def loads_result(rows: list[Row]) -> dict[str, object]:
    """Return goodput by recording and load, and the load up to which 95 % is kept."""
    found: dict[str, dict[str, object]] = {}
    for recording in sorted({row["recording"] for row in rows}):
        own = [row for row in rows if row["recording"] == recording]
        loads = sorted({row["load"] for row in own})
        curves = {}
        for name in names_of(own):
            curve = []
            for load in loads:
                at_load = [row for row in own if row["load"] == load]
                values = by_site(at_load, name, "goodput").values()
                curve.append(sum(sum(v) / len(v) for v in values) / len(values))
            curves[name] = {"goodput": curve, "kept_load": kept_load(loads, curve)}
        found[recording] = {"loads": loads, "curves": curves}
    return found


def show(result: dict[str, object], part: str) -> None:
    """Print a part's table."""
    values = result[part]
    assert isinstance(values, dict), f"part {part} is {values!r}"
    table = Table(title=f"{part}: {values['sites']} test sites", title_justify="left")
    columns = ("goodput %", "violations %", "shed %", "TTFT p50 ms", "p99 ms", "TPOT p99 ms")
    for column in ("scheduler", *columns, "tokens/kWh", "us/request"):
        table.add_column(column, justify="left" if column == "scheduler" else "right")
    ranked = sorted(values["contenders"].items(), key=lambda item: item[1]["goodput"])
    for name, own in ranked:
        table.add_row(
            name,
            f"{100 * own['goodput']:.1f} [{100 * own['low']:.1f}, {100 * own['high']:.1f}]",
            *(f"{100 * own[key]:.1f}" for key in ("violations", "shed")),
            *(f"{1e3 * own[key]:.0f}" for key in ("ttft_p50_s", "ttft_p99_s", "tpot_p99_s")),
            f"{own['tokens_per_kwh'] / 1e6:.2f}M",
            f"{own['request_us']:.0f}",
        )
    console = Console(width=140, highlight=False)
    console.print(table)
    for name, gain in values["differences"].items():
        console.print(f"{name}: {gain['points']:+.2f} [{gain['low']:.2f}, {gain['high']:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--sites", type=int, default=20, help="steady test sites")
    parser.add_argument("--changing", type=int, default=10, help="test sites with regimes")
    parser.add_argument("--loads", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--episodes", type=int, default=3, help="of a steady site")
    parser.add_argument("--traces", type=Path, help="directory of recordings; else synthetic")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="without tuning and deep rollouts")
    parser.add_argument("--out", type=Path, default=Path("runs/decisions"))
    arguments = parser.parse_args()
    traces = None if arguments.traces is None else TraceLibrary(arguments.traces)
    rows = collect(arguments, traces)
    parts = {part: [row for row in rows if row["part"] == part] for part in (SITES, CHANGING)}
    result: dict[str, object] = {part: part_result(own) for part, own in parts.items() if own}
    if parts[CHANGING]:
        result["regimes"] = regimes_result(parts[CHANGING])
    result[LOADS] = loads_result([row for row in rows if row["part"] == LOADS])
    write_page(arguments.out / "report.html", result)
    if arguments.json:
        print(json.dumps(result))
        return
    for part in (SITES, CHANGING):
        if parts[part]:
            show(result, part)
    print(f"wrote {arguments.out / 'report.html'}")


if __name__ == "__main__":
    main()

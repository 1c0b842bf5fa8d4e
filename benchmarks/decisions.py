"""Whose decisions are better: every scheduler on the same unseen fleets and traffic.

Three parts. `sites`: steady test sites. `changing`: test sites whose regime changes, also by
regime. `loads`: test sites on each recorded trace at loads .6, .8 and 1.0 of their capacity and
more, for the load up to which goodput stays at 95 %. All contenders meet the same arrivals,
trouble and lost scrapes; nothing was tuned on what is judged. Who does not take part is named.
Rows are kept in a file: a run that was cut goes on where it was, and only contenders that have
changed are played again. A record of the run is left beside them.

Run: python benchmarks/decisions.py [--json] [--sites 20] [--traces DIR] [--out runs/decisions]
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from decision_contest.contenders import Field, absent
from decision_contest.jobs import CHANGING, LOADS, SITES, Job, JobResult, Known, run_job
from decision_contest.page import write_page
from decision_contest.results import loads_result, part_result, regimes_result
from decision_contest.table import Row
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trimtab.agents.run_record import Result, RunClock
from trimtab.env.sites import Split, TraceLibrary, sample_site

LOAD_FRACS = (0.4, 0.6, 0.8, 1.0, 1.2)
# Of each recording, how many sites are taken through all loads.
SITES_PER_RECORDING = 2
# Episodes of a steady site that are searched in hindsight, which takes longer than all the rest.
NUM_SEARCHED = 1
# Sites that are looked through for them.
MOST_SITES = 400


def jobs_of(arguments: argparse.Namespace, traces: TraceLibrary | None) -> Iterator[Job]:
    """Return all sites to play."""
    num = arguments.episodes
    yield from (Job(SITES, i, None, num, NUM_SEARCHED) for i in range(arguments.sites))
    yield from (Job(CHANGING, i, None, max(1, num - 1)) for i in range(arguments.changing))
    names = () if traces is None else traces.names
    left = {name: SITES_PER_RECORDING for name in names}
    for number in range(arguments.sites, MOST_SITES if arguments.loads else 0):
        recording = sample_site(Split.TEST, number, traces, is_changing=False).traffic.recording
        if left.get(recording, 0) > 0:
            left[recording] -= 1
            yield from (
                Job(LOADS, number, load, max(1, num - 1), NUM_SEARCHED) for load in LOAD_FRACS
            )
        if not any(left.values()):
            return


def read_rows(file: Path) -> list[Row]:
    """Return the rows of a file; a last line that was cut is left out."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    # What follows the last line break was cut off.
    return [json.loads(line) for line in lines[:-1] if line]


def known_of(rows: list[Row], job: Job) -> Known:
    """Return which rows a job has."""
    return frozenset(
        (row["episode"], row["contender"], row["maker"]) for row in rows if row["job"] == job.key
    )


def current(rows: list[Row], jobs: list[Job], results: list[JobResult]) -> list[Row]:
    """Return the rows of these jobs, without those of contenders as they once were."""
    found = []
    for job, result in zip(jobs, results, strict=True):
        own = {
            (row["episode"], row["contender"]): row
            for row in rows
            if row["job"] == job.key
            and row["episode"] < job.num_episodes
            and result.makers.get(row["contender"]) == row["maker"]
        }
        found += own.values()
    return found


def collect(arguments: argparse.Namespace, traces: TraceLibrary | None, field: Field) -> list[Row]:
    """Play what the file of rows lacks, and return all rows."""
    file = arguments.out / "rows.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, results = read_rows(file), []
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    jobs = list(jobs_of(arguments, traces))
    cache = arguments.out / "tuned"
    with (
        ProcessPoolExecutor(arguments.processes) as pool,
        Progress(console=Console(stderr=True), transient=True) as progress,
        file.open("a", encoding="utf-8") as out,
    ):
        task = progress.add_task("sites", total=len(jobs))
        known = [known_of(rows, job) for job in jobs]
        futures = [
            pool.submit(run_job, job, arguments.traces, field, cache, own)
            for job, own in zip(jobs, known, strict=True)
        ]
        for future in futures:
            result = future.result()
            out.writelines(json.dumps(row) + "\n" for row in result.rows)
            out.flush()
            rows += result.rows
            results.append(result)
            progress.advance(task)
    return current(rows, jobs, results)


def summarise(rows: list[Row], field: Field) -> dict[str, object]:
    """Return the benchmark's result."""
    parts = {part: [row for row in rows if row["part"] == part] for part in (SITES, CHANGING)}
    result: dict[str, object] = {part: part_result(own) for part, own in parts.items() if own}
    if parts[CHANGING]:
        result["regimes"] = regimes_result(parts[CHANGING])
    result[LOADS] = loads_result([row for row in rows if row["part"] == LOADS])
    unknown = sorted(field.only - {row["contender"] for row in rows})
    nobody = dict.fromkeys(unknown, "--only names it, and nobody of that name took part")
    result["absent"] = {**absent(field), **nobody}
    return result


def record_results(result: dict[str, object]) -> list[Result]:
    """Return all paired differences of the parts, as a run's record has them."""
    found = []
    for part, kind in ((SITES, "test sites"), (CHANGING, "changing test sites")):
        values = result.get(part)
        if not isinstance(values, dict):
            continue
        found += [
            Result(
                what=f"{pair}, {values['sites']} {kind}",
                mean=gain["points"],
                low=gain["low"],
                high=gain["high"],
                count=values["episodes"],
            )
            for pair, gain in values["differences"].items()
        ]
    return found


def write_run_record(
    clock: RunClock, arguments: argparse.Namespace, result: dict[str, object], num_kept: int
) -> None:
    """Leave a record beside the rows; its cost is without the rows that an earlier run played."""
    names = ("sites", "changing", "episodes", "loads", "quick", "tuned", "moves")
    clock.record(
        arguments.out,
        title="Schedulers on the same unseen fleets and traffic",
        command=shlex.join(["python", *sys.argv]),
        # Sites are drawn by their numbers; the bootstrap has this seed.
        seeds=[0],
        settings={name: getattr(arguments, name) for name in names} | {"rows_kept": num_kept},
        results=record_results(result),
        is_comparison=True,
    )


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


def bundle_argument(text: str) -> tuple[str, Path]:
    """Return the contender's name and the directory of a bundle, given as NAME=DIRECTORY."""
    return _named_path(text, "ppo", "DIRECTORY")


def network_argument(text: str) -> tuple[str, Path]:
    """Return the contender's name and the file of a value network, given as NAME=FILE."""
    return _named_path(text, "network", "FILE")


def _named_path(text: str, prefix: str, kind: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        msg = f"expected NAME={kind}, got '{text}'"
        raise argparse.ArgumentTypeError(msg)
    return f"{prefix}-{name}", Path(path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--sites", type=int, default=20, help="steady test sites")
    parser.add_argument("--changing", type=int, default=10, help="test sites with regimes")
    parser.add_argument("--loads", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--episodes", type=int, default=3, help="of a steady site")
    parser.add_argument("--traces", type=Path, help="directory of recordings; else synthetic")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few sites, without loads, tuning, bounds and hindsight; about a minute",
    )
    parser.add_argument("--tuned", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--moves", type=int, default=1500, help="of the search in hindsight")
    parser.add_argument(
        "--bundle",
        type=bundle_argument,
        action="append",
        default=[],
        help="NAME=DIRECTORY of a policy that moves the knobs; may be given again",
    )
    parser.add_argument(
        "--network",
        type=network_argument,
        action="append",
        default=[],
        help="NAME=FILE of a value network; may be given again",
    )
    parser.add_argument("--only", nargs="*", default=[], help="names; the others stay away")
    parser.add_argument("--out", type=Path, default=Path("runs/decisions"))
    found = parser.parse_args(arguments)
    if found.quick:
        found.sites, found.changing = min(found.sites, 8), min(found.changing, 2)
        found.episodes, found.loads = 1, False
    return found


def main() -> None:
    arguments, clock = parse(), RunClock()
    traces = None if arguments.traces is None else TraceLibrary(arguments.traces)
    field = Field(
        has_tuned=arguments.tuned and not arguments.quick,
        has_bounds=not arguments.quick,
        num_moves=0 if arguments.quick else arguments.moves,
        bundles=tuple(arguments.bundle),
        networks=tuple(arguments.network),
        only=frozenset(arguments.only),
    )
    num_kept = len(read_rows(arguments.out / "rows.jsonl"))
    result = summarise(collect(arguments, traces, field), field)
    write_page(arguments.out / "report.html", result)
    write_run_record(clock, arguments, result, num_kept)
    if arguments.json:
        print(json.dumps(result))
        return
    for part in (SITES, CHANGING):
        if part in result:
            show(result, part)
    assert isinstance(result["absent"], dict), f"absent is {result['absent']!r}"
    for name, reason in result["absent"].items():
        print(f"not taking part: {name} ({reason})")
    print(f"wrote {arguments.out / 'report.html'}")


if __name__ == "__main__":
    main()

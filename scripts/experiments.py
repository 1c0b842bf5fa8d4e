"""Command `trimtab experiments`: the page of experiments, made from the records of runs.

Does not know: how runs are made.
"""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..agents.run_record import RunRecord, read_record
from ..traces.atomic import replace_file
from ..traces.errors import ConfigError

INTRODUCTION = """\
# Experiments

What was tried, what it showed, negative results included. Newest first. All figures are simulator \
figures; points are percentage points of weighted goodput; intervals are 95 % bootstraps over \
paired unseen workloads unless a section says otherwise. This page is made by `trimtab \
experiments` from the records in [docs/runs](runs); a run of `trimtab train`, `tune`, \
`tune-library`, `train-value`, `evaluate --gate` or `benchmarks/decisions.py` leaves such a record \
beside its output. CPU-s are CPU seconds of all seeds together; what was not kept is said to be so.
"""
NOT_KEPT = "not kept"
_NAME = re.compile(r"(\d{3})-[a-z0-9-]+\.yaml")


def read_records(directory: Path) -> dict[int, RunRecord]:
    """Return the records of a directory by their number, newest first.

    Raises: `ConfigError` when there is none, two have a number, or one has faults.
    """
    records: dict[int, RunRecord] = {}
    for path in sorted(directory.glob("*.yaml"), reverse=True):
        match = _NAME.fullmatch(path.name)
        if match is None:
            msg = f"run record '{path}' must be named like '017-short-name.yaml'; rename it"
            raise ConfigError(msg)
        number = int(match[1])
        if number in records:
            msg = f"two run records in '{directory}' have number {number:03d}; renumber one"
            raise ConfigError(msg)
        records[number] = read_record(path)
    if not records:
        msg = f"no run records in '{directory}'; give the directory with --runs"
        raise ConfigError(msg)
    return records


def page(records: dict[int, RunRecord]) -> str:
    """Return the page: a table of all runs, then a section for each."""
    rows = ["| | run | seeds | CPU-s | main result | outcome |", "|---|---|---|---|---|---|"]
    rows += [_row(number, record) for number, record in records.items()]
    sections = [_section(number, record) for number, record in records.items()]
    return "\n".join([INTRODUCTION, "\n".join(rows), "", "\n".join(sections)])


def _row(number: int, record: RunRecord) -> str:
    main = record.results[0] if record.results else None
    result = f"{main.what}: {main.text()}" if main is not None else ""
    cells = (str(number), record.title, _seeds(record), _cpu(record), result, record.outcome)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _seeds(record: RunRecord) -> str:
    return ", ".join(map(str, record.seeds)) or NOT_KEPT


def _cpu(record: RunRecord) -> str:
    return NOT_KEPT if record.cpu_s is None else f"{record.cpu_s:,.0f}"


def _section(number: int, record: RunRecord) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    cost = f"seeds {_seeds(record)}, CPU-s {_cpu(record)}"
    facts = [fact for fact in (record.day.isoformat(), record.machine, versions, cost) if fact]
    blocks = [f"## {number}. {record.title}", f"{'; '.join(facts)}."]
    if record.command:
        blocks.append(f"```\n{record.command.rstrip()}\n```")
    if record.settings:
        blocks.append(", ".join(f"{name} {value}" for name, value in record.settings.items()) + ".")
    if record.results:
        rows = ["| result | figure | of |", "|---|---|---|"]
        rows += [f"| {one.what} | {one.text()} | {one.count or ''} |" for one in record.results]
        blocks.append("\n".join(rows))
    if record.notes:
        blocks.append(record.notes.rstrip())
    return "\n\n".join(blocks) + "\n"


def experiments(
    *,
    runs: Annotated[Path, typer.Option(help="Directory of records.")] = Path("docs/runs"),
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/experiments.md"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the page is not this.")
    ] = False,
) -> None:
    """Make the page of experiments from the records of runs."""
    records = read_records(runs)
    text = page(records)
    console = Console(highlight=False)
    if not check:
        replace_file(out, text.encode())
        console.print(f"wrote {out} from {len(records)} records", soft_wrap=True, markup=False)
        return
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        msg = f"'{out}' is not what the records in '{runs}' say; run 'trimtab experiments'"
        raise ConfigError(msg)
    console.print(f"{out} is what {len(records)} records say", soft_wrap=True, markup=False)

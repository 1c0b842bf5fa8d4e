"""What is kept of a run: command, seeds, cost and results, whether or not it gained anything.

One YAML file a run. `trimtab train`, `tune`, `tune-library`, `train-value`, `evaluate --gate` and
`benchmarks/decisions.py` write one beside their output; those that say something are kept in
`docs/runs`, from which `docs/experiments.md` is made.

Does not know: how records are shown (`scripts/experiments.py`).
"""

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ..env.config_file import Entry, faults_message, keyed_faults, read_yaml
from ..env.yaml_lines import key_lines, line_of
from ..traces.atomic import replace_file
from ..traces.errors import ConfigError
from .run_origin import machine, versions

RECORD_NAME = "run.yaml"
"""File of a run's record in the directory of its output."""


# Text beyond so many characters is written as a block of its own.
_LONG_TEXT = 120


class Outcome(StrEnum):
    """What a run came to."""

    GAINED = "gained"  # the interval of its main result is above 0
    LEVEL = "level"  # it holds 0
    LOST = "lost"  # it is below 0
    MEASURED = "measured"  # nothing was to be gained, or its main result has no interval


class Result(Entry):
    """One figure."""

    what: str
    """What was measured, of what."""
    mean: float
    low: float | None = None
    """Ends of the 95 % interval; none where it has none."""
    high: float | None = None
    unit: str = "points"
    count: Annotated[int, Field(ge=1)] | None = None
    """Of what it is the mean: workloads, episodes or seeds."""

    @model_validator(mode="after")
    def _check(self) -> "Result":
        if (self.low is None) != (self.high is None):
            msg = "low and high come together; give both or none"
            raise ValueError(msg)
        if not all(math.isfinite(x) for x in (self.mean, self.low or 0.0, self.high or 0.0)):
            msg = "mean, low and high must be finite"
            raise ValueError(msg)
        if self.low is not None and self.high is not None and not self.low <= self.high:
            msg = f"low must be at most high ({self.high}), got {self.low}"
            raise ValueError(msg)
        return self

    def text(self) -> str:
        """Return the figure with its interval and unit."""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self._number(self.low)}, {self._number(self.high)}]"
        return f"{self._number(self.mean)}{interval} {self.unit}"

    def _number(self, value: float) -> str:
        sign = "+" if self.unit == "points" else ""
        # Minus zero is zero.
        return f"{value + 0.0:{sign}.4g}"


class RunRecord(Entry):
    """One run, or several that differ in their seed alone."""

    title: str
    """What it was about, in a line."""
    day: date
    command: str
    """What to type to make it again; empty where none makes all of it."""
    seeds: tuple[int, ...] = Field(default=(), strict=False)
    """Empty where they were not kept."""
    cpu_s: Annotated[float, Field(ge=0.0)] | None = None
    """CPU seconds of all its seeds together; none where they were not kept."""
    machine: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of Trimtab and what it ran on; empty where they were not kept."""
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    results: tuple[Result, ...] = Field(default=(), strict=False)
    """The main one first."""
    outcome: Annotated[Outcome, Field(strict=False)] = Outcome.MEASURED
    notes: str = ""
    """What it showed, in Markdown; blanks at the ends of its lines are dropped."""

    @field_validator("notes")
    @classmethod
    def _without_blanks(cls, notes: str) -> str:
        # YAML has no block for them, and Markdown no use.
        return "\n".join(line.rstrip() for line in notes.split("\n"))


def read_record(path: Path) -> RunRecord:
    """Return the record in a file.

    Raises: `ConfigError` when it cannot be read, or has faults: all of them, with their lines.
    """
    content = read_yaml("run record", path)
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        lines = key_lines(path)
        faults = [
            f"line {line_of(lines, key) or 1}: {key}: {text}"
            for key, text in keyed_faults(RunRecord, error)
        ]
        raise ConfigError(faults_message("run record", str(path), faults)) from error


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, for people to read."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value else ">" if len(value) > _LONG_TEXT else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record in place of an older one, whole or not at all."""
    content = record.model_dump(mode="python", exclude_defaults=True)
    if "outcome" in content:
        content["outcome"] = str(record.outcome)
    for name in ("seeds", "results"):
        if name in content:
            content[name] = list(content[name])
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
    replace_file(path, text.encode())


def outcome_of(result: Result) -> Outcome:
    """Return what a gain over a base says: without an interval, nothing."""
    if result.low is None or result.high is None:
        return Outcome.MEASURED
    if result.low > 0.0:
        return Outcome.GAINED
    return Outcome.LOST if result.high < 0.0 else Outcome.LEVEL


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class RunClock:
    """Counts what a run costs, children included, and writes its record when it ends."""

    _start_s: float = field(default_factory=_cpu_s)

    def record(
        self,
        directory: Path,
        *,
        title: str,
        command: str,
        seeds: Sequence[int],
        results: Sequence[Result],
        settings: dict[str, Any] | None = None,
        is_comparison: bool = False,
    ) -> RunRecord:
        """Write `run.yaml` into a directory; the outcome is that of the first result in points.

        A comparison of many has none: it is only measured.
        """
        gains = [result for result in results if result.unit == "points"]
        plain = {
            name: value if isinstance(value, int | float | bool) or value is None else str(value)
            for name, value in (settings or {}).items()
        }
        record = RunRecord(
            title=title,
            day=datetime.now(tz=UTC).date(),
            command=command,
            seeds=tuple(seeds),
            cpu_s=round(_cpu_s() - self._start_s, 1),
            machine=machine(),
            versions=versions(),
            settings=plain,
            results=tuple(results),
            outcome=outcome_of(gains[0]) if gains and not is_comparison else Outcome.MEASURED,
        )
        write_record(directory / RECORD_NAME, record)
        return record

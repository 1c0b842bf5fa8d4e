"""What every importer does: open the file, parse row by row, report bad rows, build the trace.

An importer gives a parse function from one row to an `ImportedRow`; a row that it refuses with
a `RowFault` stops the import with its line number, or is counted and left out.

Does not know: any one format.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ..columns import Prefix
from ..errors import TraceError
from ..hashing import mix_all
from ..schema import DEFAULT_BLOCK_TOKENS, RequestTrace, TraceSource

Raw = TypeVar("Raw")

_MAX_TOKENS = 2**31 - 1
NANOSECONDS_PER_S = 1e9  # ISO moments are kept as whole nanoseconds
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTION = re.compile(r"[.,](\d+)")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out."""

    line: int
    reason: str
    value: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """An imported trace and the rows that were left out of it."""

    trace: RequestTrace
    bad_rows: tuple[BadRow, ...]


class RowFault(ValueError):
    """A row cannot be read; caught by `parse_rows`, never seen outside the importers."""

    def __init__(self, value: object, column: str, problem: str) -> None:
        self.value = "" if value is None else str(value)
        shown = "" if value is None else f" {str(value)[:80]!r}"
        super().__init__(f"{column}{shown} {problem}")


class ImportedRow(NamedTuple):
    """One request as an importer read it; `time` in any unit, from any start."""

    time: float
    input_tokens: int
    output_tokens: int
    model: str = "default"
    tenant: str = "default"
    priority: int = 0
    session: str | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    prefix_blocks: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ParsedRows:
    """Rows that parsed, with the line of each, and those that did not."""

    path: str
    rows: list[ImportedRow]
    lines: list[int]
    bad_rows: tuple[BadRow, ...]


@contextmanager
def open_text(path: str | Path) -> Iterator[TextIO]:
    """A text file, unpacked if its name ends in .gz.

    Raises: TraceError when it cannot be opened or is not what its name says.
    """
    file = Path(path)
    try:
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8-sig", newline="") as text:
                yield cast(TextIO, text)
        else:
            with file.open(encoding="utf-8-sig", newline="") as text:
                yield text
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        msg = f"trace {str(path)!r} cannot be read: {error}; expected UTF-8 text, plain or .gz"
        raise TraceError(msg) from error


def csv_rows(text: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row that is not blank, the header first."""
    reader = csv.reader(text)
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def json_lines(text: TextIO) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that is not blank."""
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield number, line


def json_object(line: str) -> dict[str, Any]:
    """The object on a line of JSON.

    Raises: RowFault.
    """
    try:
        content = json.loads(line)
    except ValueError:
        raise RowFault(line.strip(), "line", "is not JSON; expected one object a line") from None
    if not isinstance(content, dict):
        raise RowFault(line.strip(), "line", "is not an object; expected {...} on each line")
    return content


def parse_rows(
    path: str | Path,
    rows: Iterable[tuple[int, Raw]],
    parse: Callable[[Raw], ImportedRow],
    *,
    skip_bad_rows: bool,
) -> ParsedRows:
    """Parse rows; a faulty one stops the import, or is noted when `skip_bad_rows` is on.

    Raises: TraceError for a faulty row, or when no row is left.
    """
    parsed, lines, bad_rows = [], [], []
    for line, row in rows:
        try:
            parsed.append(parse(row))
        except RowFault as fault:
            if not skip_bad_rows:
                msg = (
                    f"trace {str(path)!r} line {line}: {fault}; fix the row or pass --skip-bad-rows"
                )
                raise TraceError(msg) from fault
            bad_rows.append(BadRow(line, str(fault), fault.value))
        else:
            lines.append(line)
    if not parsed:
        why = f"; line {bad_rows[0].line}: {bad_rows[0].reason}" if bad_rows else ""
        msg = (
            f"trace {str(path)!r} has 0 readable rows and {len(bad_rows)} bad ones{why}; "
            "expected at least one request; check that the format is the right one"
        )
        raise TraceError(msg)
    return ParsedRows(str(path), parsed, lines, tuple(bad_rows))


def build_result(
    parsed: ParsedRows,
    *,
    source: TraceSource,
    time_column: str,
    units_per_s: float = 1.0,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
    sort: bool = False,
    tick_s: float | None = None,
) -> ImportResult:
    """The trace of parsed rows, its time re-based so that the first request arrives at 0.

    Session labels become numbers in order of first appearance. With `tick_s`, requests of one
    time stamp are spread over the tick.

    Raises: TraceError when times fall and `sort` is off.
    """
    rows = parsed.rows
    if sort:
        rows = sorted(rows, key=lambda row: row.time)
    else:
        _check_order(parsed, time_column, units_per_s)
    first = rows[0].time
    arrival_s = np.array([row.time - first for row in rows], np.float64) / units_per_s
    if tick_s is not None:
        arrival_s = spread_ticks(arrival_s, tick_s)
    numbers: dict[str, int] = {}
    sessions = [
        None if row.session is None else numbers.setdefault(row.session, len(numbers))
        for row in rows
    ]
    trace = RequestTrace.from_columns(
        arrival_s=arrival_s,
        input_tokens=[row.input_tokens for row in rows],
        output_tokens=[row.output_tokens for row in rows],
        block_tokens=block_tokens,
        source=source,
        model=[row.model for row in rows],
        tenant=[row.tenant for row in rows],
        priority=[row.priority for row in rows],
        session=sessions,
        prefix=_prefix_columns(rows),
        ttft_slo_s=[row.ttft_slo_s for row in rows],
        tpot_slo_s=[row.tpot_slo_s for row in rows],
    )
    return ImportResult(trace, parsed.bad_rows)


def _prefix_columns(rows: list[ImportedRow]) -> Prefix:
    num_blocks = [len(row.prefix_blocks) for row in rows]
    ids = np.array([block for row in rows for block in row.prefix_blocks], np.uint64)
    # A file may number its blocks 0, 1, 2; mixing makes them usable as hashes.
    return np.concatenate([[0], np.cumsum(num_blocks)]), mix_all(ids, np.uint64(0))


def _check_order(parsed: ParsedRows, time_column: str, units_per_s: float) -> None:
    times = [row.time for row in parsed.rows]
    for i in range(1, len(times)):
        if times[i] < times[i - 1]:
            shown, before = (_shown_time(time, units_per_s) for time in (times[i], times[i - 1]))
            msg = (
                f"trace {parsed.path!r} line {parsed.lines[i]}: {time_column} {shown} is before "
                f"the previous row ({before}); sort the trace by {time_column}"
            )
            raise TraceError(msg)


def _shown_time(time: float, units_per_s: float) -> str:
    """A time as a person wrote it: nanoseconds stand for an ISO moment."""
    if units_per_s != NANOSECONDS_PER_S:
        return str(time)
    return datetime.fromtimestamp(time / NANOSECONDS_PER_S, UTC).isoformat()


def spread_ticks(arrival_s: npt.NDArray[np.float64], tick_s: float) -> npt.NDArray[np.float64]:
    """Sorted times with each run of equal ones spread evenly over the tick that it begins.

    A tick ends after `tick_s` or where the next time stamp is, whichever is first.
    """
    if tick_s <= 0.0:
        msg = f"tick_s must be above 0, got {tick_s}"
        raise ValueError(msg)
    ticks_s, first, counts = np.unique(arrival_s, return_index=True, return_counts=True)
    width_s = np.minimum(np.diff(ticks_s, append=np.inf), tick_s)
    rank = np.arange(arrival_s.size) - np.repeat(first, counts)
    return arrival_s + rank * np.repeat(width_s / counts, counts)


def whole_number(value: object, column: str, minimum: int = 1) -> int:
    """An integer from text or JSON, at least `minimum`.

    Raises: RowFault.
    """
    number = _whole(value)
    if number is None:
        problem = "is missing" if value in (None, "") else "is not a whole number"
        raise RowFault(value, column, f"{problem}; expected an integer of at least {minimum}")
    if not minimum <= number <= _MAX_TOKENS:
        raise RowFault(
            value, column, f"is out of range; expected an integer from {minimum} to {_MAX_TOKENS}"
        )
    return number


def _whole(value: object) -> int | None:
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if not isinstance(value, str | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def real_number(value: object, column: str) -> float:
    """A finite number from text or JSON.

    Raises: RowFault.
    """
    try:
        number = float("nan") if isinstance(value, bool) else float(cast(float, value))
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        problem = "is missing" if value in (None, "") else "is not a finite number"
        raise RowFault(value, column, f"{problem}; expected a number such as 12.5")
    return number


def iso_to_ns(value: object, column: str) -> int:
    """Nanoseconds since 1970 of an ISO 8601 moment; without a zone it is taken as UTC.

    Raises: RowFault.
    """
    if value in (None, ""):
        raise RowFault(value, column, "is missing; expected a moment")
    text = str(value)
    fraction = _FRACTION.search(text)
    digits = fraction[1] if fraction else ""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1).strip())
    except ValueError:
        raise RowFault(
            value, column, "is not a moment; expected a form like 2023-11-16 18:15:46.6805900"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    whole_s = (moment - _EPOCH) // timedelta(seconds=1)
    return whole_s * 10**9 + int(digits[:9].ljust(9, "0"))


def check_columns(path: str | Path, wanted: dict[str, str], header: Sequence[str]) -> None:
    """Check that the columns wanted for each field are in the header.

    Raises: TraceError naming the columns that are there and the nearest match.
    """
    for field, column in wanted.items():
        if column not in header:
            near = get_close_matches(column, header, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            msg = (
                f"trace {str(path)!r} has no column {column!r} for {field}; it has "
                f"{list(header)}; {hint}Name the right one in the column map"
            )
            raise TraceError(msg)

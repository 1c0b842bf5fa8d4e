"""Import of any CSV or JSONL file with one request a row, through a map of columns.

The map goes from a field of a request to the name of its column: `{"arrival_s": "ts"}`. A field
that the map leaves out is read from a column of its own name; only arrival_s, input_tokens and
output_tokens must be there.

Does not know: prefix blocks; a file that has them wants an importer of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ..errors import TraceError
from ..schema import TraceSource
from .importing import (
    NANOSECONDS_PER_S,
    ImportedRow,
    ImportResult,
    RowFault,
    build_result,
    check_columns,
    csv_rows,
    iso_to_ns,
    json_lines,
    json_object,
    open_text,
    parse_rows,
    real_number,
    whole_number,
)

TimeUnit = Literal["s", "ms", "us", "iso"]

REQUIRED_FIELDS = ("arrival_s", "input_tokens", "output_tokens")
OPTIONAL_FIELDS = ("model", "tenant", "priority", "session", "ttft_slo_s", "tpot_slo_s")

_UNITS_PER_S: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "iso": NANOSECONDS_PER_S}


def read_csv(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "s",
    sort: bool = False,
    source: TraceSource | None = None,
    skip_bad_rows: bool = False,
) -> ImportResult:
    """Read a CSV file with a header line, plain or .gz.

    Raises: TraceError for a missing column, falling times (unless `sort`) or, unless
    `skip_bad_rows`, a malformed row; ValueError for a column map with an unknown field.
    """
    wanted = _column_map(columns, time_unit)
    with open_text(path) as text:
        rows = csv_rows(text)
        header = next(rows, (0, []))[1]
        wanted = _present_columns(path, wanted, header, columns)

        def parse(cells: list[str]) -> ImportedRow:
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells; expected {len(header)}"
                raise RowFault(",".join(cells), "row", problem)
            return _parse_row(dict(zip(header, cells, strict=True)), wanted, time_unit)

        parsed = parse_rows(path, rows, parse, skip_bad_rows=skip_bad_rows)
    return build_result(
        parsed,
        source=source or TraceSource(name=Path(path).name),
        time_column=wanted["arrival_s"],
        units_per_s=_UNITS_PER_S[time_unit],
        sort=sort,
    )


def read_jsonl(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    time_unit: TimeUnit = "s",
    sort: bool = False,
    source: TraceSource | None = None,
    skip_bad_rows: bool = False,
) -> ImportResult:
    """Read a file of one JSON object a line, plain or .gz; columns are the objects' keys.

    Raises: as `read_csv`.
    """
    wanted = _column_map(columns, time_unit)
    with open_text(path) as text:
        rows, keys = _peek_keys(json_lines(text))
        # A key may be absent from a line; with skip_bad_rows even from the first.
        if keys and not skip_bad_rows:
            check_columns(path, {field: wanted[field] for field in REQUIRED_FIELDS}, keys)

        def parse(line: str) -> ImportedRow:
            return _parse_row(json_object(line), wanted, time_unit)

        parsed = parse_rows(path, rows, parse, skip_bad_rows=skip_bad_rows)
    return build_result(
        parsed,
        source=source or TraceSource(name=Path(path).name),
        time_column=wanted["arrival_s"],
        units_per_s=_UNITS_PER_S[time_unit],
        sort=sort,
    )


def _column_map(columns: Mapping[str, str] | None, time_unit: str) -> dict[str, str]:
    """The whole map, every field in it."""
    if time_unit not in _UNITS_PER_S:
        msg = f"time_unit must be one of {list(_UNITS_PER_S)}, got {time_unit!r}"
        raise ValueError(msg)
    fields = (*REQUIRED_FIELDS, *OPTIONAL_FIELDS)
    for field in columns or {}:
        if field not in fields:
            near = get_close_matches(field, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            msg = f"column map field {field!r} is none of {list(fields)}{hint}"
            raise ValueError(msg)
    return {field: field for field in fields} | dict(columns or {})


def _present_columns(
    path: str | Path,
    wanted: dict[str, str],
    header: list[str],
    columns: Mapping[str, str] | None,
) -> dict[str, str]:
    """The map without optional fields that neither the caller nor the file names."""
    if not header:
        msg = f"trace {str(path)!r} is empty; expected a header line"
        raise TraceError(msg)
    named = {*REQUIRED_FIELDS, *(columns or {})}
    check_columns(path, {field: wanted[field] for field in wanted if field in named}, header)
    return {field: column for field, column in wanted.items() if column in header}


def _peek_keys(rows: Iterator[tuple[int, str]]) -> tuple[Iterator[tuple[int, str]], list[str]]:
    """The rows again, and the keys of the first one where it is an object."""
    first = next(rows, None)
    if first is None:
        return iter(()), []
    try:
        keys = list(json_object(first[1]))
    except RowFault:
        keys = []
    return chain([first], rows), keys


def _parse_row(row: Mapping[str, Any], wanted: dict[str, str], unit: TimeUnit) -> ImportedRow:
    def value_of(field: str) -> Any:
        return row.get(wanted[field]) if field in wanted else None

    def optional(field: str, read: Callable[[Any], Any], default: Any) -> Any:
        value = value_of(field)
        return default if value is None or value == "" else read(value)

    def limit_s(value: Any, field: str) -> float:
        number = real_number(value, wanted[field])
        if number <= 0.0:
            raise RowFault(value, wanted[field], "is not above 0; expected a limit in seconds")
        return number

    read_time = iso_to_ns if unit == "iso" else real_number
    return ImportedRow(
        time=read_time(value_of("arrival_s"), wanted["arrival_s"]),
        input_tokens=whole_number(value_of("input_tokens"), wanted["input_tokens"]),
        output_tokens=whole_number(value_of("output_tokens"), wanted["output_tokens"]),
        model=optional("model", str, "default"),
        tenant=optional("tenant", str, "default"),
        priority=optional("priority", lambda v: _priority(v, wanted["priority"]), 0),
        session=optional("session", str, None),
        ttft_slo_s=optional("ttft_slo_s", lambda v: limit_s(v, "ttft_slo_s"), None),
        tpot_slo_s=optional("tpot_slo_s", lambda v: limit_s(v, "tpot_slo_s"), None),
    )


def _priority(value: Any, column: str) -> int:
    number = whole_number(value, column, minimum=0)
    if number > 127:
        raise RowFault(value, column, "is out of range; expected an integer from 0 to 127")
    return number

"""Import of logs of an OpenAI-compatible service: one JSON object a request.

A line is a response (`created`, `model`, `usage`), perhaps with `user`, `session_id` or
`metadata.session_id`, or it holds the two sides as {"request": {...}, "response": {...}}. Logs
are written when requests end, so the rows are sorted by time. Cached tokens are ignored: they
tell what one server's cache did, not what the prompts share.

Does not know: prompts; no text is kept and no prefix is derived.
"""

from pathlib import Path
from typing import Any

from ..schema import TraceSource
from .importing import (
    NANOSECONDS_PER_S,
    ImportedRow,
    ImportResult,
    RowFault,
    build_result,
    iso_to_ns,
    json_lines,
    json_object,
    open_text,
    parse_rows,
    real_number,
    whole_number,
)


def read_openai_log(
    path: str | Path,
    *,
    tick_s: float | None = None,
    source: TraceSource | None = None,
    skip_bad_rows: bool = False,
) -> ImportResult:
    """Read a log, .jsonl or .jsonl.gz; `tick_s=1.0` spreads times that are whole seconds.

    Raises: TraceError for a malformed row, unless `skip_bad_rows`.
    """
    with open_text(path) as text:
        parsed = parse_rows(path, json_lines(text), _parse_line, skip_bad_rows=skip_bad_rows)
    return build_result(
        parsed,
        source=source or TraceSource(name=Path(path).name),
        time_column="created",
        units_per_s=NANOSECONDS_PER_S,
        sort=True,
        tick_s=tick_s,
    )


def _parse_line(line: str) -> ImportedRow:
    content = json_object(line)
    sides = [content, _object(content, "response"), _object(content, "request")]
    usage = _first(sides, "usage")
    if not isinstance(usage, dict):
        raise RowFault(usage, "usage", "is missing or no object; expected usage.prompt_tokens")
    session = _first(sides, "session_id")
    if session is None:
        session = _first([_object(side, "metadata") for side in sides], "session_id")
    user = _first(sides, "user")
    model = _first(sides, "model")
    return ImportedRow(
        time=_time_ns(sides),
        input_tokens=whole_number(usage.get("prompt_tokens"), "usage.prompt_tokens"),
        output_tokens=whole_number(usage.get("completion_tokens"), "usage.completion_tokens"),
        model="default" if model is None else str(model),
        tenant="default" if user is None else str(user),
        session=None if session is None else str(session),
    )


def _object(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _first(sides: list[dict[str, Any]], key: str) -> Any:
    for side in sides:
        if side.get(key) not in (None, ""):
            return side[key]
    return None


def _time_ns(sides: list[dict[str, Any]]) -> int:
    for key in ("created", "timestamp"):
        value = _first(sides, key)
        if isinstance(value, str):
            return iso_to_ns(value, key)
        if value is not None:
            return round(real_number(value, key) * 1e6) * 1000
    raise RowFault(None, "created", "is missing; expected created or timestamp in unix seconds")

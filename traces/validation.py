"""What must hold for a table of requests, each fault named with its row and value.

Does not know: where the table came from; importers check their own rows with line numbers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import numpy_column, numpy_prefix
from .errors import TraceError

MAX_SESSION = 2**62  # room above for the ids of requests without a session


def check_table(table: pa.Table, schema: pa.Schema, block_tokens: int, trace_name: str) -> None:
    """Check a table of requests against the schema and the rules of its columns.

    Raises: TraceError naming the first fault; ValueError for block_tokens below 1.
    """
    if block_tokens < 1:
        msg = f"block_tokens must be at least 1, got {block_tokens}"
        raise ValueError(msg)
    _check_schema(table, schema, trace_name)
    _check_arrivals(numpy_column(table["arrival_s"], np.float64), trace_name)
    for name in ("input_tokens", "output_tokens", "num_sequences"):
        tokens = numpy_column(table[name], np.int32)
        _check_rows(tokens < 1, tokens, trace_name, name, "at least 1")
    priority = numpy_column(table["priority"], np.int8)
    _check_rows(priority < 0, priority, trace_name, "priority", "at least 0")
    session = numpy_column(table["session"].fill_null(0), np.int64)
    is_bad = (session < 0) | (session > MAX_SESSION)
    _check_rows(is_bad, session, trace_name, "session", "a number from 0 to 2**62, or null")
    for name in ("ttft_slo_s", "tpot_slo_s"):
        limit_s = numpy_column(table[name].fill_null(1.0), np.float64)
        is_bad = ~(np.isfinite(limit_s) & (limit_s > 0.0))
        _check_rows(is_bad, limit_s, trace_name, name, "a finite number above 0, or null")
    _check_prefix(table, block_tokens, trace_name)


def _check_schema(table: pa.Table, schema: pa.Schema, trace_name: str) -> None:
    if not table.schema.equals(schema):
        expected = {field.name: f"{field}" for field in schema}
        found = {field.name: f"{field}" for field in table.schema}
        wrong = [text for name, text in found.items() if expected.get(name) != text]
        missing = [name for name in expected if name not in found]
        msg = (
            f"trace {trace_name!r} has columns {wrong or list(found)} and lacks {missing}; "
            f"expected exactly {list(expected.values())}; build it with RequestTrace.from_columns"
        )
        raise TraceError(msg)
    for field in schema:
        num_nulls = table[field.name].null_count
        if num_nulls and not field.nullable:
            msg = (
                f"trace {trace_name!r}: {field.name} has {num_nulls} nulls; expected none; "
                "give every row a value"
            )
            raise TraceError(msg)


def _check_rows(
    is_bad: npt.NDArray[np.bool_],
    values: npt.NDArray[Any],
    trace_name: str,
    column: str,
    expected: str,
) -> None:
    if is_bad.any():
        row = int(np.argmax(is_bad))
        msg = (
            f"trace {trace_name!r} row {row}: {column} {values[row]}; expected {expected}; "
            "correct or drop the row"
        )
        raise TraceError(msg)


def _check_arrivals(arrival_s: npt.NDArray[np.float64], trace_name: str) -> None:
    is_bad = ~(np.isfinite(arrival_s) & (arrival_s >= 0.0))
    _check_rows(is_bad, arrival_s, trace_name, "arrival_s", "a finite number of at least 0")
    is_early = np.diff(arrival_s) < 0.0
    if is_early.any():
        row = int(np.argmax(is_early)) + 1
        msg = (
            f"trace {trace_name!r} row {row}: arrival_s {arrival_s[row]} is before the previous "
            f"row ({arrival_s[row - 1]}); sort the trace by arrival_s"
        )
        raise TraceError(msg)


def _check_prefix(table: pa.Table, block_tokens: int, trace_name: str) -> None:
    offsets, _ = numpy_prefix(table["prefix_blocks"])
    num_blocks = np.diff(offsets)
    input_tokens = numpy_column(table["input_tokens"], np.int32)
    is_bad = num_blocks * block_tokens > input_tokens.astype(np.int64) + block_tokens - 1
    if is_bad.any():
        row = int(np.argmax(is_bad))
        msg = (
            f"trace {trace_name!r} row {row}: prefix_blocks has {num_blocks[row]} blocks of "
            f"{block_tokens} tokens; expected no more than input_tokens {input_tokens[row]} fill; "
            "drop the surplus blocks or correct block_tokens"
        )
        raise TraceError(msg)

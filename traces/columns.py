"""From NumPy columns to one Arrow table of requests, and back to NumPy.

Does not know: what makes a table of requests valid (`validation.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MAX_BLOCKS_PER_TABLE = 2**31 - 1  # Arrow lists count their values in 32 bits

Labels = str | Sequence[str] | npt.NDArray[np.str_]
Sessions = Sequence[int | None] | npt.NDArray[np.int64] | None
Limits = float | Sequence[float | None] | npt.NDArray[np.float64] | None
Prefix = tuple[npt.ArrayLike, npt.ArrayLike] | None
Adapters = str | Sequence[str | None] | None


def whole_array(name: str, values: npt.ArrayLike, dtype: type[np.integer[Any]]) -> pa.Array:
    """Whole numbers as an Arrow array of `dtype`.

    Raises: ValueError when a value is not whole or does not fit.
    """
    array = np.asarray(values)
    if array.size == 0:
        return pa.array(np.zeros(0, dtype))
    limits = np.iinfo(dtype)
    is_bad = ~np.isfinite(array) | (array != np.floor(array))
    is_bad |= (array < limits.min) | (array > limits.max)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        msg = (
            f"{name} {array[row]} in row {row} is not a whole number from {limits.min} to "
            f"{limits.max}; round it or correct it"
        )
        raise ValueError(msg)
    return pa.array(array.astype(dtype))


def label_array(labels: Labels, num_rows: int) -> pa.Array:
    """Names as an Arrow dictionary array; one string stands for every row."""
    if isinstance(labels, str):
        index = pa.array(np.zeros(num_rows, np.int32))
        return pa.DictionaryArray.from_arrays(index, pa.array([labels], pa.string()))
    return pa.array(list(labels), pa.string()).dictionary_encode()


def adapter_array(adapter: Adapters, num_rows: int) -> pa.Array:
    """Adapter names as a nullable Arrow dictionary array; None stands for none in any row."""
    names = [adapter] * num_rows if adapter is None or isinstance(adapter, str) else list(adapter)
    return pa.array(names, pa.string()).dictionary_encode()


def count_array(name: str, counts: int | npt.ArrayLike, num_rows: int) -> pa.Array:
    """Counts as int32; one number stands for every row."""
    values = np.full(num_rows, counts) if np.ndim(counts) == 0 else counts
    return whole_array(name, values, np.int32)


def complete_table(table: pa.Table) -> pa.Table:
    """A table of requests with the columns that older traces lack, at what they stand for."""
    num_rows = table.num_rows
    if "adapter" not in table.column_names:
        table = table.append_column("adapter", adapter_array(None, num_rows))
    if "num_sequences" not in table.column_names:
        field = pa.field("num_sequences", pa.int32(), nullable=False)
        table = table.append_column(field, count_array("num_sequences", 1, num_rows))
    return table


def priority_array(priority: int | npt.ArrayLike, num_rows: int) -> pa.Array:
    """Priorities as int8; one number stands for every row."""
    values = np.full(num_rows, priority) if np.ndim(priority) == 0 else priority
    return whole_array("priority", values, np.int8)


def session_array(session: Sessions, num_rows: int) -> pa.Array:
    """Sessions as nullable int64; None stands for no session in any row."""
    if session is None:
        return pa.nulls(num_rows, pa.int64())
    return pa.array(session, pa.int64())


def limit_array(limit: Limits, num_rows: int) -> pa.Array:
    """Service limits in seconds as nullable float64; NaN and None mean no limit."""
    if limit is None:
        return pa.nulls(num_rows, pa.float64())
    values = np.full(num_rows, limit) if isinstance(limit, int | float) else limit
    return pa.array(values, pa.float64(), from_pandas=True)


def prefix_array(prefix: Prefix, num_rows: int) -> pa.Array:
    """Block hashes as list<uint64>, from offsets [N + 1] and hashes [sum of blocks].

    Raises: ValueError when the offsets do not fit the hashes or Arrow's 32 bits.
    """
    if prefix is None:
        prefix = (np.zeros(num_rows + 1, np.int64), np.zeros(0, np.uint64))
    offsets = np.asarray(prefix[0], np.int64)
    hashes = np.asarray(prefix[1], np.uint64)
    if offsets.size == 0 or offsets[0] != 0 or offsets[-1] != hashes.size:
        ends = (int(offsets[0]), int(offsets[-1])) if offsets.size else None
        msg = f"prefix offsets run over {ends}; expected 0 to {hashes.size}, the number of hashes"
        raise ValueError(msg)
    if (np.diff(offsets) < 0).any():
        row = int(np.argmax(np.diff(offsets) < 0))
        msg = f"prefix offsets fall after row {row}; expected non-decreasing offsets"
        raise ValueError(msg)
    if hashes.size > MAX_BLOCKS_PER_TABLE:
        msg = (
            f"prefix holds {hashes.size} blocks; expected at most {MAX_BLOCKS_PER_TABLE}; "
            "use larger blocks or several traces"
        )
        raise ValueError(msg)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(hashes))


def numpy_column(column: pa.ChunkedArray, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A column without nulls as a read-only NumPy array, without a copy where Arrow allows it."""
    array = np.ascontiguousarray(column.to_numpy(), dtype=dtype)
    array.flags.writeable = False
    return array


def numpy_labels(column: pa.ChunkedArray) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """The names that occur, in dictionary order, and each row's index into them."""
    encoded = _one_chunk(column)
    used, places = np.unique(encoded.indices.to_numpy(), return_inverse=True)
    names = encoded.dictionary.to_pylist()
    index = places.astype(np.int32)
    index.flags.writeable = False
    return tuple(names[i] for i in used), index


def numpy_optional_labels(
    column: pa.ChunkedArray,
) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """The names that occur, sorted, and each row's index into them from 1, 0 for null."""
    encoded = _one_chunk(column.cast(pa.string())).dictionary_encode()
    places = encoded.indices.fill_null(-1).to_numpy()
    names = encoded.dictionary.to_pylist()
    ranks = np.zeros(len(names) + 1, np.int32)
    ranks[np.argsort(np.array(names, dtype=np.str_))] = np.arange(1, len(names) + 1)
    index = ranks[places]
    index.flags.writeable = False
    return tuple(sorted(names)), index


def numpy_prefix(
    column: pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Offsets [N + 1] from 0 and hashes [sum of blocks] of a list column."""
    lists = _one_chunk(column)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    hashes = lists.values.to_numpy()[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    offsets.flags.writeable = False
    hashes.flags.writeable = False
    return offsets, hashes


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array; Arrow's combine_chunks would copy even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

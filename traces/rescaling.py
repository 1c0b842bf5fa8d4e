"""The same requests with shorter prompts and answers: every block becomes a shorter one.

What was reused stays reused: equal prefixes stay equal, and make up the same share of a prompt.

Does not know: why they are to be shorter.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import prefix_array
from .hashing import mix_all
from .schema import RequestTrace


def rescale(trace: RequestTrace, *, eighths: int, block_tokens: int) -> RequestTrace:
    """Return a trace with lengths of so many eighths, in blocks of `block_tokens`.

    Raises: ValueError unless an eighth of the trace's block is a multiple of `block_tokens`, or
    eighths are from 1 to 8.
    """
    parts, rest = divmod(trace.block_tokens, 8 * block_tokens)
    if rest or not 1 <= eighths <= 8:
        msg = (
            f"eighths must be from 1 to 8 and block_tokens divide an eighth of "
            f"{trace.block_tokens} tokens, got {eighths} and {block_tokens}"
        )
        raise ValueError(msg)
    parts *= eighths
    hashes = trace.prefix_block_hashes
    finer = np.stack([mix_all(hashes, np.uint64(part)) for part in range(parts)], axis=1)
    columns = {
        "input_tokens": pa.array(_scaled(trace.input_tokens, eighths)),
        "output_tokens": pa.array(_scaled(trace.output_tokens, eighths)),
        "prefix_blocks": prefix_array((trace.prefix_offsets * parts, finer.ravel()), len(trace)),
    }
    # The table is checked once, with its new blocks.
    table = trace.table
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return RequestTrace(table, block_tokens, trace.source)


def _scaled(tokens: npt.NDArray[np.int32], eighths: int) -> npt.NDArray[np.int32]:
    scaled: npt.NDArray[np.int32] = (-(-tokens.astype(np.int64) * eighths // 8)).astype(np.int32)
    return scaled

"""Import of Mooncake traces: arrivals, token counts and prefix blocks of a chat service.

Fields of each line: timestamp (ms), input_length, output_length, hash_ids (one a block of 512
tokens; equal ids mean equal blocks and equal prompts before them). The last block of a prompt
may be partial and is dropped. The public conversation trace stamps requests in ticks of 3 s;
the requests of a tick are spread evenly over it.

Source: kvcache-ai/Mooncake, FAST25-release/traces.
"""

from collections.abc import Sequence
from pathlib import Path

from ..schema import TraceSource
from .importing import (
    ImportedRow,
    ImportResult,
    RowFault,
    build_result,
    json_lines,
    json_object,
    open_text,
    parse_rows,
    real_number,
    whole_number,
)

MOONCAKE_SOURCE = TraceSource(
    name="Mooncake trace",
    licence="Apache-2.0",
    citation="Qin et al., Mooncake: Trading More Storage for Less Computation, FAST 2025",
    url="https://github.com/kvcache-ai/Mooncake",
)

# Tokens a block, from the README of the traces.
MOONCAKE_BLOCK_TOKENS = 512


def read_mooncake(
    path: str | Path,
    *,
    model: str = "default",
    tenant: str = "default",
    tick_s: float = 3.0,
    skip_bad_rows: bool = False,
) -> ImportResult:
    """Read a Mooncake file, .jsonl or .jsonl.gz, every request of one model and tenant.

    Raises: TraceError for a malformed row, unless `skip_bad_rows`.
    """

    def parse(line: str) -> ImportedRow:
        content = json_object(line)
        input_tokens = whole_number(content.get("input_length"), "input_length")
        return ImportedRow(
            time=real_number(content.get("timestamp"), "timestamp"),
            input_tokens=input_tokens,
            output_tokens=whole_number(content.get("output_length"), "output_length"),
            model=model,
            tenant=tenant,
            prefix_blocks=_full_blocks(content.get("hash_ids"), input_tokens),
        )

    with open_text(path) as text:
        parsed = parse_rows(path, json_lines(text), parse, skip_bad_rows=skip_bad_rows)
    return build_result(
        parsed,
        source=MOONCAKE_SOURCE,
        time_column="timestamp",
        units_per_s=1e3,
        block_tokens=MOONCAKE_BLOCK_TOKENS,
        tick_s=tick_s,
    )


def _full_blocks(hash_ids: object, input_tokens: int) -> Sequence[int]:
    if not isinstance(hash_ids, list):
        raise RowFault(hash_ids, "hash_ids", "is not a list; expected one number a prompt block")
    is_whole = {type(block) for block in hash_ids} <= {int}
    if not is_whole or not 0 <= min(hash_ids, default=0) <= max(hash_ids, default=0) < 2**64:
        problem = "holds more than block numbers; expected integers from 0 to below 2**64"
        raise RowFault(hash_ids, "hash_ids", problem)
    return hash_ids[: input_tokens // MOONCAKE_BLOCK_TOKENS]

"""The files of a recording: a trace that replays, and what became of each of its requests.

    DIR/trace/            requests (`traces/store.py`)
    DIR/outcomes/*.parquet  one file for each part of the trace, of the same name and order
    DIR/windows/*.parquet

The trace's manifest is the truth: an outcome file without a part that it lists is not there, and
is written anew. So whatever moment the writer is killed at, what can be read fits together.

Does not know: threads, or where requests come from.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...traces.schema import RequestTrace, TraceSource
from ...traces.store import MANIFEST_NAME, append_store, read_manifest, write_store
from .request_rows import RequestRow

TRACE_DIR, OUTCOME_DIR, WINDOW_DIR = "trace", "outcomes", "windows"
SOURCE = TraceSource(name="trimtab-live", licence="the recorder's own")
# KV pages are a power of two, and a block must be a multiple of one.
_PAGE_TOKENS = 16
_SESSION_BITS = (1 << 62) - 1

OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string()),
        pa.field("arrived_at_s", pa.float64()),  # monotonic clock of the gateway
        pa.field("replica", pa.string()),  # null: it had none
        pa.field("ending", pa.string()),  # an `Ending`, or the code of a refusal
        pa.field("status", pa.int32()),
        pa.field("num_attempts", pa.int32()),
        pa.field("predicted_ttft_s", pa.float64()),
        pa.field("hit_tokens", pa.int32()),  # believed to be cached
        pa.field("cached_tokens", pa.int32()),  # as the engine counts them; null if it does not
        pa.field("ttft_s", pa.float64()),  # null if nothing was seen of a first token
        pa.field("end_s", pa.float64()),  # from arrival
        pa.field("is_stream", pa.bool_()),
    ]
)


class Recording:
    """Writes one recording; one that is there is continued where it ends."""

    def __init__(self, directory: Path, replica_names: Sequence[str]) -> None:
        self.directory = directory
        self.num_bytes = _bytes_under(directory)
        self._names = list(replica_names)
        self._store = directory / TRACE_DIR
        self._next_part = 0
        self._last_arrival_s = 0.0
        self._block_tokens = 0
        self._start_s: float | None = None
        self._num_windows = len(list((directory / WINDOW_DIR).glob("part-*.parquet")))
        self._is_open = False

    def _open(self) -> None:
        """Find out where the recording ends.

        Raises: TraceError if what is there is no recording.
        """
        if self._is_open:
            return
        if (self._store / MANIFEST_NAME).exists():
            manifest = read_manifest(self._store)
            last = manifest.parts[-1]
            self._next_part = _number(last.file) + 1
            self._last_arrival_s = last.last_arrival_s
            self._block_tokens = manifest.block_tokens
        else:
            # A part without a manifest is what a writer left that was killed at its first one.
            for orphan in self._store.glob("part-*.parquet"):
                orphan.unlink()
        self._is_open = True

    def write(self, rows: Sequence[RequestRow]) -> None:
        """Add requests, in order of arrival.

        Raises: OSError if they cannot be written, TraceError if the store is not what it was.
        """
        self._open()
        if self._start_s is None:
            # A run that continues another begins where that one's last request arrived.
            self._start_s = rows[0].facts.arrived_at_s - self._last_arrival_s
        if not self._block_tokens:
            self._block_tokens = _block_tokens(rows)
        trace = self._trace(rows)
        outcomes = [self._outcome(row) for row in rows]
        table = pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA)
        self._write_part(OUTCOME_DIR, f"part-{self._next_part:05d}.parquet", table)
        if self._next_part:
            append_store(self._store, trace)
        else:
            write_store(self._store, trace)
        part = self._store / f"part-{self._next_part:05d}.parquet"
        self.num_bytes += part.stat().st_size
        self._next_part += 1
        self._last_arrival_s = float(trace.arrival_s[-1])

    def write_windows(self, windows: Sequence[Mapping[str, Any]]) -> None:
        """Add windows; a value that one of them does not have is null there.

        Raises: OSError.
        """
        names = dict.fromkeys(name for window in windows for name in window)
        table = pa.table({name: [window.get(name) for window in windows] for name in names})
        self._write_part(WINDOW_DIR, f"part-{self._num_windows:06d}.parquet", table)
        self._num_windows += 1

    @property
    def num_parts(self) -> int:
        """Parts of the trace."""
        return self._next_part

    def _trace(self, rows: Sequence[RequestRow]) -> RequestTrace:
        assert self._start_s is not None
        facts = [row.facts for row in rows]
        lengths = [_lengths(row) for row in rows]
        blocks = [
            each.blocks[: tokens // self._block_tokens]
            for each, (tokens, _) in zip(facts, lengths, strict=True)
        ]
        offsets = np.cumsum([0, *(len(each) for each in blocks)])
        arrival_s = [each.arrived_at_s - self._start_s for each in facts]
        return RequestTrace.from_columns(
            # One that was waited for too long counts as come after those that were written.
            arrival_s=np.maximum(arrival_s, self._last_arrival_s),
            input_tokens=[tokens for tokens, _ in lengths],
            output_tokens=[tokens for _, tokens in lengths],
            block_tokens=self._block_tokens,
            source=SOURCE,
            model=[each.model for each in facts],
            tenant=[each.tenant for each in facts],
            priority=[each.priority for each in facts],
            # A trace has 62 bits for a session; a hash of 0 stands for none.
            session=[each.session_hash & _SESSION_BITS or None for each in facts],
            prefix=(offsets, np.concatenate(blocks).astype(np.uint64)),
            ttft_slo_s=[_finite(each.ttft_slo_s) for each in facts],
            tpot_slo_s=[_finite(each.tpot_slo_s) for each in facts],
            adapter=[each.adapter for each in facts],
        )

    def _outcome(self, row: RequestRow) -> dict[str, Any]:
        facts, placement, end = row.facts, row.placement, row.end
        outcome: dict[str, Any] = {
            "request_id": facts.request_id,
            "arrived_at_s": facts.arrived_at_s,
            "is_stream": facts.is_stream,
        }
        if row.refusal is not None:
            outcome |= {
                "ending": row.refusal.code,
                "status": row.refusal.status,
                "end_s": row.refused_at_s - facts.arrived_at_s,
            }
        if placement is not None:
            first_s = placement.first_token_at_s - facts.arrived_at_s
            outcome |= {
                "replica": self._names[placement.replica],
                "num_attempts": placement.num_attempts,
                "predicted_ttft_s": placement.predicted_ttft_s,
                "hit_tokens": placement.hit_tokens,
                "ttft_s": first_s if first_s == first_s else None,
            }
        if end is not None:
            outcome |= {
                "ending": str(end.ending),
                "status": end.status,
                "cached_tokens": end.cached_tokens,
                "end_s": end.ended_at_s - facts.arrived_at_s,
            }
        return outcome

    def _write_part(self, folder_name: str, name: str, table: pa.Table) -> None:
        folder = self.directory / folder_name
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{name}.{os.getpid()}.partial"
        try:
            pq.write_table(table, partial, compression="zstd")
            self.num_bytes += partial.stat().st_size
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)


def _number(file_name: str) -> int:
    return int(file_name.removeprefix("part-").removesuffix(".parquet"))


def _bytes_under(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.parquet"))


def _finite(limit_s: float) -> float | None:
    return limit_s if math.isfinite(limit_s) else None


def _block_tokens(rows: Sequence[RequestRow]) -> int:
    """Return how many tokens a block of the trace stands for: as estimated, in whole KV pages."""
    known = [row.facts.block_tokens for row in rows if row.facts.blocks.size]
    tokens = float(np.median(known)) if known else 4.0 * _PAGE_TOKENS
    return max(1, round(tokens / _PAGE_TOKENS)) * _PAGE_TOKENS


def _lengths(row: RequestRow) -> tuple[int, int]:
    """Return prompt and output tokens: as counted by the engine, else as estimated or seen."""
    facts, end = row.facts, row.end
    if end is None:
        return max(1, facts.input_tokens), max(1, round(facts.expected_output_tokens))
    input_tokens = facts.input_tokens if end.input_tokens is None else end.input_tokens
    return max(1, input_tokens), max(1, end.output_tokens)


def read_outcomes(directory: Path) -> pa.Table:
    """Return what became of the requests of a recording, row by row as in its trace.

    Raises: TraceError if there is no recording.
    """
    parts = read_manifest(directory / TRACE_DIR).parts
    folder = directory / OUTCOME_DIR
    return pa.concat_tables([pq.read_table(folder / part.file) for part in parts])

"""Records the requests of a live run as a trace store that replays in the simulator.

In the request's path a row is noted and nothing else; a thread writes. A request is written once it
has ended and all that arrived before it have, as a trace is in order of arrival. Beside the store,
`outcomes/` says what became of each request, in the same order, and `windows/` who ruled.

    DIR/trace/            requests (`traces/store.py`)
    DIR/outcomes/*.parquet
    DIR/windows/*.parquet

Does not know: prompts; lengths and block hashes are all that it gets.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...traces.schema import RequestTrace, TraceSource
from ...traces.store import append_store, write_store
from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts

_LOG = logging.getLogger(__name__)

TRACE_DIR, OUTCOME_DIR, WINDOW_DIR = "trace", "outcomes", "windows"
SOURCE = TraceSource(name="trimtab-live", licence="the recorder's own")
# Rows kept in memory at most; of more, new ones are not recorded and counted.
MAX_ROWS = 200_000
_FLUSH_S = 2.0
# KV pages are a power of two, and a block must be a multiple of one.
_PAGE_TOKENS = 16

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


class _Row:
    """One request: noted when it comes, filled when it ends."""

    __slots__ = ("end", "facts", "placement", "refusal", "refused_at_s")

    def __init__(self, facts: RequestFacts) -> None:
        self.facts = facts
        self.placement: Placement | None = None
        self.end: RequestEnd | None = None
        self.refusal: Refusal | None = None
        self.refused_at_s = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether its fate is known."""
        return self.end is not None or self.refusal is not None


class Recorder:
    """A `DispatchListener`. `start` begins to write, `close` writes what is left."""

    def __init__(self, directory: Path, replica_names: Sequence[str]) -> None:
        self.directory = directory
        self.num_dropped = 0
        """Requests that were not recorded, as too many were under way."""
        self.num_written = 0
        self._names = list(replica_names)
        self._open: OrderedDict[str, _Row] = OrderedDict()
        self._windows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_s: float | None = None
        self._block_tokens = 0
        self._num_parts = {OUTCOME_DIR: 0, WINDOW_DIR: 0}

    def start(self) -> None:
        """Begin to write, in a thread."""
        for name in (OUTCOME_DIR, WINDOW_DIR):
            folder = self.directory / name
            folder.mkdir(parents=True, exist_ok=True)
            self._num_parts[name] = len(list(folder.glob("*.parquet")))
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write all that has ended, and stop."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    # In the path of requests.

    def on_placed(self, placement: Placement) -> None:
        """See `DispatchListener`."""
        row = self._open.get(placement.facts.request_id)
        if row is None:
            row = self._new(placement.facts)
            if row is None:
                return
        row.placement = placement

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """See `DispatchListener`."""
        row = self._open.get(facts.request_id) or self._new(facts)
        if row is not None:
            row.refusal, row.refused_at_s = refusal, now_s

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """See `DispatchListener`."""
        row = self._open.get(placement.facts.request_id)
        if row is not None:
            row.placement, row.end = placement, end

    def _new(self, facts: RequestFacts) -> _Row | None:
        if len(self._open) >= MAX_ROWS:
            self.num_dropped += 1
            return None
        row = self._open[facts.request_id] = _Row(facts)
        return row

    def note_window(self, values: Mapping[str, Any]) -> None:
        """Note who ruled a window, and what was set; values are numbers and words."""
        with self._lock:
            self._windows.append(dict(values))
            del self._windows[:-MAX_ROWS]

    # In the thread.

    def _run(self) -> None:
        while not self._is_closing.wait(_FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Write what has ended, in order of arrival."""
        rows = self._take_settled()
        try:
            if rows:
                self._write(rows)
            with self._lock:
                windows, self._windows = self._windows, []
            if windows:
                self._write_part(WINDOW_DIR, pa.Table.from_pylist(windows))
        except OSError as error:
            self.num_dropped += len(rows)
            _LOG.error("%d requests could not be recorded: %s", len(rows), error)

    def _take_settled(self) -> list[_Row]:
        """Take the requests from the first on that have all ended."""
        rows = []
        for request_id, row in list(self._open.items()):
            if not row.is_settled:
                break
            rows.append(row)
            del self._open[request_id]
        return rows

    def _write(self, rows: list[_Row]) -> None:
        rows.sort(key=lambda row: row.facts.arrived_at_s)
        if self._start_s is None:
            self._start_s = rows[0].facts.arrived_at_s
        if not self._block_tokens:
            self._block_tokens = _block_tokens(rows)
        # The trace is what counts: an outcome without its request is cut off by whoever reads.
        self._write_part(OUTCOME_DIR, pa.Table.from_pylist(
            [self._outcome(row) for row in rows], schema=OUTCOME_SCHEMA
        ))  # fmt: skip
        trace = self._trace(rows)
        store = self.directory / TRACE_DIR
        if store.exists():
            append_store(store, trace)
        else:
            write_store(store, trace)
        self.num_written += len(rows)

    def _trace(self, rows: list[_Row]) -> RequestTrace:
        assert self._start_s is not None
        facts = [row.facts for row in rows]
        lengths = [_lengths(row) for row in rows]
        blocks = [
            each.blocks[: tokens // self._block_tokens]
            for each, (tokens, _) in zip(facts, lengths, strict=True)
        ]
        offsets = np.cumsum([0, *(len(each) for each in blocks)])
        # A request that was read before an earlier one was written counts as come after it.
        arrival_s = np.maximum.accumulate([each.arrived_at_s - self._start_s for each in facts])
        return RequestTrace.from_columns(
            arrival_s=np.maximum(arrival_s, self._last_arrival_s()),
            input_tokens=[tokens for tokens, _ in lengths],
            output_tokens=[tokens for _, tokens in lengths],
            block_tokens=self._block_tokens,
            source=SOURCE,
            model=[each.model for each in facts],
            tenant=[each.tenant for each in facts],
            priority=[each.priority for each in facts],
            session=[each.session_hash for each in facts],
            prefix=(offsets, np.concatenate(blocks).astype(np.uint64)),
            ttft_slo_s=[each.ttft_slo_s for each in facts],
            tpot_slo_s=[each.tpot_slo_s for each in facts],
            adapter=[each.adapter for each in facts],
        )

    def _last_arrival_s(self) -> float:
        from ...traces.store import read_manifest

        store = self.directory / TRACE_DIR
        return read_manifest(store).parts[-1].last_arrival_s if store.exists() else 0.0

    def _outcome(self, row: _Row) -> dict[str, Any]:
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

    def _write_part(self, name: str, table: pa.Table) -> None:
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"part-{self._num_parts[name]:06d}.parquet"
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(path)
        self._num_parts[name] += 1


def _block_tokens(rows: list[_Row]) -> int:
    """Return how many tokens a block of the trace stands for: as estimated, in whole KV pages."""
    known = [row.facts.block_tokens for row in rows if row.facts.blocks.size]
    tokens = float(np.median(known)) if known else 4.0 * _PAGE_TOKENS
    return max(1, round(tokens / _PAGE_TOKENS)) * _PAGE_TOKENS


def _lengths(row: _Row) -> tuple[int, int]:
    """Return prompt and output tokens: as counted by the engine, else as estimated or seen."""
    facts, end = row.facts, row.end
    if end is None:
        return max(1, facts.input_tokens), max(1, round(facts.expected_output_tokens))
    input_tokens = facts.input_tokens if end.input_tokens is None else end.input_tokens
    return max(1, input_tokens), max(1, end.output_tokens)


def read_outcomes(directory: Path) -> pa.Table:
    """Return what became of the requests of a recording, row by row as in its trace."""
    parts = sorted((directory / OUTCOME_DIR).glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])

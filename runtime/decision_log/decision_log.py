"""Writes decisions: one short row for each, and all that went into every n-th.

    DIR/requests/*.parquet     one row a request: where, why not, how it ended
    DIR/candidates/*.parquet   one row for each replica of a decision that is kept in full

Parts are written by a thread, whole or not at all; when they take more room than they may, the
oldest go. Tables are joined by `request_id`.

Does not know: who reads them (`explanation.py`).
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...env.dispatch import QUERY_DTYPE, TERM_NAMES, VIEW_DTYPE
from ...env.lookahead.decide import WORTH_TERM_NAMES
from ...traces.errors import TrimtabError
from ..dispatcher.decision_ring import DecisionRecord
from ..dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts
from .confidence import PredictionError, confidence

__all__ = ["CANDIDATES", "REQUESTS", "Circumstances", "DecisionLog", "confidence"]

_LOG = logging.getLogger(__name__)

REQUESTS, CANDIDATES = "requests", "candidates"
MAX_ROWS = 100_000
"""Rows of either table kept in memory at most; of more, new ones are dropped and counted."""
_FLUSH_S = 2.0

REQUEST_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("request_id", "model", "tenant")),
        pa.field("priority", pa.int32()),
        pa.field("input_tokens", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("expected_output_tokens", "output_tokens_p90")),
        pa.field("cluster", pa.int32()),
        *(pa.field(name, pa.float64()) for name in ("ttft_slo_s", "tpot_slo_s")),
        *(pa.field(name, pa.float64()) for name in ("arrived_at_s", "placed_at_s", "ended_at_s")),
        pa.field("replica", pa.string()),  # null: it had none
        pa.field("decision", pa.int64()),
        pa.field("num_attempts", pa.int32()),
        pa.field("hit_tokens", pa.int64()),
        *(pa.field(name, pa.float64()) for name in ("predicted_ttft_s", "ttft_s")),
        pa.field("output_tokens", pa.int64()),
        pa.field("cached_tokens", pa.int64()),  # null: the engine does not say
        pa.field("status", pa.int32()),
        pa.field("ending", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What held when decisions were made: who ruled, and why."""

    ruler: str
    doubt: str = ""
    override_size: float = 0.0
    attention: str = ""
    """Weights of the policy's attention, as JSON; empty if it gave none."""


class DecisionLog:
    """A `DispatchListener`; `keep` takes the decisions that the dispatcher kept in full."""

    def __init__(
        self,
        directory: Path,
        replica_names: Sequence[str],
        *,
        circumstances: Callable[[], Circumstances] = lambda: Circumstances(ruler=""),
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises: ValueError if `max_bytes` is below a megabyte."""
        if max_bytes < 1 << 20:
            msg = f"max_bytes must be at least {1 << 20}, got {max_bytes}"
            raise ValueError(msg)
        self.directory = directory
        self.num_dropped = 0
        self._names = list(replica_names)
        self._circumstances, self._clock = circumstances, clock
        self._max_bytes = max_bytes
        self._requests: deque[tuple[Placement | None, RequestFacts, Any, float]] = deque()
        self._kept: deque[tuple[DecisionRecord, Circumstances]] = deque()
        self.prediction_error = PredictionError()
        """How wrong predictions of TTFT have been."""
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_parts = 0

    def start(self) -> None:
        """Begin to write, in a thread."""
        for name in (REQUESTS, CANDIDATES):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        numbers = [int(path.stem.split("-")[1]) for path in self._parts()]
        self._num_parts = max(numbers, default=-1) + 1
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left, and stop."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    # In the path of requests.

    def on_placed(self, placement: Placement) -> None:
        """See `DispatchListener`; what counts is how it ends."""

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """See `DispatchListener`."""
        if self._has_room():
            self._requests.append((None, facts, refusal, now_s))

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """See `DispatchListener`."""
        if self._has_room():
            self._requests.append((placement, placement.facts, end, end.ended_at_s))

    def _has_room(self) -> bool:
        if len(self._requests) < MAX_ROWS:
            return True
        self.num_dropped += 1
        return False

    def keep(self, records: Sequence[DecisionRecord]) -> None:
        """Take decisions that were kept in full."""
        circumstances = self._circumstances()
        for record in records:
            if len(self._kept) * len(self._names) >= MAX_ROWS:
                self.num_dropped += 1
            else:
                self._kept.append((record, circumstances))

    # In the thread.

    def _run(self) -> None:
        while not self._is_closing.wait(_FLUSH_S):
            self.flush()

    def flush(self) -> None:
        """Write what has come, and make room."""
        requests = [self._requests.popleft() for _ in range(len(self._requests))]
        kept = [self._kept.popleft() for _ in range(len(self._kept))]
        if not requests and not kept:
            return
        try:
            if requests:
                rows = [self._request_row(*each) for each in requests]
                self._write(REQUESTS, pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA))
            if kept:
                self._write(CANDIDATES, self._candidate_table(kept))
        except (OSError, TrimtabError, ValueError, pa.ArrowException) as error:
            self.num_dropped += len(requests) + len(kept)
            _LOG.error("%d decisions could not be logged: %s", len(requests) + len(kept), error)
        # Also after a fault: one of the two may have been written, and room may be what lacks.
        self._num_parts += 1
        self._make_room()

    def _request_row(
        self, placement: Placement | None, facts: RequestFacts, fate: Any, at_s: float
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "request_id": facts.request_id, "model": facts.model, "tenant": facts.tenant,
            "priority": facts.priority, "input_tokens": facts.input_tokens,
            "expected_output_tokens": facts.expected_output_tokens,
            "output_tokens_p90": facts.output_tokens_p90, "cluster": facts.cluster,
            "ttft_slo_s": facts.ttft_slo_s, "tpot_slo_s": facts.tpot_slo_s,
            "arrived_at_s": facts.arrived_at_s, "ended_at_s": at_s, "replica": None,
            "decision": 0, "num_attempts": 0, "hit_tokens": 0, "predicted_ttft_s": float("nan"),
            "ttft_s": float("nan"), "output_tokens": 0, "cached_tokens": None,
            "placed_at_s": float("nan"), "status": fate.status,
            "ending": fate.code if isinstance(fate, Refusal) else str(fate.ending),
        }  # fmt: skip
        if placement is not None:
            self.prediction_error.note(placement)
            row |= {
                "replica": self._names[placement.replica], "decision": placement.number,
                "num_attempts": placement.num_attempts, "hit_tokens": placement.hit_tokens,
                "predicted_ttft_s": placement.predicted_ttft_s,
                "ttft_s": placement.first_token_at_s - facts.arrived_at_s,
                "placed_at_s": placement.placed_at_s, "output_tokens": fate.output_tokens,
                "cached_tokens": fate.cached_tokens,
            }  # fmt: skip
        return row

    def _candidate_table(self, kept: list[tuple[DecisionRecord, Circumstances]]) -> pa.Table:
        num, error_frac = len(self._names), self.prediction_error.frac
        records = [record for record, _ in kept]
        columns: dict[str, Any] = {
            "request_id": np.repeat([record.request_id for record in records], num),
            "decision": np.repeat([record.number for record in records], num),
            "at_s": np.repeat([record.at_s for record in records], num),
            "replica": self._names * len(records),
            "is_chosen": np.concatenate(
                [(np.arange(num) == r.choice) & (not r.is_refused) for r in records]
            ),
            "refused": np.repeat([r.refused.name if r.refused else "" for r in records], num),
            "probability": np.repeat([1.0] * len(records), num),
            "confidence": np.repeat([confidence(record, error_frac) for record in records], num),
            "cost": np.concatenate([record.costs for record in records]),
            "is_barred": np.concatenate([~np.isfinite(record.bias) for record in records]),
            "hit_tokens": np.concatenate([record.hits for record in records]),
            "page_age_s": np.concatenate(
                [record.at_s - record.view["scraped_at_s"] for record in records]
            ),
            "knob_version": np.repeat([record.knob_version for record in records], num),
            "policy_version": np.repeat([record.policy_version for record in records], num),
            "ruler": np.repeat([each.ruler for _, each in kept], num),
            "doubt": np.repeat([each.doubt for _, each in kept], num),
            "override_size": np.repeat([each.override_size for _, each in kept], num),
            "attention": np.repeat([each.attention for _, each in kept], num),
        }
        views = np.concatenate([record.view for record in records])
        for name in VIEW_DTYPE.names or ():
            columns[f"view_{name}"] = views[name]
        terms = np.concatenate([record.terms for record in records])  # [records x R, terms]
        for place, name in enumerate(TERM_NAMES):
            columns[f"term_{name}"] = terms[:, place]
        columns["is_by_worth"] = np.repeat([record.is_by_worth for record in records], num)
        worth = np.concatenate([record.worth_terms for record in records])
        for place, name in enumerate(WORTH_TERM_NAMES):
            # Null where a replica was not looked at.
            columns[f"worth_{name}"] = pa.array(worth[:, place], from_pandas=True)
        columns["bias"] = np.concatenate([record.bias for record in records])
        for name in QUERY_DTYPE.names or ():
            values = [record.query[name][0] for record in records]
            columns[f"query_{name}"] = np.repeat(values, num)
        return pa.table(columns)

    def _write(self, name: str, table: pa.Table) -> None:
        folder = self.directory / name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"part-{self._num_parts:08d}.parquet"
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            pq.write_table(table, partial, compression="zstd", use_dictionary=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return sorted(self.directory.glob("*/part-*.parquet"), key=lambda path: path.name)

    def _make_room(self) -> None:
        """Delete the oldest parts while all take more bytes than they may."""
        parts = self._parts()
        sizes = [path.stat().st_size for path in parts]
        excess = sum(sizes) - self._max_bytes
        for path, size in zip(parts, sizes, strict=True):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

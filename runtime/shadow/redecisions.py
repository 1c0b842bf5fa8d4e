"""Each logged decision made again by other knobs, on the very view that the gateway had.

Does not know: where the knobs come from, or what would have come of the other choices
(`resimulation.py`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...env.dispatch import (
    NUM_TERMS,
    QUERY_DTYPE,
    TERM_NAMES,
    VIEW_DTYPE,
    choose_replica,
    explain,
    is_shed,
    refresh_slow_factor,
)
from ...env.knobs import Knobs
from ...env.shadow import JUDGE_KNOBS, is_expected_to_meet
from ...traces.errors import TrimtabError
from ..decision_log.decision_log import CANDIDATES

NOBODY = "(refused)"
"""Stands for a replica where a request was, or would have been, refused."""


class ShadowError(TrimtabError):
    """There is not enough in the logs to compare schedulers by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redecision:
    """One decision by both."""

    request_id: str
    at_s: float
    taken: str
    """Replica that had the request, or `NOBODY`."""
    other: str
    """Replica that the other knobs would have chosen, or `NOBODY`."""
    reason: str
    """Term of the cost that speaks most for the other's choice; empty where they agree."""
    margin: float
    """By how much the other's choice is cheaper to it than the one that was taken."""
    is_taken_met: bool
    """Whether the choice that was taken was expected to meet both limits."""
    is_other_met: bool
    decision_s: float
    """Time that the other decision took, called from Python."""

    @property
    def is_same(self) -> bool:
        """Whether both agree."""
        return self.taken == self.other


def read_candidates(directory: Path) -> pa.Table:
    """Return all decisions that a log holds in full.

    Raises:
        ShadowError: it holds none.
    """
    parts = sorted((directory / CANDIDATES).glob("part-*.parquet"))
    if not parts:
        msg = (
            f"the decision log in '{directory}' holds no decision in full; serve with "
            "--decisions DIR --decision-every N"
        )
        raise ShadowError(msg)
    return pa.concat_tables([pq.read_table(part) for part in parts], promote_options="default")


def redecide(
    candidates: pa.Table, nominal: np.ndarray, knobs_at: Callable[[float], Knobs]
) -> list[Redecision]:
    """Make all decisions again; `knobs_at` gives the other knobs of a moment.

    Shapes: `nominal` LATENCY_DTYPE [R].

    Raises:
        ShadowError: the log is of another number of replicas, or the knobs place by worth.
    """
    num = nominal.size
    rows = candidates.num_rows
    if rows % num:
        msg = f"the decision log has {rows} candidates, no multiple of {num} replicas"
        raise ShadowError(msg)
    columns = {
        name: candidates[name].to_numpy(zero_copy_only=False) for name in candidates.schema.names
    }
    views = np.zeros(rows, VIEW_DTYPE)
    for name in VIEW_DTYPE.names or ():
        views[name] = columns[f"view_{name}"]
    queries = np.zeros(rows, QUERY_DTYPE)
    for name in QUERY_DTYPE.names or ():
        queries[name] = columns[f"query_{name}"]
    found = []
    for first in range(0, rows, num):
        part = slice(first, first + num)
        one = {name: column[part] for name, column in columns.items()}
        at_s = float(one["at_s"][0])
        _check(knobs_at(at_s))
        found.append(_redecide(one, views[part], queries[part][:1], nominal, knobs_at(at_s)))
    return found


def _check(knobs: Knobs) -> None:
    """Raises: ShadowError for knobs whose choices need more than a log holds."""
    if knobs["value_weight"] > 0.0:
        msg = (
            f"decisions cannot be made again by worth (value_weight {knobs['value_weight']:g}): "
            "the log does not hold what each replica had; compare with universal-scorer"
        )
        raise ShadowError(msg)


def _redecide(
    one: dict[str, np.ndarray],
    view: np.ndarray,
    query: np.ndarray,
    nominal: np.ndarray,
    knobs: Knobs,
) -> Redecision:
    names, hits = one["replica"], np.ascontiguousarray(one["hit_tokens"].astype(np.int64))
    record, at_s = knobs.record(), float(one["at_s"][0])
    view = view.copy()
    bias = np.where(np.isfinite(one["bias"]), 0.0, np.inf)
    bias[: knobs.replica_bias.size] += knobs.replica_bias
    chosen = np.flatnonzero(one["is_chosen"])
    judge = JUDGE_KNOBS.record()[0]

    def expected(replica: int) -> bool:
        return bool(is_expected_to_meet(view, nominal, query[0], hits, judge, at_s, replica))

    taken = int(chosen[0]) if chosen.size else None
    is_taken_met = taken is not None and expected(taken)
    for replica in range(view.size):
        refresh_slow_factor(view, record[0], replica)
    began_s = time.perf_counter()
    is_found, other = choose_replica(
        view, nominal, query[0], hits, record[0], bias, at_s, 0, np.zeros(1, np.uint64),
        np.zeros(NUM_TERMS),
    )  # fmt: skip
    is_placed = bool(is_found) and not is_shed(
        view, nominal, query[0], hits, record[0], at_s, other, np.inf
    )
    decision_s = time.perf_counter() - began_s
    reason, margin = "", 0.0
    if is_placed and taken is not None and other != taken:
        terms = explain(view, nominal, query, hits, record, bias, at_s)
        reason, margin = _why(terms[other], terms[taken])
    elif is_placed != (taken is not None):
        reason = "whether to refuse"
    return Redecision(
        request_id=str(one["request_id"][0]),
        at_s=at_s,
        taken=NOBODY if taken is None else str(names[taken]),
        other=str(names[other]) if is_placed else NOBODY,
        reason=reason,
        margin=margin,
        is_taken_met=is_taken_met,
        is_other_met=is_placed and expected(int(other)),
        decision_s=decision_s,
    )


def _why(own: dict[str, float], taken: dict[str, float]) -> tuple[str, float]:
    """Return the term that speaks most for a choice, and by how much it is cheaper in all."""
    gains = {name: taken.get(name, 0.0) - own.get(name, 0.0) for name in TERM_NAMES}
    most = max(gains, key=lambda name: gains[name])
    return (most if gains[most] > 0.0 else "a tie"), sum(gains.values())

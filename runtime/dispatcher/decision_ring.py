"""The newest decisions in full: what the kernel saw of every replica, and each part of its cost.

The kernel fills preallocated rows; nothing is made into Python objects before it is asked for. If
nobody takes them in time, the oldest are overwritten and counted.

Does not know: where decisions are written (`runtime/decision_log`).
"""

from dataclasses import dataclass

import numpy as np

from ...env.shed_reason import ShedReason
from .live_arrays import LiveArrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecisionRecord:
    """One decision with all that went into it; its arrays belong to the caller.

    Shapes: `view` VIEW_DTYPE [R], `query` QUERY_DTYPE [1], `hits` int64 [R] prompt tokens cached,
    `terms` float64 [R, 20] in the order of `TERM_NAMES`, `bias` [R] (infinite where the request's
    group may not go), `costs` [R] the sums of the terms.
    """

    number: int
    request_id: str
    at_s: float
    view: np.ndarray
    query: np.ndarray
    hits: np.ndarray
    terms: np.ndarray
    bias: np.ndarray
    choice: int
    """The cheapest that may take it; where it was refused, who would have had it."""
    refused: ShedReason | None
    knob_version: int
    policy_version: str

    @property
    def costs(self) -> np.ndarray:
        """Cost of each replica, [R]; noise and cursors of the random heuristics left out."""
        return np.asarray(self.terms.sum(axis=1))

    @property
    def is_refused(self) -> bool:
        """Whether the request was refused."""
        return self.refused is not None

    @property
    def masks(self) -> np.ndarray:
        """`Mask` bits of each replica, uint16 [R]."""
        return self.view["mask"].astype(np.uint16)


class DecisionRing:
    """Reads the kernel's ring. One reader, in the dispatcher's thread."""

    def __init__(self, arrays: LiveArrays) -> None:
        self._arrays = arrays
        self._owners: list[tuple[str, int, str]] = [("", 0, "")] * arrays.decisions.size
        self._num_taken = 0
        self.num_dropped = 0
        """Decisions that were overwritten before anybody took them."""

    def own(self, request_id: str, knob_version: int, policy_version: str) -> None:
        """Name the decision that the kernel has just kept."""
        slot = int(self._arrays.cursors["next_slot"][0]) - 1
        self._owners[slot % len(self._owners)] = (request_id, knob_version, policy_version)

    def take(self) -> list[DecisionRecord]:
        """Return the decisions kept since they were last taken, oldest first."""
        arrays, size = self._arrays, len(self._owners)
        end = int(arrays.cursors["next_slot"][0])
        first = max(self._num_taken, end - size)
        self.num_dropped += first - self._num_taken
        self._num_taken = end
        return [self._record(number % size) for number in range(first, end)]

    def _record(self, slot: int) -> DecisionRecord:
        arrays, decision = self._arrays, self._arrays.decisions[slot]
        request_id, knob_version, policy_version = self._owners[slot]
        status = int(decision["status"])
        return DecisionRecord(
            number=int(decision["number"]),
            request_id=request_id,
            at_s=float(decision["at_s"]),
            view=arrays.kept_views[slot].copy(),
            query=arrays.decisions["query"][slot : slot + 1].copy(),
            hits=arrays.kept_hits[slot].copy(),
            terms=arrays.kept_terms[slot].copy(),
            bias=arrays.kept_bias[slot].copy(),
            choice=int(decision["choice"]),
            refused=ShedReason(status) if status else None,
            knob_version=knob_version,
            policy_version=policy_version,
        )

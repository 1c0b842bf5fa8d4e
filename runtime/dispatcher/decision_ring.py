"""The newest decisions in full: what the kernel saw of every replica, and each part of its cost.

The kernel fills preallocated rows; nothing is made into Python objects before it is asked for. If
nobody takes them in time, the oldest are overwritten and counted.

Does not know: where decisions are written (`runtime/decision_log`).
"""

from dataclasses import dataclass

import numpy as np

from ...env.knobs import Knobs
from ...env.lookahead.decide import WORTH_TERM_NAMES, worth_terms
from ...env.lookahead.mirror import NOBODY
from ...env.shed_reason import ShedReason
from .live_arrays import LiveArrays


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecisionRecord:
    """One decision with all that went into it; its arrays belong to the caller.

    Shapes: `view` VIEW_DTYPE [R], `query` QUERY_DTYPE [1], `hits` int64 [R] prompt tokens cached,
    `terms` float64 [R, 20] in the order of `TERM_NAMES`, `bias` [R] (infinite where the request's
    group may not go), `choices` CHOICE_DTYPE [C] the candidates that were judged by worth, none
    where the choice went by cost.
    """

    number: int
    request_id: str
    at_s: float
    view: np.ndarray
    query: np.ndarray
    hits: np.ndarray
    terms: np.ndarray
    bias: np.ndarray
    choices: np.ndarray
    choice: int
    """The cheapest that may take it; where it was refused, who would have had it."""
    refused: ShedReason | None
    knobs: Knobs
    knob_version: int
    policy_version: str

    @property
    def is_by_worth(self) -> bool:
        """Whether the choice went by what a placement is worth, and not by its cost."""
        return self.choices.size > 0

    @property
    def worth_terms(self) -> np.ndarray:
        """What speaks against each replica by its worth, NaN where it was not looked at.

        Shapes: [R, terms], in the order of `WORTH_TERM_NAMES`.
        """
        terms = np.full((self.view.size, len(WORTH_TERM_NAMES)), np.nan)
        terms[self.choices["replica"]] = worth_terms(self.choices, self.knobs["cost_weight"])
        return terms

    @property
    def costs(self) -> np.ndarray:
        """By what the choice was made, [R]; noise and cursors of the random heuristics left out.

        The sum of the terms; where the choice went by worth, that of the terms of worth, infinite
        for a replica that was not looked at.
        """
        if self.is_by_worth:
            return np.asarray(np.nan_to_num(self.worth_terms.sum(axis=1), nan=np.inf))
        return np.asarray(self.terms.sum(axis=1))

    @property
    def is_usable(self) -> np.ndarray:
        """Whether each replica was up, open to the request's group, and looked at, bool [R]."""
        is_up = (self.view["mask"] == 0) & (self.view["is_available"] != 0)
        return np.asarray(is_up & np.isfinite(self.bias) & np.isfinite(self.costs))

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
        nobody = ("", Knobs(), 0, "")
        self._owners: list[tuple[str, Knobs, int, str]] = [nobody] * arrays.decisions.size
        self._num_taken = 0
        self.num_dropped = 0
        """Decisions that were overwritten before anybody took them."""

    def own(self, request_id: str, knobs: Knobs, knob_version: int, policy_version: str) -> None:
        """Name the decision that the kernel has just kept, and by whose knobs it was made."""
        slot = int(self._arrays.cursors["next_slot"][0]) - 1
        self._owners[slot % len(self._owners)] = (request_id, knobs, knob_version, policy_version)

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
        request_id, knobs, knob_version, policy_version = self._owners[slot]
        choices = arrays.kept_choices[slot]
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
            choices=choices[choices["replica"] != NOBODY],
            choice=int(decision["choice"]),
            refused=ShedReason(status) if status else None,
            knobs=knobs,
            knob_version=knob_version,
            policy_version=policy_version,
        )

"""All breakers of one kind of node: every rule on every node, as arrays.

Does not know: the other kinds, the clock, or what an alarm says (`breakers.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...env.masks import Mask
from ...env.restrictions import FloatArray, MaskArray
from ...env.state.cluster_state import ClusterState
from ...env.state.feature import Node
from ...env.state.registry import column
from .barring_kernel import EFFECT_DTYPE, bar_open, fill_limits, release_closed
from .breaker_kernel import (
    BREAKER_DTYPE,
    CLOSED,
    OPEN,
    RULE_DTYPE,
    SUSPECT,
    TRANSITION_DTYPE,
    step_breakers,
)
from .breaker_rules import BreakerRule, Effect
from .places import IntArray, Places

MASKS: dict[Effect, Mask] = {
    Effect.QUARANTINE: Mask.QUARANTINED,
    Effect.MAINTENANCE: Mask.MAINTENANCE,
}
"""The reason that a barred replica gets."""


@dataclass(frozen=True, slots=True, eq=False)
class Barred:
    """What all kinds of nodes together bar; the kernels change the counts."""

    num_barring: IntArray
    """[R]: breakers that bar each replica."""
    num_barred: IntArray
    """[M]: barred replicas of each model."""
    sizes: IntArray
    """[M]: replicas of each model."""

    @property
    def counts(self) -> tuple[IntArray, IntArray]:
        """Both counts, as the kernels take them."""
        return self.num_barring, self.num_barred


def barred_by(boards: Sequence["BreakerBoard"], places: Places) -> Barred:
    """Return what the breakers of a fleet bar."""
    num_barring = np.zeros(places.num_replicas, np.int64)
    for board in boards:
        num_barring += board.num_barring()
    sizes = np.bincount(places.model).astype(np.int64)
    num_barred = np.bincount(places.model[num_barring > 0], minlength=sizes.size)
    return Barred(num_barring, num_barred.astype(np.int64), sizes)


class BreakerBoard:
    """The breakers of one kind of node.

    Shapes (N nodes, K rules): `breakers` BREAKER_DTYPE, `phases`, `is_barring` uint8 and
    `is_alarmed` bool [N, K]; `observed_at_s` [N].
    """

    def __init__(self, node: Node, rules: Sequence[BreakerRule], places: Places) -> None:
        self.node = node
        self.rules = tuple(rules)
        self.names = places.names[node]
        at = places.replicas_at[node]
        self._places = (at.first, at.replicas, places.model)
        self._slots = places.batch_slots
        self._rules = _rule_records(self.rules)
        self._effects = _effect_records(self.rules)
        shape = (len(self.names), len(self.rules))
        self.breakers = np.zeros(shape, BREAKER_DTYPE)
        self.breakers["closed_at_s"] = -np.inf
        self.phases = np.full(shape, CLOSED, np.uint8)
        self.is_barring = np.zeros(shape, np.uint8)
        self.is_alarmed = np.zeros(shape, np.bool_)
        self.observed_at_s = np.full(shape[0], -np.inf)
        self._transitions = np.zeros(shape[0] * shape[1], TRANSITION_DTYPE)

    def adopt(self, other: "BreakerBoard") -> None:
        """Take over the breakers of rules that another board of this kind has too."""
        self.observed_at_s[:] = other.observed_at_s
        for k, rule in enumerate(self.rules):
            if rule in other.rules:
                j = other.rules.index(rule)
                for name in ("breakers", "phases", "is_barring", "is_alarmed"):
                    getattr(self, name)[:, k] = getattr(other, name)[:, j]

    def see(self, state: ClusterState, clock_s: float) -> np.ndarray:
        """Let every breaker see a state; return the transitions, TRANSITION_DTYPE [any].

        Raises:
            ValueError: the state has another number of nodes.
        """
        values = np.ascontiguousarray(state.values[self.node], np.float64)
        if len(values) != len(self.names):
            msg = (
                f"state has {len(values)} {self.node} nodes, the breakers' places have "
                f"{len(self.names)}; make the breakers from the cluster that the state is of"
            )
            raise ValueError(msg)
        is_valid = np.ascontiguousarray(state.is_valid[self.node], np.bool_)
        age_s = np.ascontiguousarray(state.age_s[self.node], np.float64)
        seen = (values, is_valid, age_s, self.observed_at_s)
        number = step_breakers(
            self._rules, self.breakers, self.phases, seen, clock_s, self._transitions
        )
        return self._transitions[:number].copy()

    def release(self, barred: Barred) -> None:
        """Let go of what closed breakers bar."""
        release_closed(self.phases, self.is_barring, self._places, barred.counts)

    def bar(self, barred: Barred) -> None:
        """Bar the replicas of open breakers where there is room."""
        bar_open(
            self._effects, self.phases, self.is_barring, self._places, barred.counts, barred.sizes
        )

    def num_barring(self) -> IntArray:
        """Return how many of these breakers bar each replica; [R]."""
        first, replicas, model = self._places
        of_node = np.repeat(self.is_barring.sum(axis=1), np.diff(first))
        return np.bincount(replicas, of_node, minlength=model.size).astype(np.int64)

    def limit(self, limits: tuple[MaskArray, FloatArray, FloatArray]) -> None:
        """Add what the breakers do to masks, max_outstanding and penalties; [R] each."""
        fill_limits(self._effects, self.phases, self.is_barring, self._places, self._slots, limits)

    def num_open(self) -> NDArray[np.int64]:
        """Return how many breakers of each rule are open or half open; [K]."""
        is_closed = (self.phases == CLOSED) | (self.phases == SUSPECT)
        return np.asarray((~is_closed).sum(axis=0), np.int64)

    def alarming(self, transitions: np.ndarray) -> tuple[np.ndarray, NDArray[np.bool_]]:
        """Return the transitions that raise or resolve an alarm, and which are held back.

        A breaker of a barring rule is held back if it opens and finds no room; that is an alarm
        whatever the rule says. What is returned is remembered as raised or resolved.
        """
        at = (transitions["row"], transitions["rule"])
        is_opening = (transitions["after"] == OPEN) & np.isin(
            transitions["before"], (CLOSED, SUSPECT)
        )
        bars = self._effects["is_barring"][at[1]] == 1
        is_held = is_opening & bars & (self.is_barring[at] == 0)
        tells = np.array([rule.severity != "none" for rule in self.rules])[at[1]]
        is_raised = is_opening & (tells | is_held)
        is_resolved = (transitions["after"] == CLOSED) & self.is_alarmed[at]
        self.is_alarmed[at] = (self.is_alarmed[at] | is_raised) & ~is_resolved
        chosen = is_raised | is_resolved
        return transitions[chosen], is_held[chosen]

    def retire(self, kept: Sequence[BreakerRule]) -> np.ndarray:
        """Return transitions that resolve the alarms of rules that are not kept."""
        is_gone = np.array([rule not in kept for rule in self.rules], np.bool_)
        rows, rules = np.nonzero(self.is_alarmed & is_gone)
        transitions = np.zeros(rows.size, TRANSITION_DTYPE)
        transitions["row"], transitions["rule"] = rows, rules
        transitions["before"], transitions["after"] = OPEN, CLOSED
        transitions["value"] = np.nan
        return transitions


def _rule_records(rules: Sequence[BreakerRule]) -> np.ndarray:
    records = np.zeros(len(rules), RULE_DTYPE)
    for record, rule in zip(records, rules, strict=True):
        sign = 1.0 if rule.is_above else -1.0
        record["column"] = column(rule.node, rule.feature.name)
        record["sign"] = sign
        record["threshold"] = sign * rule.threshold
        record["quiet_threshold"] = sign * rule.recovery.threshold
        record["for_s"] = rule.for_s
        record["consecutive"] = rule.consecutive or 0
        record["quiet_s"] = rule.recovery.for_s
        record["cool_down_s"] = rule.recovery.cool_down_s
        # Some values only change with traffic: without a trial their breakers would stay open.
        record["is_trying"] = rule.effect is not Effect.ALARM and rule.recovery.probes > 0
    return records


def _effect_records(rules: Sequence[BreakerRule]) -> np.ndarray:
    records = np.zeros(len(rules), EFFECT_DTYPE)
    for record, rule in zip(records, rules, strict=True):
        record["is_barring"] = rule.is_barring
        record["mask"] = int(MASKS.get(rule.effect, 0))
        record["probes"] = rule.recovery.probes
        record["max_open_frac"] = rule.max_open_frac
        record["penalty"] = rule.amount
        frac = rule.outstanding_frac
        record["outstanding_frac"] = np.inf if frac is None else frac
    return records

"""Who sets the knobs of a live gateway, window by window.

A policy's proposal for a window is judged when it comes; a window without one is judged when the
proposal is late. A new policy takes the seat with its first valid proposal, so the old one decides
until then; its knobs glide from those in force. An operator's order rules over all while it lasts.

Does not know: processes, HTTP, or the clock: every moment is handed in.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np

from ...agents.shield.doubt import Doubt
from ...agents.shield.fallback import Fallback, FallbackConfig, Proposal
from ...agents.shield.projection import KnobLimits
from ...env.knobs import Knobs
from ...env.regret import NO_REGRET, Regret
from .promotion import Promotion, PromotionConfig
from .seat import PolicyFacts, Ruling, Seat

_LOG = logging.getLogger(__name__)

# Windows that are kept for who takes them: half an hour.
_MAX_RECORDS = 1000
# A proposal with one of these can be that of a policy that works.
_HARMLESS = (None, Doubt.NOVEL)


class KnobSetter(Protocol):
    """What steering asks of a dispatcher."""

    def set_knobs(self, knobs: Knobs, policy_version: str | None = None) -> None:
        """Dispatch by these knobs from the next request on."""
        ...

    def set_shadow(self, knobs: Knobs | None, *, every: int = 8) -> None:
        """Place every n-th request on paper by other knobs too."""
        ...

    def take_regret(self) -> Regret:
        """Return how much better the shadow is estimated to do, since it was last taken."""
        ...


class Ruler(StrEnum):
    """Whose knobs are in force."""

    SCHEDULER = "scheduler"
    """Those of the scheduler that was asked for: no policy has the seat."""
    SHADOWED = "shadowed"
    """The scheduler's, with a policy in shadow."""
    POLICY = "policy"
    FALLBACK = "fallback"
    """The scheduler's, as the policy is in doubt."""
    ORDER = "order"
    """An operator's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringConfig:
    """How a gateway is steered."""

    fallback: FallbackConfig = field(default_factory=FallbackConfig)
    """When a policy is in doubt, and what follows."""
    scheduler: Knobs
    """Knobs of who rules while no policy does."""
    scheduler_name: str
    limits: KnobLimits = field(default_factory=KnobLimits)
    """What a policy may set."""
    promotion: PromotionConfig | None = None
    """How a policy is promoted from shadow; None: it serves at once."""
    shadow_every: int = 8
    """Every so many requests the other knobs are tried on paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRecord:
    """Who ruled from a moment on, and why."""

    at_s: float
    ruler: Ruler
    doubt: Doubt | None
    gain: Regret
    """Policy minus scheduler in the window that ended."""
    override_size: float
    """Largest part of the proposal that was taken off (`agents/shield/projection.py`)."""
    knobs: Knobs
    policy_version: str
    attention: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class SteeringCounts:
    """Counters since the start."""

    num_windows: int = 0
    """Windows that were judged."""
    num_policy_windows: int = 0
    """Of these, the ones that the policy's knobs ruled after."""
    num_overrides: int = 0
    """Windows in which a proposal was brought within its limits."""
    num_ignored: int = 0
    """Proposals from nobody's seat, or beyond the first of a window."""
    num_swaps: int = 0
    """Policies that took the seat."""
    num_refused_candidates: int = 0
    """Proposals of a policy without the seat that were not valid."""
    num_rulers: int = 0
    """Changes of who rules."""
    doubts: Counter[Doubt] = field(default_factory=Counter)
    """Windows by what was wrong in them."""


class Steering:
    """Sets the knobs of one dispatcher. Used from the dispatcher's thread."""

    def __init__(
        self,
        config: SteeringConfig,
        dispatcher: KnobSetter,
        *,
        num_replicas: int,
        on_seated: Callable[[PolicyFacts], None] | None = None,
    ) -> None:
        """`on_seated` is told when a policy takes the seat; the one before may end then."""
        self.config, self.counts = config, SteeringCounts()
        self.seat: Seat | None = None
        self.candidate: PolicyFacts | None = None
        """Who gets the seat with its next valid proposal."""
        self.candidate_fault: Doubt | None = None
        """What was wrong with its last proposal."""
        self.doubt: Doubt | None = None
        """What was wrong in the last window."""
        self.knobs = config.limits.bounded(config.scheduler)
        """In force."""
        self.ruler = Ruler.SCHEDULER
        self.records: deque[WindowRecord] = deque(maxlen=_MAX_RECORDS)
        """Windows, newest last; who wants them takes them out."""
        self._scheduler = self.knobs
        self._dispatcher, self._num_replicas = dispatcher, num_replicas
        self._on_seated = on_seated
        self._order_until_s = -np.inf
        self._attention: Mapping[str, float] = {}
        self._window_at_s = 0.0
        self._is_judged = True
        # Sign that makes a measured regret the policy's gain; 0: the two were not compared.
        self._gain_sign = 0

    def begin(self, now_s: float) -> None:
        """Begin the first window, under the scheduler."""
        self._window_at_s, self._is_judged = now_s, True
        self._dispatcher.set_knobs(self.knobs, self.config.scheduler_name)
        self._dispatcher.set_shadow(None)

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return self.config.fallback.window_s

    @property
    def window_at_s(self) -> float:
        """When this window began; the next begins `window_s` later."""
        return self._window_at_s

    # Every tick.

    def tick(self, now_s: float) -> None:
        """Begin a window if it is time, and judge one whose proposal is overdue."""
        num_passed = int((now_s - self._window_at_s) / self.window_s)
        if num_passed > 0:
            if not self._is_judged:
                self._judge(None, now_s)
            self._window_at_s += num_passed * self.window_s
            self._is_judged = False
        if self.ruler is Ruler.ORDER and now_s >= self._order_until_s:
            self._end_order(now_s)
        late_s = self.config.fallback.late_s
        if not self._is_judged and now_s - self._window_at_s > late_s:
            self._judge(None, now_s)

    # Policies.

    def announce(self, policy: PolicyFacts) -> None:
        """Let a policy have the seat as soon as it gives a valid proposal."""
        self.candidate, self.candidate_fault = policy, None

    def withdraw(self) -> None:
        """Let no new policy have the seat."""
        self.candidate = self.candidate_fault = None

    def offer(
        self,
        source: str,
        proposal: Proposal | None,
        now_s: float,
        *,
        has_failed: bool = False,
        attention: Mapping[str, float] | None = None,
    ) -> bool:
        """Take a proposal; return whether it was judged. None with `has_failed`: it raised.

        `attention` is what the policy looked at, for the record of the window.
        """
        self.tick(now_s)
        if self.candidate is not None and source == self.candidate.source:
            return self._try_candidate(self.candidate, proposal, now_s)
        if self.seat is None or source != self.seat.policy.source:
            self.counts.num_ignored += 1
            return False
        if self._is_judged:
            self.counts.num_ignored += 1
            return False
        self._attention = attention or {}
        self._judge(proposal, now_s, has_failed=has_failed)
        return True

    def _try_candidate(self, policy: PolicyFacts, proposal: Proposal | None, now_s: float) -> bool:
        """Give a policy the seat if its proposal is valid."""
        fallback = Fallback(
            self.config.fallback,
            base=policy.base,
            num_replicas=self._num_replicas,
            limits=self.config.limits,
            knobs=self._scheduler,
        )
        fallback.begin(now_s, current=self.knobs)
        # A trial: what it leaves behind in the fallback is wiped out before the seat is taken.
        fault = fallback.judge(proposal, now_s).doubt if proposal is not None else Doubt.ABSENT
        if fault not in _HARMLESS:
            self.counts.num_refused_candidates += 1
            if fault is not self.candidate_fault:
                _LOG.warning("policy '%s' has not the seat yet: its proposal is %s", policy.name,
                             fault)  # fmt: skip
            self.candidate_fault = fault
            return False
        fallback.begin(now_s, current=self.knobs)
        promotion = self.config.promotion
        self.seat = Seat(policy, fallback, None if promotion is None else Promotion(promotion))
        self.withdraw()
        self.counts.num_swaps += 1
        self._gain_sign = 0
        _LOG.info("policy '%s' has the seat", policy.name)
        self._judge(proposal, now_s)
        if self._on_seated is not None:
            self._on_seated(policy)
        return True

    # Orders of an operator.

    def order(self, knobs: Knobs, now_s: float, *, lease_s: float = np.inf) -> Knobs:
        """Let an operator's knobs rule for some time; return those in force."""
        self._order_until_s = now_s + lease_s
        bounded = self.config.limits.bounded(knobs)
        self._note_ruler(Ruler.ORDER, "an operator's order")
        self._gain_sign = 0
        self._set(bounded, None, "order")
        return bounded

    def withdraw_order(self, now_s: float) -> None:
        """End an operator's order, if there is one."""
        if self.ruler is Ruler.ORDER:
            self._end_order(now_s)

    def _end_order(self, now_s: float) -> None:
        """Go back to the scheduler; a policy in the seat rules from its next proposal on."""
        self._order_until_s = -np.inf
        self._note_ruler(self._resting_ruler(), "the order ended")
        self._set(self._scheduler, None, self.config.scheduler_name)

    # One window.

    def _judge(self, proposal: Proposal | None, now_s: float, *, has_failed: bool = False) -> None:
        self._is_judged = True
        regret = self._dispatcher.take_regret()
        if self.seat is None:
            return
        gain = self._gain(regret)
        ruling = self.seat.judge(proposal, now_s, gain, has_failed=has_failed)
        self._count(ruling)
        if self.ruler is not Ruler.ORDER:
            self._obey(ruling)
        self.records.append(
            WindowRecord(
                at_s=now_s, ruler=self.ruler, doubt=ruling.doubt, gain=gain,
                override_size=ruling.override_size, knobs=self.knobs,
                policy_version=self.seat.policy.name, attention=self._attention,
            )
        )  # fmt: skip

    def _obey(self, ruling: Ruling) -> None:
        assert self.seat is not None
        self._note_ruler(self._ruler_of(ruling), ruling.doubt or "no doubt")
        if ruling.shadow is None:
            self._gain_sign = 0
        else:
            self._gain_sign = -1 if ruling.is_policy else 1
        name = self.seat.policy.name if ruling.is_policy else self.config.scheduler_name
        self._set(ruling.knobs, ruling.shadow, name)

    def _gain(self, regret: Regret) -> Regret:
        if self._gain_sign == 0:
            return NO_REGRET
        return regret if self._gain_sign > 0 else regret.flipped()

    def _ruler_of(self, ruling: Ruling) -> Ruler:
        return Ruler.POLICY if ruling.is_policy else self._resting_ruler()

    def _resting_ruler(self) -> Ruler:
        """Who rules by the scheduler's knobs."""
        if self.seat is None:
            return Ruler.SCHEDULER
        return Ruler.SHADOWED if self.seat.is_shadowing else Ruler.FALLBACK

    def _count(self, ruling: Ruling) -> None:
        counts = self.counts
        counts.num_windows += 1
        counts.num_policy_windows += ruling.is_policy
        counts.num_overrides += ruling.is_overridden
        if ruling.doubt is not None:
            counts.doubts[ruling.doubt] += 1
        if ruling.doubt is not self.doubt:
            assert self.seat is not None
            doubt = "in doubt: " + ruling.doubt if ruling.doubt else "in doubt no more"
            _LOG.warning("policy '%s' is %s", self.seat.policy.name, doubt)
        self.doubt = ruling.doubt

    def _note_ruler(self, ruler: Ruler, reason: str) -> None:
        if ruler is not self.ruler:
            self.counts.num_rulers += 1
            _LOG.warning("%s rules in place of %s (%s)", ruler, self.ruler, reason)
        self.ruler = ruler

    def _set(self, knobs: Knobs, shadow: Knobs | None, version: str) -> None:
        before, self.knobs = self.knobs, knobs
        is_same = np.array_equal(before.values, knobs.values) and np.array_equal(
            before.replica_bias, knobs.replica_bias
        )
        if not is_same:
            self._dispatcher.set_knobs(knobs, version)
        self._dispatcher.set_shadow(shadow, every=self.config.shadow_every)

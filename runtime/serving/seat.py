"""One policy beside its fallback: its proposals judged, and whether it serves yet.

Does not know: other policies, the dispatcher, or how proposals come.
"""

from dataclasses import dataclass

from ...agents.shield.doubt import Doubt
from ...agents.shield.fallback import Fallback, Proposal, Verdict
from ...env.knobs import Knobs
from ...env.regret import Regret
from .promotion import Phase, Promotion, ShadowWindow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyFacts:
    """What is known of a policy before it has proposed anything."""

    source: str
    """Tells its proposals from those of others; one process of a policy has one."""
    name: str
    """As people call it: a bundle's path, or a scheduler's name."""
    base: Knobs
    """Has the knobs that it may not move."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ruling:
    """What is to be set after a window."""

    knobs: Knobs
    shadow: Knobs | None
    """To be tried on paper beside them."""
    is_policy: bool
    """Whether the knobs are the policy's."""
    doubt: Doubt | None
    override_size: float
    """Largest part of the proposal that was taken off; 0 if nothing was."""

    @property
    def is_overridden(self) -> bool:
        """Whether the proposal was brought within its limits."""
        return self.override_size > 0.0


class Seat:
    """A policy that has given a valid proposal."""

    def __init__(
        self, policy: PolicyFacts, fallback: Fallback, promotion: Promotion | None = None
    ) -> None:
        """Without a `promotion` it serves from the start."""
        self.policy, self.fallback, self.promotion = policy, fallback, promotion

    @property
    def is_shadowing(self) -> bool:
        """Whether it only decides beside the fallback, as it is not promoted."""
        return self.promotion is not None and self.promotion.phase is Phase.SHADOW

    def judge(
        self, proposal: Proposal | None, now_s: float, gain: Regret, *, has_failed: bool = False
    ) -> Ruling:
        """Return what rules the next window; `gain` is that of the last, policy minus fallback."""
        # The fallback takes what the other knobs would have gained over those that it set.
        regret = gain if self.fallback.is_fallback else gain.flipped()
        verdict = self.fallback.judge(proposal, now_s, regret, has_failed=has_failed)
        projection = verdict.projection
        is_overridden = projection is not None and projection.is_overridden
        if self.promotion is not None:
            window = ShadowWindow(gain, verdict.doubt is not None, is_overridden)
            # A policy that its fallback would not let rule is not promoted, whatever the rule says.
            self.promotion.step(window, may_promote=not verdict.is_fallback)
        return self._ruling(verdict)

    def _ruling(self, verdict: Verdict) -> Ruling:
        projection = verdict.projection
        policy = None if projection is None else projection.knobs
        is_policy = not verdict.is_fallback and not self.is_shadowing
        fallback = self.fallback.knobs
        return Ruling(
            knobs=verdict.knobs if is_policy else fallback,
            shadow=fallback if is_policy else policy,
            is_policy=is_policy,
            doubt=verdict.doubt,
            override_size=0.0 if projection is None else projection.size,
        )

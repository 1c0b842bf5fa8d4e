"""A policy behind its fallback: whatever it does, a window has knobs that may be set.

For evaluation and training, where a policy is called and answers at once; one that takes its time
says so with an attribute `latency_s`. A live control loop has its own way to call a policy, and
gives the same `Proposal` to the same `Fallback`.

Does not know: what makes a proposal doubtful (`fallback.py`).
"""

import logging
from collections.abc import Callable

import numpy as np

from ...env.knobs import Knobs
from ...env.regret import Regret
from ...env.state.cluster_state import ClusterState
from ..policy import Policy
from .fallback import Fallback, Proposal, Verdict

_LOG = logging.getLogger(__name__)


def _no_novelty(state: ClusterState) -> float:
    return 0.0


def _no_regret() -> Regret | None:
    return None


class GuardedPolicy:
    """A policy as `evaluate` runs it, whose proposals are judged before they rule.

    `novelty` scores a state (`NoveltyModel.score_state`); `take_regret` gives the regret measured
    since the last window (`SimulatedFleet.take_regret`).
    """

    is_constant = False

    def __init__(
        self,
        policy: Policy,
        fallback: Fallback,
        *,
        novelty: Callable[[ClusterState], float] = _no_novelty,
        take_regret: Callable[[], Regret | None] = _no_regret,
    ) -> None:
        self.name = policy.name
        self.policy, self.fallback = policy, fallback
        self._novelty, self._take_regret = novelty, take_regret
        self._has_failed = False
        self.verdict: Verdict | None = None
        """The newest."""
        self.num_failures = 0
        """How often the policy raised."""

    def begin(self) -> Knobs:
        """Forget everything and return the knobs to start with: the base within the limits."""
        self.verdict, self.num_failures, self._has_failed = None, 0, False
        try:
            self.policy.begin()
        except Exception as error:
            self._fail(error)
        return self.fallback.begin(0.0)

    def act(self, state: ClusterState) -> Knobs:
        """Return the knobs that rule the next window."""
        proposal = self._propose(state)
        was_fallback = self.fallback.is_fallback
        verdict = self.fallback.judge(
            proposal, state.now_s, self._take_regret(), has_failed=self._has_failed
        )
        self._has_failed = False
        if verdict.is_fallback != was_fallback:
            ruler = self.fallback.config.heuristic if verdict.is_fallback else self.name
            reason = verdict.doubt or "recovered"
            _LOG.warning("at %.3f s %s rules (%s: %s)", state.now_s, ruler, self.name, reason)
        self.verdict = verdict
        return verdict.knobs

    def _propose(self, state: ClusterState) -> Proposal | None:
        """Ask the policy; None if it raised or gave nothing that could be knobs."""
        try:
            answer = self.policy.act(state)
            novelty = float(self._novelty(state))
        except Exception as error:
            self._fail(error)
            return None
        if answer is None:
            return None
        return Proposal(
            values=getattr(answer, "values", np.zeros(0)),
            bias=getattr(answer, "replica_bias", np.zeros(0)),
            state_at_s=state.now_s,
            arrived_at_s=state.now_s + float(getattr(self.policy, "latency_s", 0.0)),
            novelty=novelty,
        )

    def _fail(self, error: Exception) -> None:
        self._has_failed = True
        self.num_failures += 1
        _LOG.warning("policy %s raised %s: %s", self.name, type(error).__name__, error)

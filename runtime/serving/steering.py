"""Who rules a live gateway's knobs, window by window: a scheduler, a policy, or its fallback.

A proposal is judged when it comes; if none comes, the tick notices. A policy that is dead, frozen,
late or wrong therefore costs no request: the fallback rules from the next tick on.

Does not know: where proposals come from, or what a doubt is (`agents/shield/fallback.py`).
"""

import logging
from dataclasses import dataclass

import msgspec
import numpy as np

from ...agents.shield.doubt import Doubt
from ...agents.shield.fallback import Fallback, Proposal, Verdict
from ...env.knobs import Knobs
from ...env.regret import Regret
from ..dispatcher.live_dispatcher import LiveDispatcher
from .rollout import Phase, Rollout

_LOG = logging.getLogger(__name__)


class ProposalBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A proposal as a policy's process sends it; NaN travels as null."""

    values: list[float | None]
    bias: list[float | None] = []
    state_at_s: float
    novelty: float = 0.0
    policy_version: str = ""
    has_failed: bool = False
    """The policy raised: there is no proposal."""
    attention: dict[str, float] = {}
    """Weights by name, for the decision log."""

    def proposal(self, arrived_at_s: float) -> Proposal:
        """Return what is to be judged."""
        return Proposal(
            values=np.array([np.nan if v is None else v for v in self.values]),
            bias=np.array([np.nan if v is None else v for v in self.bias]),
            state_at_s=self.state_at_s,
            arrived_at_s=arrived_at_s,
            novelty=self.novelty,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRecord:
    """Who ruled from a moment on, and why."""

    at_s: float
    ruler: str
    doubt: Doubt | None
    regret: Regret | None
    override_size: float
    knobs: Knobs
    policy_version: str


class Steering:
    """Sets the dispatcher's knobs. Used from the gateway's thread."""

    def __init__(
        self,
        dispatcher: LiveDispatcher,
        scheduler: Knobs,
        *,
        scheduler_name: str,
        fallback: Fallback | None = None,
        rollout: Rollout | None = None,
    ) -> None:
        """`scheduler` rules where there is no policy, and while one is in shadow.

        With a `fallback` there is a policy; with a `rollout` it begins in shadow.
        """
        self.dispatcher = dispatcher
        self.fallback, self.rollout = fallback, rollout
        self.scheduler, self.scheduler_name = scheduler, scheduler_name
        self.policy_version = ""
        self.records: list[WindowRecord] = []
        """Windows since they were last taken."""
        self.num_proposals = 0
        self._last_ruler = ""
        self._is_policy_in_shadow = rollout is not None
        self._shadow_knobs: Knobs | None = None

    @property
    def ruler(self) -> str:
        """Who rules at this moment."""
        if self.fallback is None or self._is_policy_in_shadow:
            return self.scheduler_name
        return self.fallback.config.heuristic if self.fallback.is_fallback else "policy"

    def begin(self, now_s: float) -> None:
        """Set the knobs to start with."""
        if self.fallback is None:
            self.dispatcher.set_knobs(self.scheduler, self.scheduler_name)
        elif self._is_policy_in_shadow:
            self.fallback.begin(now_s)
            self.dispatcher.set_knobs(self.scheduler, self.scheduler_name)
        else:
            self.dispatcher.set_knobs(self.fallback.begin(now_s), "base")
        self._note(now_s, None, None, 0.0)

    def offer(self, body: ProposalBody, now_s: float) -> Verdict | None:
        """Judge a proposal, and let rule who is to rule; None if there is no policy."""
        if self.fallback is None:
            return None
        self.num_proposals += 1
        self.policy_version = body.policy_version
        proposal = None if body.has_failed else body.proposal(now_s)
        return self._judge(proposal, now_s, has_failed=body.has_failed)

    def tick(self, now_s: float) -> None:
        """Notice a proposal that is overdue; to be called every 10 ms."""
        if self.fallback is None:
            return
        overdue_s = self.fallback.config.window_s + self.fallback.config.late_s
        is_overdue = now_s - self.fallback.judged_at_s > overdue_s
        if is_overdue:
            self._judge(None, now_s, has_failed=False)

    def _judge(self, proposal: Proposal | None, now_s: float, *, has_failed: bool) -> Verdict:
        assert self.fallback is not None
        regret = self.dispatcher.take_regret()
        if self._is_policy_in_shadow:
            # The scheduler rules whatever the fallback says; what is measured is the policy's gain.
            verdict = self.fallback.judge(proposal, now_s, None, has_failed=has_failed)
            self._step_rollout(verdict, regret, now_s)
        else:
            measured = regret if self._shadow_knobs is not None else None
            verdict = self.fallback.judge(proposal, now_s, measured, has_failed=has_failed)
        if not self._is_policy_in_shadow:
            version = self.fallback.config.heuristic if verdict.is_fallback else self.policy_version
            self.dispatcher.set_knobs(verdict.knobs, version)
            self._set_shadow(verdict.shadow)
        size = 0.0 if verdict.projection is None else verdict.projection.size
        self._note(now_s, verdict.doubt, regret, size)
        return verdict

    def _step_rollout(self, verdict: Verdict, regret: Regret, now_s: float) -> None:
        assert self.rollout is not None
        projection = verdict.projection
        self.rollout.note(
            regret.mean if regret.num_sampled and self._shadow_knobs is not None else None,
            is_doubtful=verdict.doubt is not None,
            is_overridden=projection is not None and projection.is_overridden,
        )
        self._set_shadow(None if projection is None else projection.knobs)
        if self.rollout.judge(now_s) is Phase.PROMOTED:
            self._is_policy_in_shadow = False
            _LOG.warning("the policy serves: %s", self.rollout.verdict)
        elif self.rollout.phase is Phase.HELD and self.rollout.num_windows:
            _LOG.log(
                logging.WARNING if self._last_ruler != "held" else logging.DEBUG,
                "the policy stays in shadow: %s", self.rollout.verdict,
            )  # fmt: skip
            self._last_ruler = "held"

    def _set_shadow(self, knobs: Knobs | None) -> None:
        self._shadow_knobs = knobs
        self.dispatcher.set_shadow(knobs, every=4)

    def _note(self, now_s: float, doubt: Doubt | None, regret: Regret | None, size: float) -> None:
        ruler = self.ruler
        if ruler != self._last_ruler and self._last_ruler != "held":
            _LOG.warning("%s rules%s", ruler, f" ({doubt})" if doubt is not None else "")
            self._last_ruler = ruler
        self.records.append(
            WindowRecord(
                at_s=now_s, ruler=ruler, doubt=doubt, regret=regret, override_size=size,
                knobs=self.dispatcher.knobs, policy_version=self.dispatcher.policy_version,
            )
        )  # fmt: skip
        # Who wants them takes them every window; a thousand are half an hour.
        del self.records[:-1000]

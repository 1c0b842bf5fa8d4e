"""The processes of policies: the one in the seat, and the one that is to follow it.

A new one is started beside the old, which is ended only when the new one has taken the seat; if it
does not take it in time, it is ended itself and the old one goes on.

Does not know: how proposals are judged (`steering.py`).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from .child_process import Child
from .seat import PolicyFacts
from .steering import Steering

_LOG = logging.getLogger(__name__)


class SwapPhase(StrEnum):
    """What became of a new policy."""

    WAITING = "waiting"
    SEATED = "seated"
    FAILED = "failed"


@dataclass(slots=True)
class Swap:
    """One change of the policy, under way or done."""

    policy: PolicyFacts
    child: Child
    started_at_s: float
    until_s: float
    phase: SwapPhase = SwapPhase.WAITING
    reason: str = ""
    ended_at_s: float = math.nan


class PolicyChildren:
    """Starts, watches and ends the processes of policies."""

    def __init__(self, steering: Steering, make_child: Callable[[PolicyFacts], Child]) -> None:
        self.seated: Child | None = None
        self.swap: Swap | None = None
        """The newest."""
        self._leaving: list[Child] = []
        self._steering, self._make_child = steering, make_child

    @property
    def is_waiting(self) -> bool:
        """Whether a new policy is on its way to the seat."""
        return self.swap is not None and self.swap.phase is SwapPhase.WAITING

    def start(self, policy: PolicyFacts, now_s: float, *, deadline_s: float = math.inf) -> Swap:
        """Start a policy's process, which takes the seat with its first valid proposal.

        Raises:
            ValueError: another is on its way.
        """
        if self.swap is not None and self.is_waiting:
            msg = f"policy '{self.swap.policy.name}' is on its way to the seat; wait for it"
            raise ValueError(msg)
        child = self._make_child(policy)
        self.swap = Swap(policy, child, now_s, now_s + deadline_s)
        self._steering.announce(policy)
        child.tick(now_s)
        return self.swap

    def on_seated(self, policy: PolicyFacts, now_s: float) -> None:
        """Note that a policy has the seat; end the one before."""
        swap = self.swap
        if swap is None or swap.policy.source != policy.source:
            return
        swap.phase, swap.ended_at_s = SwapPhase.SEATED, now_s
        if self.seated is not None:
            self._leave(self.seated)
        self.seated = swap.child
        swap.child.heard(now_s)

    def on_proposal(self, source: str, now_s: float) -> None:
        """Note a sign of life of a policy's process."""
        swap, seat = self.swap, self._steering.seat
        if swap is not None and swap.policy.source == source:
            swap.child.heard(now_s)
        elif self.seated is not None and seat is not None and seat.policy.source == source:
            self.seated.heard(now_s)

    def tick(self, now_s: float) -> None:
        """Watch all processes; end a new one that is not in time."""
        if self.seated is not None:
            self.seated.tick(now_s)
        swap = self.swap
        if swap is not None and swap.phase is SwapPhase.WAITING:
            swap.child.tick(now_s)
            if swap.child.is_given_up:
                self._fail(swap, "its process ends again and again", now_s)
            elif now_s > swap.until_s:
                fault = self._steering.candidate_fault
                what = f"its proposals are {fault}" if fault else "it proposed nothing"
                span_s = swap.until_s - swap.started_at_s
                self._fail(swap, f"{what} within {span_s:g} s", now_s)
        for child in self._leaving:
            child.tick(now_s)
        self._leaving = [child for child in self._leaving if not child.is_gone]

    def _fail(self, swap: Swap, reason: str, now_s: float) -> None:
        swap.phase, swap.reason, swap.ended_at_s = SwapPhase.FAILED, reason, now_s
        self._steering.withdraw()
        self._leave(swap.child)
        _LOG.error("policy '%s' does not get the seat: %s", swap.policy.name, reason)

    def _leave(self, child: Child) -> None:
        child.stop()
        self._leaving.append(child)

    def close(self) -> None:
        """End all processes."""
        children = [*self._leaving, *([] if self.seated is None else [self.seated])]
        if self.swap is not None and self.is_waiting:
            children.append(self.swap.child)
        for child in children:
            child.stop()
        for child in children:
            child.close()

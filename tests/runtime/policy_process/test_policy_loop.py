"""The loop of a policy's process: proposals window by window, whatever the policy does."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from trimtab.agents.heuristics import heuristic
from trimtab.agents.policy import ConstantPolicy
from trimtab.agents.shield.fallback import Proposal
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.state.cluster_state import ClusterState
from trimtab.runtime.admin.client import AdminError
from trimtab.runtime.observer.observer import layout_of
from trimtab.runtime.policy_process.policy_loop import PolicyLoop
from trimtab.runtime.policy_process.policy_source import policy_of
from trimtab.runtime.telemetry.hub import Hub

STATE = Hub(layout_of(load_cluster("demo-16"))).state(100.3)


@dataclass
class FakeLink:
    """A gateway whose window began at 100 s."""

    clock: dict[str, float] = field(
        default_factory=lambda: {"now_s": 100.3, "window_at_s": 100.0, "window_s": 2.0}
    )
    proposals: list[tuple[str, Proposal]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    is_gone: bool = False

    def state(self) -> ClusterState:
        if self.is_gone:
            msg = "admin port is not there"
            raise AdminError(msg)
        return STATE

    def propose(self, proposal: Proposal, *, source: str = "") -> dict[str, Any]:
        self.proposals.append((source, proposal))
        return {}

    def confess(self, error: str, *, state_at_s: float, source: str = "") -> dict[str, Any]:
        self.errors.append(error)
        return {}


class Raising:
    name, is_constant = "raising", False

    def begin(self) -> Knobs:
        return ANALYTIC_SCORER_KNOBS

    def act(self, state: ClusterState) -> Knobs:
        msg = "no idea"
        raise RuntimeError(msg)


def constant() -> ConstantPolicy:
    return ConstantPolicy(name="constant", knobs=ANALYTIC_SCORER_KNOBS)


def test_it_proposes_from_the_state_and_waits_for_the_next_window() -> None:
    link = FakeLink()
    loop = PolicyLoop(
        constant(), link, source="p1", novelty=lambda state: 0.25, clock=lambda: 100.5
    )
    wait_s = loop.step()
    ((source, proposal),) = link.proposals
    assert source == "p1"
    assert np.array_equal(proposal.values, ANALYTIC_SCORER_KNOBS.values)
    assert (proposal.state_at_s, proposal.novelty) == (100.3, 0.25)
    # 20 ms after the next window has begun.
    assert wait_s == pytest.approx(1.52)


def test_one_that_is_late_does_not_wait() -> None:
    assert PolicyLoop(constant(), FakeLink(), clock=lambda: 105.0).step() == 0.0


def test_what_a_policy_raises_is_told_and_the_loop_goes_on() -> None:
    link = FakeLink()
    loop = PolicyLoop(Raising(), link, clock=lambda: 100.5)
    for _ in range(2):
        loop.step()
    assert link.errors == ["RuntimeError: no idea"] * 2
    assert (loop.num_failures, link.proposals) == (2, [])


def test_a_gateway_that_is_gone_is_tried_again() -> None:
    link = FakeLink(is_gone=True)
    waits: list[float] = []
    loop = PolicyLoop(constant(), link, clock=lambda: 100.5)

    class Stopped:
        def is_set(self) -> bool:
            return len(waits) == 3

        def wait(self, timeout_s: float) -> None:
            waits.append(timeout_s)
            link.is_gone = len(waits) < 2

    loop._stopped = Stopped()  # type: ignore[assignment]
    loop.run()
    assert waits == pytest.approx([0.5, 0.5, 1.52])
    assert (loop.num_unreached, len(link.proposals)) == (2, 1)


def test_a_heuristic_is_a_policy_too() -> None:
    policy, novelty = policy_of(None, "round-robin")
    assert policy.act(STATE).as_dict() == heuristic("round-robin").knobs.as_dict()
    assert novelty(STATE) == 0.0

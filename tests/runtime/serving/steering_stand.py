"""A dispatcher that writes down what it is told, and policies made of numbers."""

from dataclasses import dataclass, field

import numpy as np

from trimtab.agents.heuristics import heuristic
from trimtab.agents.shield.fallback import FallbackConfig, Proposal
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.regret import NO_REGRET, Regret
from trimtab.runtime.serving.promotion import PromotionConfig
from trimtab.runtime.serving.seat import PolicyFacts
from trimtab.runtime.serving.steering import Steering, SteeringConfig

NUM_REPLICAS = 2
SCHEDULER = heuristic("least-requests").knobs
BASE = ANALYTIC_SCORER_KNOBS


@dataclass
class FakeDispatcher:
    """Remembers knobs and shadow; gives out regrets that were put in."""

    knobs: Knobs = SCHEDULER
    version: str = ""
    shadow: Knobs | None = None
    num_set: int = 0
    regret: Regret = NO_REGRET
    taken: list[Regret] = field(default_factory=list)

    def set_knobs(self, knobs: Knobs, policy_version: str | None = None) -> None:
        self.knobs, self.num_set = knobs, self.num_set + 1
        self.version = policy_version or self.version

    def set_shadow(self, knobs: Knobs | None, *, every: int = 8) -> None:
        self.shadow = knobs

    def take_regret(self) -> Regret:
        self.taken.append(self.regret)
        return self.regret


def policy(source: str = "p1", *, base: Knobs = BASE) -> PolicyFacts:
    return PolicyFacts(source=source, name=f"bundle of {source}", base=base)


def proposal(state_at_s: float, *, novelty: float = 0.0, **knobs: float) -> Proposal:
    """Return a proposal of the base with some knobs changed."""
    return Proposal(
        values=BASE.replace(knobs).values,
        bias=np.zeros(NUM_REPLICAS),
        state_at_s=state_at_s,
        arrived_at_s=state_at_s,
        novelty=novelty,
    )


def make_steering(
    dispatcher: FakeDispatcher | None = None,
    *,
    promotion: PromotionConfig | None = None,
    on_seated: list[PolicyFacts] | None = None,
) -> Steering:
    config = SteeringConfig(
        scheduler=SCHEDULER,
        scheduler_name="least-requests",
        fallback=FallbackConfig(recovery_windows=3),
        promotion=promotion,
    )
    steering = Steering(
        config,
        dispatcher or FakeDispatcher(),
        num_replicas=NUM_REPLICAS,
        on_seated=None if on_seated is None else on_seated.append,
    )
    steering.begin(0.0)
    return steering


def seated(steering: Steering, *, at_s: float = 2.02, source: str = "p1") -> Steering:
    """Give a policy the seat."""
    steering.announce(policy(source))
    assert steering.offer(source, proposal(at_s), at_s)
    return steering

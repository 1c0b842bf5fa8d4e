"""What a scheduling policy is: something that sets the knobs at the start of each window.

Heuristics, the tuned scorer and the learned policy are all called alike.

Does not know: how a policy is made or judged.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..env.knobs import Knobs, residual
from ..env.observation import ObservationLayout, observe
from ..env.state.cluster_state import ClusterState
from ..env.state.feature import Node
from .bundle import Bundle
from .heuristics import Heuristic


class Policy(Protocol):
    """Sets the knobs, window by window."""

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def is_constant(self) -> bool:
        """Whether it returns the same knobs whatever the state."""
        ...

    def begin(self) -> Knobs:
        """Forget everything and return the knobs to start with."""
        ...

    def act(self, state: ClusterState) -> Knobs:
        """Return the knobs of the next window."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantPolicy:
    """A heuristic or a tuned scorer: the same knobs always."""

    name: str
    knobs: Knobs
    is_constant: bool = True

    def begin(self) -> Knobs:
        """Return the knobs."""
        return self.knobs

    def act(self, state: ClusterState) -> Knobs:
        """Return the knobs."""
        return self.knobs


def constant_policy(heuristic: Heuristic) -> ConstantPolicy:
    """Return a heuristic as a policy."""
    return ConstantPolicy(name=heuristic.name, knobs=heuristic.knobs)


class LearnedPolicy:
    """A trained bundle: observes the state and moves its base knobs by a residual."""

    is_constant = False

    def __init__(self, bundle: Bundle, *, name: str = "trained-ppo") -> None:
        self.name = name
        self._bundle = bundle
        self._last_action = np.zeros(bundle.layout.action_size, np.float32)

    @property
    def layout(self) -> ObservationLayout:
        """Padded sizes of what it observes."""
        return self._bundle.layout

    def begin(self) -> Knobs:
        """Forget the last action and return the base knobs."""
        self._last_action = np.zeros(self.layout.action_size, np.float32)
        return self._bundle.base_knobs

    def act(self, state: ClusterState) -> Knobs:
        """Return the base knobs moved by the policy's deterministic action."""
        observation = observe(state, self._last_action, self.layout)
        self._last_action = self._bundle.action(observation)
        return residual(self._bundle.base_knobs, self._last_action, state.age_s[Node.REPLICA].size)

"""The loop of a policy's process: state in, proposal out, once a window.

Does not know: what becomes of a proposal, or which policy it runs.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ...agents.policy import Policy
from ...agents.shield.fallback import Proposal
from ...env.state.cluster_state import ClusterState
from ...traces.errors import TrimtabError
from .policy_source import Novelty, no_novelty

_LOG = logging.getLogger(__name__)

# A window is met so long after it began, s, when the gateway has certainly begun it.
_AFTER_S = 0.02
# Time between two attempts to reach a gateway that does not answer, s.
_RETRY_S = 0.5


class GatewayLink(Protocol):
    """What the loop asks of a gateway; `AdminClient` does it."""

    clock: dict[str, float]

    def state(self) -> ClusterState:
        """Return what can be seen at this moment."""
        ...

    def propose(self, proposal: Proposal, *, source: str = "") -> dict[str, Any]:
        """Propose knobs for this window."""
        ...

    def confess(self, error: str, *, state_at_s: float, source: str = "") -> dict[str, Any]:
        """Say that the policy raised."""
        ...


class PolicyLoop:
    """Runs one policy against one gateway, until it is stopped."""

    def __init__(
        self,
        policy: Policy,
        link: GatewayLink,
        *,
        source: str = "",
        novelty: Novelty = no_novelty,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy, self._link, self._source, self._novelty = policy, link, source, novelty
        self._clock = clock
        self._stopped = threading.Event()
        self.num_failures = 0
        """Times that the policy raised."""
        self.num_unreached = 0
        """Times that the gateway did not answer."""

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped.set()

    def run(self) -> None:
        """Propose once a window until stopped."""
        self._policy.begin()
        while not self._stopped.is_set():
            try:
                wait_s = self.step()
            except TrimtabError as error:
                self.num_unreached += 1
                if self.num_unreached & (self.num_unreached - 1) == 0:
                    _LOG.warning("gateway not reached (%d times): %s", self.num_unreached, error)
                wait_s = _RETRY_S
            self._stopped.wait(wait_s)

    def step(self) -> float:
        """Propose once; return the time until the next window.

        Raises:
            TrimtabError: the gateway cannot be reached, or its answer not be read.
        """
        state = self._link.state()
        clock = self._link.clock
        try:
            knobs = self._policy.act(state)
            novelty = float(self._novelty(state))
        except Exception as error:
            # Whatever a policy raises, the gateway is told, and the next window tried.
            self.num_failures += 1
            _LOG.warning("the policy raised %s: %s", type(error).__name__, error)
            what = f"{type(error).__name__}: {error}"
            self._link.confess(what, state_at_s=state.now_s, source=self._source)
        else:
            proposal = Proposal(
                values=getattr(knobs, "values", np.zeros(0)),
                bias=getattr(knobs, "replica_bias", np.zeros(0)),
                state_at_s=state.now_s,
                arrived_at_s=state.now_s,
                novelty=novelty,
            )
            self._link.propose(proposal, source=self._source)
        next_at_s = clock["window_at_s"] + clock["window_s"] + _AFTER_S
        return max(0.0, next_at_s - self._clock())

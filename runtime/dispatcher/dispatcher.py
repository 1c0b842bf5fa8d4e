"""What a gateway asks of a dispatcher, and whom a dispatcher tells.

Does not know: HTTP, or how a choice is made (`live_dispatcher.py`).
"""

from collections.abc import Callable
from typing import Protocol

from .request import Placement, Refusal, RequestEnd, RequestFacts


class Dispatcher(Protocol):
    """Places requests. Called from the gateway's thread only; no call waits for anything."""

    def dispatch(self, facts: RequestFacts, now_s: float) -> Placement | Refusal:
        """Choose a replica for a request, and count it there."""
        ...

    def redispatch(self, placement: Placement, now_s: float, reason: str) -> Placement | Refusal:
        """Choose another replica, as this one broke off or fell silent before its first byte.

        The request is no longer counted where it was; of the replicas that were tried, none is
        chosen again. A refusal ends the request: `finish` must not be called for it.
        """
        ...

    def first_token(self, placement: Placement, now_s: float) -> None:
        """Note the first byte of an answer's body."""
        ...

    def progress(self, replica: int, now_s: float) -> None:
        """Note that something came from a replica."""
        ...

    def finish(self, placement: Placement, end: RequestEnd) -> None:
        """Note that a request has left its replica."""
        ...


class DispatchListener(Protocol):
    """Is told what becomes of every request: recorder, decision log, learners, counters."""

    def on_placed(self, placement: Placement) -> None:
        """A request was sent to a replica, for the first time or again."""
        ...

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """A request was refused."""
        ...

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """A request that was placed has ended."""
        ...


EvictReplica = Callable[[int, str], int]
"""Move all requests without a first byte away from a replica, for a reason; return how many."""

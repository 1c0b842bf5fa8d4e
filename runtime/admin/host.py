"""What the admin port asks of the gateway that it belongs to.

Does not know: HTTP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ...env.fleet import WindowOutcome
from ...env.knobs import Knobs
from ...env.state.cluster_state import ClusterState
from ...traces.errors import TrimtabError
from .bodies import ProposalBody


class Refused(TrimtabError):
    """The gateway will not do what it was asked to."""

    def __init__(self, status: int, key: str, message: str) -> None:
        """`status` is HTTP's; `key` names what of the request is at fault."""
        self.status, self.key = status, key
        super().__init__(message)


class AdminHost(Protocol):
    """A gateway as its admin port sees it. All calls come from its own event loop."""

    @property
    def clock(self) -> Mapping[str, float]:
        """`now_s`, `window_at_s` (when this window began) and `window_s`."""
        ...

    def state(self) -> ClusterState:
        """Return what can be seen at this moment."""
        ...

    async def window(self, span_s: float) -> WindowOutcome:
        """Let some time pass and return what happened in it."""
        ...

    def offer(self, body: ProposalBody) -> dict[str, Any]:
        """Take a proposal; return what came of it."""
        ...

    def order(self, knobs: Knobs, lease_s: float | None) -> Knobs:
        """Let an operator's knobs rule; return those in force."""
        ...

    def withdraw_order(self) -> None:
        """Let an operator's knobs rule no more."""
        ...

    async def swap(self, path: Path, deadline_s: float) -> dict[str, Any]:
        """Let a bundle take the seat; return what came of it. Raises: `Refused`."""
        ...

    def status(self) -> dict[str, Any]:
        """Return who rules, why, and how each replica is; plain JSON."""
        ...

    async def drain(self, deadline_s: float) -> bool:
        """Take nothing new and wait for what is open; return whether all of it ended."""
        ...

    def decision(self, request_id: str) -> dict[str, Any]:
        """Return what is known of a request's placement. Raises: `Refused`."""
        ...

    async def order_replica(self, name: str, deed: str) -> dict[str, Any]:
        """Do a deed to a replica: drain, undrain, sleep or wake. Raises: `Refused`."""
        ...

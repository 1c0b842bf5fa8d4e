"""A gateway as its admin port sees it: what is asked, handed to the part that does it.

Does not know: HTTP.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...agents.shield.fallback import Proposal
from ...env.fleet import WindowOutcome
from ...env.knobs import Knobs
from ...env.state.cluster_state import ClusterState
from ...traces.errors import BundleError
from ..admin.bodies import ProposalBody
from ..admin.host import Refused
from ..dispatcher.live_dispatcher import cannot_place_by
from ..engines.engine_error import EngineError
from .bundle_fit import policy_of_bundle
from .policy_children import SwapPhase
from .status import status_of
from .window_meter import WindowMeter

if TYPE_CHECKING:
    from .server import Server

# Time between two looks at a change of policy that somebody waits for, s.
_LOOK_S = 0.02


class ServerHost:
    """Implements `AdminHost` for a server."""

    def __init__(self, server: "Server") -> None:
        self._server = server

    @property
    def clock(self) -> Mapping[str, float]:
        """See `AdminHost`."""
        server = self._server
        now_s = server.clock()
        # A window that is due has begun, though the tick that says so may still come.
        server.steering.tick(now_s)
        return {
            "now_s": now_s,
            "window_at_s": server.steering.window_at_s,
            "window_s": server.steering.window_s,
        }

    def state(self) -> ClusterState:
        """See `AdminHost`."""
        return self._server.control.state(self._server.clock())

    async def window(self, span_s: float) -> WindowOutcome:
        """See `AdminHost`."""
        server = self._server
        meter = WindowMeter(server.dispatcher.totals, server.clock())
        await asyncio.sleep(span_s)
        return meter.take(server.clock())

    def offer(self, body: ProposalBody) -> dict[str, Any]:
        """See `AdminHost`."""
        server, now_s = self._server, self._server.clock()
        steering = server.steering
        proposal = None
        if body.error is None:
            proposal = Proposal(
                values=np.array(body.values, np.float64),
                bias=np.array(body.bias, np.float64),
                state_at_s=body.state_at_s,
                arrived_at_s=now_s,
                novelty=body.novelty,
            )
        server.policies.on_proposal(body.source, now_s)
        is_judged = steering.offer(
            body.source, proposal, now_s, has_failed=proposal is None, attention=body.attention
        )
        return {
            "is_judged": is_judged,
            "ruler": str(steering.ruler),
            "doubt": None if steering.doubt is None else str(steering.doubt),
            "knob_version": server.dispatcher.knob_version,
        }

    def order(self, knobs: Knobs, lease_s: float | None) -> Knobs:
        """See `AdminHost`."""
        server = self._server
        size, num = knobs.replica_bias.size, server.dispatcher.views.size
        if size not in (0, num):
            raise Refused(422, "bias", f"must have {num} numbers or none, got {size}")
        if knobs["value_weight"] > 0.0 and not server.dispatcher.can_place_by_worth:
            raise Refused(422, "knobs", cannot_place_by(knobs))
        lease = np.inf if lease_s is None else lease_s
        return server.steering.order(knobs, server.clock(), lease_s=lease)

    def withdraw_order(self) -> None:
        """See `AdminHost`."""
        self._server.steering.withdraw_order(self._server.clock())

    async def swap(self, path: Path, deadline_s: float) -> dict[str, Any]:
        """See `AdminHost`."""
        server = self._server
        if server.policies.is_waiting:
            raise Refused(409, "path", "another policy is on its way to the seat; wait for it")
        try:
            policy = policy_of_bundle(
                path,
                server.dispatcher.cluster,
                source=server.new_source(),
                can_place_by_worth=server.dispatcher.can_place_by_worth,
            )
        except BundleError as error:
            raise Refused(422, "path", str(error)) from error
        swap = server.policies.start(policy, server.clock(), deadline_s=deadline_s)
        while swap.phase is SwapPhase.WAITING:
            await asyncio.sleep(_LOOK_S)
        if swap.phase is SwapPhase.FAILED:
            text = f"bundle '{path}' does not get the seat: {swap.reason}; the old policy goes on"
            raise Refused(409, "path", text)
        return {"policy": policy.name, "took_s": swap.ended_at_s - swap.started_at_s}

    def status(self) -> dict[str, Any]:
        """See `AdminHost`."""
        return status_of(self._server)

    async def drain(self, deadline_s: float) -> bool:
        """See `AdminHost`."""
        return await self._server.gateway.drain(deadline_s)

    def decision(self, request_id: str) -> dict[str, Any]:
        """See `AdminHost`."""
        found = self._server.placements.find(request_id)
        if found is None:
            text = f"nothing is known of request '{request_id}'; only the newest are kept"
            raise Refused(404, "request_id", text)
        return found

    async def order_replica(self, name: str, deed: str) -> dict[str, Any]:
        """See `AdminHost`."""
        server = self._server
        names = [replica.name for replica in server.dispatcher.cluster.replicas]
        if name not in names:
            raise Refused(404, "name", f"the fleet has no replica '{name}'; it has {names}")
        replica, orders = names.index(name), server.orders
        try:
            if deed == "drain":
                orders.drain(replica)
            elif deed == "undrain":
                orders.undrain(replica)
            elif deed == "sleep":
                await orders.sleep(replica)
            else:
                await orders.wake(replica)
        except EngineError as error:
            raise Refused(409, "deed", str(error)) from error
        except TimeoutError as error:
            raise Refused(409, "deed", f"{deed} of '{name}' was not done in time") from error
        view = server.dispatcher.views[replica]
        return {
            "replica": name,
            "state": orders.state(replica, is_available=bool(view["is_available"])),
            "outstanding_requests": int(view["outstanding_requests"]),
        }

"""Routes of the admin port.

    GET    /admin/state                 state of this moment, msgpack; its clock in headers
    GET    /admin/window?span_s=2       what happens in the time from here on
    PUT    /admin/knobs                 a proposal, to be judged
    PUT    /admin/order                 knobs that rule as they are, within the limits
    DELETE /admin/order                 they rule no more
    POST   /admin/bundle                a bundle takes the seat, or the old one goes on
    GET    /admin/status                who rules, why, doubts, replicas with masks and reasons
    POST   /admin/drain                 take nothing new, and wait for what is open
    GET    /admin/decisions/{id}        where a request went, and why
    POST   /admin/replicas/{name}/DEED  drain, undrain, sleep, wake

A fault is answered by 4xx and `{"faults": [{"key": ..., "text": ...}]}`.

Does not know: who may ask (`model_profiles/auth.py`), or what is behind the host.
"""

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web
from aiohttp.typedefs import Handler

from ...env.knobs import Knobs
from ...traces.errors import TrimtabError
from ..live_fleet.state_codec import encode_state
from ..model_profiles.answers import fault_answer
from .bodies import (
    MSGPACK,
    BodyT,
    BundleBody,
    DrainBody,
    OrderBody,
    ProposalBody,
    decode,
    window_fields,
)
from .host import AdminHost, Refused

MAX_SPAN_S = 3600.0
"""Longest window that may be asked for."""
DEEDS = ("drain", "undrain", "sleep", "wake")
"""What may be done to a replica."""
CLOCK_HEADER = "x-trimtab-{}"
"""Headers of a state's answer: `x-trimtab-now-s`, `-window-at-s`, `-window-s`."""


def admin_routes(host: AdminHost) -> web.RouteTableDef:
    """The routes over a gateway; whoever mounts them checks who asks."""
    routes, handlers = web.RouteTableDef(), _Handlers(host)
    routes.get("/admin/state")(_answering(handlers.state))
    routes.get("/admin/window")(_answering(handlers.window))
    routes.put("/admin/knobs")(_answering(handlers.propose))
    routes.put("/admin/order")(_answering(handlers.order))
    routes.delete("/admin/order")(_answering(handlers.withdraw))
    routes.post("/admin/bundle")(_answering(handlers.bundle))
    routes.get("/admin/status")(_answering(handlers.status))
    routes.post("/admin/drain")(_answering(handlers.drain))
    routes.get("/admin/decisions/{id}")(_answering(handlers.decision))
    routes.post("/admin/replicas/{name:.+}/{deed}")(_answering(handlers.replica))
    return routes


class _Handlers:
    """What the routes do."""

    def __init__(self, host: AdminHost) -> None:
        self.host = host

    async def state(self, request: web.Request) -> web.Response:
        body = encode_state(self.host.state())
        headers = {
            CLOCK_HEADER.format(name.replace("_", "-")): repr(value)
            for name, value in self.host.clock.items()
        }
        return web.Response(body=body, content_type=MSGPACK, headers=headers)

    async def window(self, request: web.Request) -> web.Response:
        text = request.query.get("span_s", "2")
        try:
            span_s = float(text)
        except ValueError:
            span_s = math.nan
        if not 0.0 < span_s <= MAX_SPAN_S:
            fault = f"must be a number above 0 and at most {MAX_SPAN_S:g} s, got '{text}'"
            raise Refused(422, "span_s", fault)
        return _json(window_fields(await self.host.window(span_s)))

    async def propose(self, request: web.Request) -> web.Response:
        return _json(self.host.offer(await _body(ProposalBody, request)))

    async def order(self, request: web.Request) -> web.Response:
        body = await _body(OrderBody, request)
        try:
            knobs = Knobs.of(**body.knobs)
            if body.bias:
                knobs = Knobs(knobs.values, np.array(body.bias, np.float64))
        except ValueError as error:
            raise Refused(422, "knobs", str(error)) from error
        return _json(_knobs_answer(self.host.order(knobs, body.lease_s)))

    async def withdraw(self, request: web.Request) -> web.Response:
        self.host.withdraw_order()
        return web.Response(status=204)

    async def bundle(self, request: web.Request) -> web.Response:
        body = await _body(BundleBody, request)
        return _json(await self.host.swap(Path(body.path), body.deadline_s))

    async def status(self, request: web.Request) -> web.Response:
        return _json(self.host.status())

    async def drain(self, request: web.Request) -> web.Response:
        body = await _body(DrainBody, request)
        return _json({"is_drained": await self.host.drain(body.deadline_s)})

    async def decision(self, request: web.Request) -> web.Response:
        return _json(self.host.decision(request.match_info["id"]))

    async def replica(self, request: web.Request) -> web.Response:
        name, deed = request.match_info["name"], request.match_info["deed"]
        if deed not in DEEDS:
            raise Refused(404, "deed", f"unknown deed '{deed}'; known: {', '.join(DEEDS)}")
        return _json(await self.host.order_replica(name, deed))


def _knobs_answer(knobs: Knobs) -> dict[str, Any]:
    return {"knobs": knobs.as_dict(), "bias": knobs.replica_bias.tolist()}


def _json(content: dict[str, Any]) -> web.Response:
    """An answer in JSON; what is no number is null."""
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


async def _body(kind: type[BodyT], request: web.Request) -> BodyT:
    """The body of a request.

    Raises: `Refused` for one that is not of the kind.
    """
    data = await request.read()
    try:
        return decode(kind, data, request.content_type)
    except msgspec.ValidationError as error:
        raise Refused(422, "body", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "body", f"is neither JSON nor msgpack: {error}") from error


def _answering(handler: Handler) -> Handler:
    """A handler that answers what is refused, and other errors of our own, as faults."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as refused:
            return fault_answer(refused.status, refused.key, str(refused))
        except TrimtabError as error:
            return fault_answer(422, "request", str(error))

    return answer

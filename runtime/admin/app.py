"""Routes of the admin API.

Does not know: how a server does what it is asked.
"""

import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from ..serving.server import Server


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admin_app(server: "Server") -> web.Application:
    """Return the admin API of a server."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {server.token}".encode()):
            return web.json_response({"error": "wrong or missing token"}, status=401)
        return await handler(request)

    async def status(request: web.Request) -> web.Response:
        return web.json_response(server.status())

    app = web.Application(middlewares=[check])
    app.router.add_get("/admin/status", status)
    return app

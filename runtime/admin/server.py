"""The admin port: the routes behind a token, on this machine's loopback unless said otherwise.

Does not know: what the routes do (`routes.py`).
"""

from collections.abc import Sequence

from aiohttp import web

from ...env.model_store import ModelStore
from ..model_profiles.auth import token_check
from ..model_profiles.routes import model_profile_routes
from .host import AdminHost
from .routes import admin_routes

# Bytes of a body; a proposal for thousands of replicas is far below.
_MAX_BODY_BYTES = 2 * 1024 * 1024


def make_admin_app(
    host: AdminHost, *, token: str, store: ModelStore | None = None
) -> web.Application:
    """An application with all routes behind a token; those of model profiles if there is a store.

    Raises: `ValueError` for a token that can be guessed.
    """
    app = web.Application(middlewares=[token_check(token)], client_max_size=_MAX_BODY_BYTES)
    app.add_routes(admin_routes(host))
    if store is not None:
        app.add_routes(model_profile_routes(store))
    return app


class AdminServer:
    """One admin port, on the running event loop."""

    def __init__(self, app: web.Application, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        self._host, self._asked_port = host, port

    async def start(self) -> None:
        """Begin to listen."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._asked_port)
        await site.start()

    @property
    def port(self) -> int:
        """Where it listens.

        Raises:
            RuntimeError: it does not.
        """
        addresses: Sequence[tuple[str, int]] = self._runner.addresses
        if not addresses:
            msg = "the admin port does not listen; call start() first"
            raise RuntimeError(msg)
        return int(addresses[0][1])

    async def close(self) -> None:
        """Stop listening and close all connections."""
        await self._runner.cleanup()

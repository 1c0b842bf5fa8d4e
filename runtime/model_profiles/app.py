"""The routes for model profiles as an application of its own, on this machine's loopback.

Does not know: what the routes do.
"""

import ipaddress
import logging

from aiohttp import web

from ...env.model_store import ModelStore
from ...traces.errors import ConfigError
from .auth import token_check
from .routes import model_profile_routes

_LOG = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8_271


def make_app(store: ModelStore, *, token: str) -> web.Application:
    """An application with the routes behind a token; what the store has joins the catalogue.

    A damaged file in the store is logged and left out, so that the others can be served.

    Raises: `ValueError` for a token that can be guessed.
    """
    app = web.Application(middlewares=[token_check(token)])
    app.add_routes(model_profile_routes(store))
    for key in store.model_keys():
        try:
            store.publish(key)
        except ConfigError as error:
            _LOG.error("model %s of the store is left out: %s", key, error)
    return app


def checked_host(host: str) -> str:
    """The host itself.

    Raises: `ConfigError` unless it is this machine's loopback.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        msg = (
            f"host must be a loopback address such as {DEFAULT_HOST}, got {host!r}; put a proxy "
            "with TLS before it to serve other machines"
        )
        raise ConfigError(msg)
    return host


def serve(store: ModelStore, *, token: str, host: str, port: int) -> None:
    """Serve until interrupted."""
    web.run_app(make_app(store, token=token), host=checked_host(host), port=port)

"""Routes for model profiles: upload, list, read.

    POST /v1/model-profiles             a model file: YAML, or JSON if `Content-Type` says so
        201 stored as a new version; 200 there already, the same; 409 there with other content;
        413 too long; 422 with all faults: key, text, line; 500 the store is damaged or full
    GET  /v1/model-profiles             every model with its versions
    GET  /v1/model-profiles/{model}     `name` (the newest version) or `name@version`; ETag
    GET  /v1/model-profiles/{name}/history   versions, and what each changed in words

What is stored joins the catalogue of this process before the answer goes out: clusters, simulator
and scorer may name it from then on.

Does not know: who may ask (`auth.py`), or what a model file holds.
"""

import asyncio
import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from ...env.model_profile import add_model
from ...env.model_store import ModelStore, Outcome, Upload
from ...env.model_text import MAX_TEXT_BYTES
from ...traces.errors import ConfigError
from .answers import fault_answer, faults_answer, model_answer, model_summary, version_answer

_LOG = logging.getLogger(__name__)

_STATUS = {
    Outcome.CREATED: 201,
    Outcome.IDENTICAL: 200,
    Outcome.CONFLICT: 409,
    Outcome.REFUSED: 422,
}
_PLACE = "/v1/model-profiles"


def model_profile_routes(store: ModelStore) -> web.RouteTableDef:
    """The routes over a store; whoever mounts them checks who asks."""
    routes, handlers = web.RouteTableDef(), _Handlers(store)
    routes.post(_PLACE)(_answering(handlers.upload))
    routes.get(_PLACE)(_answering(handlers.listing))
    routes.get(_PLACE + "/{name}/history")(_answering(handlers.history))
    routes.get(_PLACE + "/{model}")(_answering(handlers.one))
    return routes


class _Handlers:
    """What the routes do; files are read and written beside the event loop."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store

    async def upload(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if body is None:
            return fault_answer(413, "file", f"is longer than {MAX_TEXT_BYTES} bytes; shorten it")
        is_json = request.content_type == "application/json"
        done = await asyncio.to_thread(_store, self.store, body, is_json)
        if done.profile is None or done.faults:
            return faults_answer(_STATUS[done.outcome], done.faults)
        _LOG.info("model profile %s: %s", done.profile.key, done.outcome.value)
        answer = web.json_response(model_summary(done.profile), status=_STATUS[done.outcome])
        answer.headers["Location"] = f"{_PLACE}/{done.profile.key}"
        return answer

    async def listing(self, request: web.Request) -> web.Response:
        def found() -> list[dict[str, object]]:
            names = self.store.names()
            return [{"name": name, "versions": list(self.store.versions(name))} for name in names]

        return web.json_response({"models": await asyncio.to_thread(found)})

    async def history(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not self.store.versions(name):
            return self._unknown(name)
        versions = await asyncio.to_thread(self.store.history, name)
        return web.json_response({"name": name, "versions": [version_answer(v) for v in versions]})

    async def one(self, request: web.Request) -> web.Response:
        key = self.store.find(request.match_info["model"])
        if key is None:
            return self._unknown(request.match_info["model"])
        tag = f'"{await asyncio.to_thread(self.store.tag, key)}"'
        asked = request.headers.get("If-None-Match", "").split(",")
        if {tag, "*"} & {part.strip().removeprefix("W/") for part in asked}:
            return web.Response(status=304, headers={"ETag": tag})
        answer = await asyncio.to_thread(lambda: model_answer(self.store.read(key)))
        return web.json_response(answer, headers={"ETag": tag})

    def _unknown(self, key: str) -> web.Response:
        names = ", ".join(self.store.names()) or "none"
        return fault_answer(404, "model", f"the store has no {key!r}; its models: {names}")


def _answering(handler: Handler) -> Handler:
    """A handler that says so when the store itself is damaged or full: 500, and a line in the log.

    No body of a request comes to this.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except (ConfigError, OSError) as error:
            _LOG.error("%s %s failed: %s", request.method, request.path, error)
            return fault_answer(500, "store", str(error))

    return answer


async def _body(request: web.Request) -> bytes | None:
    """The body, or None if it is too long; no more of it is kept."""
    parts = bytearray()
    async for part in request.content.iter_chunked(16_384):
        parts += part
        if len(parts) > MAX_TEXT_BYTES:
            return None
    return bytes(parts)


def _store(store: ModelStore, body: bytes, is_json: bool) -> Upload:
    done = store.add(body, is_json=is_json)
    if done.profile is not None and done.outcome in (Outcome.CREATED, Outcome.IDENTICAL):
        add_model(done.profile, "the upload")
    return done

"""An engine on loopback that answers as it was told, and notes what it was asked."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import Engine
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica

Answers = Mapping[str, tuple[int, object]]
"""By method and path: status, and JSON or plain text."""


@asynccontextmanager
async def answering(
    kind: EngineKind, answers: Answers, *, timeout_s: float = 5.0, api_key: str | None = None
) -> AsyncIterator[tuple[Engine, list[tuple[str, object]]]]:
    """Yield an engine, and the list of what it is asked: method and path, body."""
    asked: list[tuple[str, object]] = []

    async def answer(request: web.Request) -> web.Response:
        call = f"{request.method} {request.path_qs}"
        body = await request.json() if request.can_read_body else None
        asked.append((call, body))
        if api_key is not None and request.headers.get("Authorization") != f"Bearer {api_key}":
            return web.Response(status=401)
        status, content = answers.get(call, (404, {"error": "Not Found"}))
        if isinstance(content, str):
            return web.Response(status=status, text=content)
        return web.json_response(content, status=status)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    replica = LiveReplica(
        name="r0", engine=kind, host="127.0.0.1", port=port, model="tiny", api_key=api_key
    )
    try:
        async with aiohttp.ClientSession() as session:
            yield connect(replica, session, timeout_s=timeout_s), asked
    finally:
        await runner.cleanup()

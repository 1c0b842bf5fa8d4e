"""A plain proxy as one would write it with aiohttp, round robin.

Run: python aiohttp_proxy.py PORT ENGINE_PORT...
"""

import sys
from collections.abc import AsyncIterator
from itertools import cycle

import uvloop
from aiohttp import ClientSession, TCPConnector, web


async def passed_on(request: web.Request) -> web.StreamResponse:
    """Pass a request on, and its answer back."""
    body = await request.read()
    url = f"http://127.0.0.1:{next(turn)}{request.path}"
    own = {"content-type": "application/json"}
    async with request.app["session"].post(url, data=body, headers=own) as answer:
        kind = answer.headers["content-type"]
        out = web.StreamResponse(status=answer.status, headers={"content-type": kind})
        await out.prepare(request)
        async for piece in answer.content.iter_any():
            await out.write(piece)
        await out.write_eof()
        return out


async def session(app: web.Application) -> AsyncIterator[None]:
    """Keep one client session as long as the proxy runs."""
    async with ClientSession(connector=TCPConnector(limit=0)) as opened:
        app["session"] = opened
        yield


turn = cycle(int(port) for port in sys.argv[2:])
app = web.Application()
app.cleanup_ctx.append(session)
app.router.add_post("/{path:.*}", passed_on)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)

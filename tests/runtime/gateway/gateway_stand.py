"""What stands around the gateway in its tests: scripted engines, a plain reader, a dispatcher."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from trimtab.runtime.dispatcher.request import Placement, Refusal, RequestEnd, RequestFacts
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.gateway.gateway import Gateway
from trimtab.runtime.gateway.tenants import Tenants
from trimtab.runtime.understanding.reader import Call, Reading, RequestFault

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class PlainReader:
    """Takes any JSON object for a request of the model `tiny`."""

    def read(self, call: Call) -> Reading:
        try:
            body = json.loads(call.body)
        except ValueError:
            raise RequestFault(400, "invalid_json", "The body is no JSON.") from None
        if body.get("model") != "tiny":
            raise RequestFault(404, "model_not_found", "The model does not exist.", "model")
        facts = RequestFacts(
            request_id=call.request_id, model="tiny", model_index=0, tenant=call.tenant.name,
            input_tokens=10, max_output_tokens=10, expected_output_tokens=10.0,
            output_tokens_p90=10.0, ttft_slo_s=1.0, tpot_slo_s=1.0,
            is_stream=bool(body.get("stream")), arrived_at_s=call.arrived_at_s,
            deadline_at_s=call.arrived_at_s + float(body.get("timeout_s", 1e9)),
        )  # fmt: skip
        return Reading(facts)

    def on_placed(self, placement: Placement) -> None:
        """Learn nothing."""

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """Learn nothing."""

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """Learn nothing."""


@dataclass
class TurnDispatcher:
    """Sends requests to the replicas in turn, and writes down what it hears."""

    num_replicas: int
    ends: list[RequestEnd] = field(default_factory=list)
    first_tokens: int = 0
    num_open: int = 0
    refusal: Refusal | None = None
    _next: int = 0

    def dispatch(self, facts: RequestFacts, now_s: float) -> Placement | Refusal:
        if self.refusal is not None:
            return self.refusal
        self.num_open += 1
        return self._placement(facts, now_s, ())

    def _placement(self, facts: RequestFacts, now_s: float, tried: tuple[int, ...]) -> Placement:
        while self._next % self.num_replicas in tried:
            self._next += 1
        replica = self._next % self.num_replicas
        self._next += 1
        return Placement(
            facts=facts, replica=replica, number=1, hit_tokens=0, predicted_ttft_s=0.1,
            placed_at_s=now_s, tried=tried,
        )  # fmt: skip

    def redispatch(self, placement: Placement, now_s: float, reason: str) -> Placement | Refusal:
        tried = (*placement.tried, placement.replica)
        if len(set(tried)) == self.num_replicas:
            self.num_open -= 1
            text = f"{reason}, and no other replica can take the request"
            return Refusal(status=503, code="rejected-no-endpoints", message=text)
        return self._placement(placement.facts, now_s, tried)

    def first_token(self, placement: Placement, now_s: float) -> None:
        self.first_tokens += 1
        placement.first_token_at_s = now_s

    def progress(self, replica: int, now_s: float) -> None:
        """Note nothing."""

    def finish(self, placement: Placement, end: RequestEnd) -> None:
        self.num_open -= 1
        self.ends.append(end)


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head, await reader.readexactly(length)


@dataclass
class Engine:
    """A replica that answers by a script, and remembers what it was asked."""

    handler: Handler
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    num_aborted: int = 0
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while True:
                head, body = await read_request(reader)
                self.heads.append(head)
                self.bodies.append(body)
                await self.handler(reader, writer, body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            return
        finally:
            writer.close()

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def whole_answer(status: int = 200, body: bytes | None = None) -> bytes:
    """Return an answer that is no stream."""
    content = json.dumps({"id": "x", "usage": USAGE}).encode() if body is None else body
    return (
        b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\nserver: engine\r\n"
        b"content-length: %d\r\n\r\n%s" % (status, len(content), content)
    )


def chunk(data: bytes) -> bytes:
    """Return one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


async def answer_whole(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> None:
    """Answer at once."""
    writer.write(whole_answer())


async def answer_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> None:
    """Answer in three events and the end."""
    writer.write(STREAM_HEAD)
    for word in (b"one", b"two", b"three"):
        writer.write(chunk(b'data: {"text": "' + word + b'"}\n\n'))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write(chunk(b"data: [DONE]\n\n") + LAST_CHUNK)


@dataclass
class Stand:
    """A gateway with its surroundings."""

    gateway: Gateway
    dispatcher: TurnDispatcher
    engines: list[Engine]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.gateway.port)

    async def exchange(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the connection closes."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), 60.0)
        writer.close()
        return answer


@asynccontextmanager
async def standing(
    *handlers: Handler, config: GatewayConfig | None = None, tenants: Tenants | None = None
) -> AsyncIterator[Stand]:
    """Run a gateway in front of engines that answer by these scripts."""
    engines = [Engine(handler) for handler in handlers]
    servers = []
    for engine in engines:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
        engine.port = server.sockets[0].getsockname()[1]
        servers.append(server)
    replicas = [
        LiveReplica(
            name=f"replica-{i}", engine=EngineKind.LLAMACPP, host="127.0.0.1", port=engine.port,
            model="tiny",
        )
        for i, engine in enumerate(engines)
    ]  # fmt: skip
    dispatcher = TurnDispatcher(len(engines))
    gateway = Gateway(
        config or GatewayConfig(sweep_s=0.01), dispatcher, PlainReader(), replicas, tenants=tenants
    )
    await gateway.start()
    try:
        yield Stand(gateway, dispatcher, engines)
    finally:
        await gateway.close()
        for server in servers:
            server.close()
        for engine in engines:
            for writer in engine.writers:
                writer.close()
        await asyncio.sleep(0.01)


def post(
    body: dict[str, object] | None = None,
    *,
    headers: str = "",
    path: str = "/v1/completions",
    is_last: bool = True,
) -> bytes:
    """Return a request as bytes."""
    content = json.dumps({"model": "tiny", **(body or {})}).encode()
    close = "connection: close\r\n" if is_last else ""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{close}{headers}content-length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content

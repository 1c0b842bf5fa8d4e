"""The HTTP of the simulated engine: completions, streamed or not, health and a metrics page.

Does not know: how a batch is put together (`batch.py`).
"""

import asyncio
from collections.abc import Callable

import httptools
import msgspec

from .batch import BLOCK_TOKENS, Answer, Batch, EngineSpeed, Sequence

# Bytes of a prompt that count as a token.
_TOKEN_BYTES = 4
_WORD = b" token"


class _Body(msgspec.Struct):
    model: str = "simulated"
    prompt: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    priority: int = 0


_DECODER = msgspec.json.Decoder(_Body)


class SimulatedEngine:
    """One engine on one port. Answers are its model's only word, as often as asked for."""

    def __init__(self, speed: EngineSpeed, *, model: str = "simulated") -> None:
        self.batch = Batch(speed)
        self.model = model
        self.num_aborted = 0
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[_Connection] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Begin to listen; return the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self, self._connections), host, port, backlog=1024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop at once."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def add(self, sequence: Sequence) -> None:
        """Take a request; the first one starts the engine's iterations."""
        self.batch.add(sequence)
        if self._timer is None:
            self._iterate()

    def _iterate(self) -> None:
        loop = asyncio.get_running_loop()
        time_s = self.batch.begin_iteration()
        is_busy = bool(self.batch.running)
        self._timer = loop.call_later(time_s, self._end) if is_busy else None

    def _end(self) -> None:
        self.batch.end_iteration()
        self._iterate()

    def page(self) -> bytes:
        """Return the metrics page, with vLLM's names."""
        batch, speed = self.batch, self.batch.speed
        label = f'{{engine="0",model_name="{self.model}"}}'
        blocks = speed.kv_tokens // BLOCK_TOKENS
        config = f'{{block_size="{BLOCK_TOKENS}",engine="0",num_gpu_blocks="{blocks}"}}'
        families = [
            ("num_requests_running", "gauge", label, len(batch.running)),
            ("num_requests_waiting", "gauge", label, len(batch.waiting)),
            ("kv_cache_usage_perc", "gauge", label, min(1.0, batch.used_tokens / speed.kv_tokens)),
            ("prompt_tokens_total", "counter", label, batch.num_prompt_tokens),
            ("prefix_cache_queries_total", "counter", label, batch.num_prompt_tokens),
            ("prefix_cache_hits_total", "counter", label, batch.num_cached_tokens),
            ("generation_tokens_total", "counter", label, batch.num_output_tokens),
            ("cache_config_info", "gauge", config, 1),
        ]
        lines = []
        for name, kind, labels, value in families:
            lines += [f"# TYPE vllm:{name.removesuffix('_total')} {kind}"]
            lines += [f"vllm:{name}{labels} {value:.10g}"]
        return ("\n".join(lines) + "\n").encode()


def block_hashes(prompt: bytes) -> tuple[int, ...]:
    """Return chained hashes of a prompt's full blocks."""
    size, before, found = BLOCK_TOKENS * _TOKEN_BYTES, 0, []
    for start in range(0, len(prompt) - size + 1, size):
        before = hash((before, prompt[start : start + size]))
        found.append(before)
    return tuple(found)


class _Connection(asyncio.Protocol):
    """One client; requests one after another."""

    def __init__(self, engine: SimulatedEngine, connections: "set[_Connection]") -> None:
        self._engine, self._connections = engine, connections
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._sequence: Sequence | None = None
        self._url, self._body = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._connections.discard(self)
        if self._sequence is not None:
            self._engine.batch.remove(self._sequence)
            self._engine.num_aborted += 1

    def cut(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.cut()

    def on_message_begin(self) -> None:
        """See httptools."""
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url += url

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        self._body += data

    def on_message_complete(self) -> None:
        """See httptools."""
        pages: dict[bytes, Callable[[], tuple[bytes, bytes]]] = {
            b"/health": lambda: (b"text/plain", b""),
            b"/metrics": lambda: (b"text/plain; version=0.0.4", self._engine.page()),
            b"/v1/models": lambda: (b"application/json", self._models()),
        }
        if self._url in pages:
            self.write_whole(200, *pages[self._url]())
        elif self._url in (b"/v1/completions", b"/v1/chat/completions"):
            self._complete()
        else:
            self.write_whole(404, b"application/json", b'{"error": "not found"}')

    def _models(self) -> bytes:
        models = [{"id": self._engine.model, "object": "model", "owned_by": "simulated"}]
        return msgspec.json.encode({"object": "list", "data": models})

    def _complete(self) -> None:
        try:
            body = _DECODER.decode(self._body)
        except msgspec.DecodeError as error:
            text = msgspec.json.encode({"error": {"message": str(error), "code": 400}})
            self.write_whole(400, b"application/json", text)
            return
        prompt = bytes(body.prompt or body.messages)
        most = body.max_completion_tokens or body.max_tokens or 16
        answer = _Stream(self) if body.stream else _Whole(self)
        self._sequence = answer.sequence = Sequence(
            answer=answer,
            blocks=block_hashes(prompt),
            input_tokens=max(1, len(prompt) // _TOKEN_BYTES),
            max_tokens=max(1, most),
            priority=body.priority,
        )
        self._engine.add(self._sequence)

    def end(self) -> None:
        """The answer is whole."""
        self._sequence = None

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def write_whole(self, status: int, content_type: bytes, body: bytes) -> None:
        """Send a whole answer."""
        self.write(
            b"HTTP/1.1 %d OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (status, content_type, len(body), body)
        )

    def usage(self, sequence: Sequence) -> bytes:
        """Return the usage of a request, as JSON."""
        return (
            b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
            b'"prompt_tokens_details":{"cached_tokens":%d}}'
            % (
                sequence.input_tokens, sequence.num_tokens,
                sequence.input_tokens + sequence.num_tokens, sequence.cached_tokens,
            )
        )  # fmt: skip


class _Whole(Answer):
    """An answer that is sent at its end."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.sequence: Sequence | None = None

    def on_token(self, number: int, *, is_last: bool) -> None:
        """See `Answer`."""
        if not is_last or self.sequence is None:
            return
        connection = self._connection
        connection.end()
        connection.write_whole(
            200, b"application/json",
            b'{"id":"simulated","object":"text_completion","choices":[{"index":0,"text":"%s",'
            b'"message":{"role":"assistant","content":"%s"},"finish_reason":"length"}],%s}'
            % (_WORD * number, _WORD * number, connection.usage(self.sequence)),
        )  # fmt: skip


_EVENT = (
    b'data: {"id":"simulated","choices":[{"index":0,"text":" token",'
    b'"delta":{"content":" token"},"finish_reason":null}]}\n\n'
)
_CHUNK = b"%x\r\n%s\r\n" % (len(_EVENT), _EVENT)
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class _Stream(Answer):
    """An answer that is sent token by token."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.sequence: Sequence | None = None

    def on_token(self, number: int, *, is_last: bool) -> None:
        """See `Answer`."""
        data = _HEAD + _CHUNK if number == 1 else _CHUNK
        if is_last and self.sequence is not None:
            self._connection.end()
            usage = self._connection.usage(self.sequence)
            last = b'data: {"id":"simulated","choices":[],%s}\n\ndata: [DONE]\n\n' % usage
            data += b"%x\r\n%s\r\n0\r\n\r\n" % (len(last), last)
        self._connection.write(data)

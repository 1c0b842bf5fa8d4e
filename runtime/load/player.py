"""Plays a trace against a gateway: each request at its moment, whatever became of those before.

An open loop: a gateway that is slow gets as many requests as one that is fast.

Does not know: who is behind the gateway, or what is made of the results (`results.py`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from ...traces.schema import RequestTrace
from .connection import LoadConnection
from .prompts import prompt_text
from .results import RESULT_DTYPE

# Limits of requests that have none, s.
_NO_LIMIT_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How a trace is played.

    Raises:
        ValueError: a number makes no sense.
    """

    host: str = "127.0.0.1"
    port: int
    model: str
    """What is asked for, whatever the trace says."""
    is_stream: bool = True
    max_tokens: int | None = None
    """Most output tokens of a request; None for as many as recorded."""
    max_input_tokens: int | None = None
    """Longest prompt; longer ones are cut."""
    patience_s: float = 30.0
    """Time that answers may take after the last request."""
    api_key: str | None = None

    def __post_init__(self) -> None:
        if not self.patience_s > 0:
            msg = f"patience_s must be above 0, got {self.patience_s}"
            raise ValueError(msg)


def request_bytes(trace: RequestTrace, config: LoadConfig) -> list[bytes]:
    """Return all requests of a trace, ready to be sent."""
    offsets, blocks = trace.prefix_offsets, trace.prefix_block_hashes
    key = f"authorization: Bearer {config.api_key}\r\n" if config.api_key else ""
    requests = []
    for row in range(len(trace)):
        tokens = int(trace.input_tokens[row])
        if config.max_input_tokens is not None:
            tokens = min(tokens, config.max_input_tokens)
        most = max(0, (tokens - 1) // trace.block_tokens)
        own = blocks[offsets[row] : offsets[row + 1]][:most]
        output = int(trace.output_tokens[row])
        if config.max_tokens is not None:
            output = min(output, config.max_tokens)
        body = msgspec.json.encode(
            {
                "model": config.model,
                "prompt": prompt_text(own, trace.block_tokens, tokens, row),
                "max_tokens": max(1, output),
                "stream": config.is_stream,
                **({"stream_options": {"include_usage": True}} if config.is_stream else {}),
            }
        )
        limits = f"x-slo-ttft-ms: {1e3 * _limit_s(trace.ttft_slo_s[row]):.3f}\r\n"
        limits += f"x-slo-tpot-ms: {1e3 * _limit_s(trace.tpot_slo_s[row]):.3f}\r\n"
        objective = "interactive" if int(trace.priority[row]) == 0 else "batch"
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {config.host}\r\n{key}{limits}"
            f"x-gateway-inference-objective: {objective}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


def _limit_s(value: float) -> float:
    return float(value) if value == value else _NO_LIMIT_S


class LoadPlayer:
    """Plays one trace once."""

    def __init__(self, trace: RequestTrace, config: LoadConfig) -> None:
        self._trace, self._config = trace, config
        self._requests = request_bytes(trace, config)
        self.results = np.zeros(len(trace), RESULT_DTYPE)
        """What clients saw so far, RESULT_DTYPE [N]."""
        self.results["first_s"] = self.results["end_s"] = np.nan
        self.results["replica"] = -1
        self.results["due_s"] = trace.arrival_s - (trace.arrival_s[0] if len(trace) else 0.0)
        self.results["weight"] = np.where(trace.priority == 0, 2.0, 1.0)
        for name in ("ttft_slo_s", "tpot_slo_s"):
            limits = np.asarray(getattr(trace, name), np.float64)
            self.results[name] = np.where(np.isfinite(limits), limits, _NO_LIMIT_S)
        self.replica_names: list[str] = []
        """Replicas in the order in which they first answered."""
        self._idle: list[LoadConnection] = []
        self._all: set[LoadConnection] = set()
        self._num_open = 0
        self._start_s = 0.0
        self._done = asyncio.Event()
        self._is_sent = False

    async def play(self, on_progress: Callable[[int], None] = lambda _: None) -> np.ndarray:
        """Send every request at its moment and wait for the answers; RESULT_DTYPE [N]."""
        self._start_s = time.monotonic() + 0.05
        connecting: set[asyncio.Task[None]] = set()
        for index, due_s in enumerate(self.results["due_s"]):
            wait_s = self._start_s + due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._num_open += 1
            connection = self._take_idle()
            if connection is not None:
                connection.send(index, self._requests[index])
            else:
                task = asyncio.create_task(self._connect(index))
                connecting.add(task)
                task.add_done_callback(connecting.discard)
            on_progress(index + 1)
        self._is_sent = True
        if self._num_open:
            try:
                async with asyncio.timeout(self._config.patience_s):
                    await self._done.wait()
            except TimeoutError:
                pass
        for connection in list(self._all):
            connection.close()
        await asyncio.sleep(0)
        return self.results

    def _take_idle(self) -> LoadConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection
        return None

    async def _connect(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: LoadConnection(self._on_end), self._config.host, self._config.port
            )
        except OSError:
            self._close_one()
            return
        self._all.add(connection)
        connection.send(index, self._requests[index])

    def _on_end(self, connection: LoadConnection, is_whole: bool) -> None:
        row = self.results[connection.index]
        row["first_s"] = connection.first_at_s - self._start_s
        row["end_s"] = connection.end_at_s - self._start_s
        row["status"] = connection.status
        row["output_tokens"] = connection.output_tokens
        row["is_whole"] = is_whole and connection.status == 200
        row["replica"] = self._replica(connection.replica)
        if connection.is_closed:
            self._all.discard(connection)
        else:
            self._idle.append(connection)
        self._close_one()

    def _close_one(self) -> None:
        self._num_open -= 1
        if self._is_sent and self._num_open == 0:
            self._done.set()

    def _replica(self, name: bytes) -> int:
        if not name:
            return -1
        text = name.decode("latin-1")
        if text not in self.replica_names:
            self.replica_names.append(text)
        return self.replica_names.index(text)


async def play(trace: RequestTrace, config: LoadConfig) -> np.ndarray:
    """Play a trace and return what its clients saw; RESULT_DTYPE [N]."""
    return await LoadPlayer(trace, config).play()

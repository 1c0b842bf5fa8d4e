"""Measures how long the iterations of a real engine take, from outside, in some seconds.

Prompts of two lengths give the time of a prompt token; answers alone and side by side give the time
of an iteration and of a sequence in it. Nothing else may run on the engine meanwhile.

Does not know: what engine it is.
"""

import asyncio
import secrets
import statistics
from dataclasses import dataclass

import msgspec

from ...env.measured_latency import MeasuredLatency
from ...traces.errors import TrimtabError
from ..engines.live_replica import LiveReplica
from ..load.connection import LoadConnection
from ..load.prompts import block_text

_ANSWER_S = 60.0


class MeasurementError(TrimtabError):
    """An engine cannot be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurePlan:
    """What is asked of an engine."""

    short_tokens: int = 32
    long_tokens: int = 416
    """Prompt lengths."""
    output_tokens: int = 48
    batch: int = 4
    """Answers side by side; the engine must hold as many."""
    repeats: int = 3


async def measure_engine(replica: LiveReplica, plan: MeasurePlan) -> MeasuredLatency:
    """Return the times of an idle engine.

    Raises:
        MeasurementError: it does not answer, or breaks off.
    """
    short, long = plan.short_tokens, plan.long_tokens
    await _ask(replica, [short], 2)
    ttft_short_s = await _least_ttft_s(replica, short, plan.repeats)
    ttft_long_s = await _least_ttft_s(replica, long, plan.repeats)
    alone_s = min([await _step_s(replica, 1, plan) for _ in range(plan.repeats)])
    beside_s = min([await _step_s(replica, plan.batch, plan) for _ in range(plan.repeats)])
    token_s = max(1e-7, (ttft_long_s - ttft_short_s) / (long - short))
    each_s = max(0.0, (beside_s - alone_s) / (plan.batch - 1))
    return MeasuredLatency(
        step_s=max(1e-6, alone_s - each_s),
        token_s=token_s,
        sequence_s=max(0.0, each_s - token_s),
    )


async def _least_ttft_s(replica: LiveReplica, tokens: int, repeats: int) -> float:
    times = [(await _ask(replica, [tokens], 1))[0][0] for _ in range(repeats)]
    return min(times)


async def _step_s(replica: LiveReplica, batch: int, plan: MeasurePlan) -> float:
    """Return the time between two tokens of answers side by side."""
    answers = await _ask(replica, [plan.short_tokens] * batch, plan.output_tokens)
    spans = [span_s / max(1, tokens - 1) for _, span_s, tokens in answers]
    return statistics.median(spans)


async def _ask(
    replica: LiveReplica, prompts: list[int], output_tokens: int
) -> list[tuple[float, float, int]]:
    """Ask side by side; return TTFT, time after it and tokens of each answer."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    open_requests = set(range(len(prompts)))

    def on_end(connection: LoadConnection, is_whole: bool) -> None:
        open_requests.discard(connection.index)
        if not done.done() and (not is_whole or not open_requests):
            done.set_result(is_whole)

    connections = []
    try:
        for _ in prompts:
            _, connection = await loop.create_connection(
                lambda: LoadConnection(on_end), replica.host, replica.port
            )
            connections.append(connection)
        began_s = loop.time()
        for index, (connection, tokens) in enumerate(zip(connections, prompts, strict=True)):
            connection.send(index, _request(replica, tokens, output_tokens))
        async with asyncio.timeout(_ANSWER_S):
            is_whole = await done
    except (OSError, TimeoutError) as error:
        msg = f"replica '{replica.name}' at {replica.url} cannot be measured: {error!r}"
        raise MeasurementError(msg) from error
    finally:
        for connection in connections:
            connection.close()
    statuses = sorted({connection.status for connection in connections})
    if not is_whole or statuses != [200]:
        msg = f"replica '{replica.name}' at {replica.url} cannot be measured: it answers {statuses}"
        raise MeasurementError(msg)
    return [
        (each.first_at_s - began_s, each.end_at_s - each.first_at_s, each.output_tokens)
        for each in connections
    ]


def _request(replica: LiveReplica, tokens: int, output_tokens: int) -> bytes:
    # A prompt that was never asked before: nothing of it is cached.
    prompt = f"{secrets.token_hex(4)} {block_text(secrets.randbits(60), tokens)}"
    body = msgspec.json.encode(
        {
            "model": replica.model, "prompt": prompt, "max_tokens": output_tokens, "stream": True,
            "stream_options": {"include_usage": True},
        }
    )  # fmt: skip
    key = f"authorization: Bearer {replica.api_key}\r\n" if replica.api_key else ""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {replica.host}\r\n{key}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body

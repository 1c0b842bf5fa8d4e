"""The trace context that a replica gets with a request."""

import asyncio

from gateway_stand import answer_whole, post, standing

from trimtab.runtime.tracing.trace_context import TraceContext, parse_trace_parent

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_replica_gets_the_clients_context_or_that_of_our_span() -> None:
    async def run() -> None:
        async with standing(answer_whole) as stand:
            await stand.exchange(post(headers=f"traceparent: {PARENT}\r\ntracestate: a=b\r\n"))
            assert f"traceparent: {PARENT}\r\n".encode() in stand.engines[0].heads[0]
            stand.gateway.trace_header = TraceContext().header
            await stand.exchange(post(headers=f"traceparent: {PARENT}\r\ntracestate: a=b\r\n"))
            await stand.exchange(post())
            for head in stand.engines[0].heads[1:]:
                (line,) = [each for each in head.split(b"\r\n") if each.startswith(b"traceparent")]
                assert parse_trace_parent(line.decode().removeprefix("traceparent: ")) is not None
                assert PARENT.encode() not in head
            assert b"tracestate: a=b" in stand.engines[0].heads[1]

    asyncio.run(run())

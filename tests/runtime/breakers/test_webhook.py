"""Alarms by webhook, against a server on loopback that is not always well."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
from aiohttp import web

from trimtab.agents.shield.alarm import Alarm, Severity
from trimtab.runtime.breakers.webhook import Drop, WebhookConfig, WebhookSink


def make_alarm(number: int) -> Alarm:
    return Alarm(
        name=f"alarm-{number}",
        severity=Severity.CRITICAL,
        place="zone eu-west",
        sentence="zone eu-west: down",
        at_s=float(number),
        value=0.25,
    )


class Listener:
    """A server that answers with one status after another, the last for ever; None hangs up."""

    def __init__(self, *statuses: int | None) -> None:
        self.bodies: list[dict] = []
        self.waits_s: list[float] = []
        self._statuses: Iterator[int | None] = iter(statuses)
        self._last: int | None = 200
        self.is_held = False
        self.is_over = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        if self.is_held:
            await self.is_over.wait()
        self._last = next(self._statuses, self._last)
        if self._last is None:
            request.transport.close()
            return web.Response()
        return web.Response(status=self._last)

    async def sleep(self, span_s: float) -> None:
        """No test waits."""
        self.waits_s.append(span_s)

    @property
    def names(self) -> list[list[str]]:
        return [[alarm["name"] for alarm in body["alarms"]] for body in self.bodies]


def run(
    listener: Listener, act: Callable[[WebhookSink], Awaitable[None] | None], **changes
) -> WebhookSink:
    """Let something happen to a webhook, close it, and return it."""

    async def main() -> WebhookSink:
        app = web.Application()
        app.router.add_post("/alarms", listener.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            config = WebhookConfig(url=f"http://127.0.0.1:{port}/alarms", **changes)
            async with WebhookSink(config, listener.sleep) as sink:
                happens = act(sink)
                if happens is not None:
                    await happens
        finally:
            listener.is_over.set()
            await runner.cleanup()
        return sink

    return asyncio.run(main())


def send(*numbers: int) -> Callable[[WebhookSink], None]:
    return lambda sink: sink.send([make_alarm(number) for number in numbers])


def test_alarms_arrive_in_order_as_json():
    listener = Listener(200)
    sink = run(listener, send(1, 2, 3))
    assert listener.names == [["alarm-1", "alarm-2", "alarm-3"]]
    assert listener.bodies[0]["alarms"][0] == make_alarm(1).as_dict()
    assert sink.num_delivered == 3
    assert sink.dropped == Counter()


def test_many_alarms_go_in_several_batches():
    listener = Listener(204)
    sink = run(listener, send(*range(5)), max_batch=2)
    assert [len(names) for names in listener.names] == [2, 2, 1]
    assert sink.num_delivered == 5


@pytest.mark.parametrize("failure", [500, 503, 429, 408, None])
def test_a_failure_is_tried_again_with_back_off(failure):
    listener = Listener(failure, failure, failure, 200)
    sink = run(listener, send(7), first_wait_s=0.5, max_wait_s=1.5)
    assert listener.names == [["alarm-7"]] * 4
    assert listener.waits_s == [0.5, 1.0, 1.5]
    assert sink.num_delivered == 1
    assert sink.dropped == Counter()


def test_after_the_last_attempt_a_batch_is_dropped_and_the_next_has_its_turn(caplog):
    listener = Listener(500, 500, 200)
    sink = run(listener, send(1, 2), max_batch=1, num_attempts=2)
    assert listener.names == [["alarm-1"], ["alarm-1"], ["alarm-2"]]
    assert sink.dropped == {Drop.FAILED: 1}
    assert sink.num_delivered == 1
    assert "1 alarms not delivered to http://127.0.0.1" in caplog.text
    assert "failed (answer 500)" in caplog.text


@pytest.mark.parametrize("status", [304, 400, 404])
def test_a_refusal_is_not_tried_again(status):
    listener = Listener(status)
    sink = run(listener, send(1))
    assert len(listener.bodies) == 1
    assert sink.dropped == {Drop.REFUSED: 1}


def test_an_answer_that_does_not_come_is_a_failure():
    listener = Listener()
    listener.is_held = True
    sink = run(listener, send(1), timeout_s=0.25, num_attempts=2)
    assert len(listener.bodies) == 2
    assert sink.dropped == {Drop.FAILED: 1}


def test_an_address_where_nobody_listens_is_a_failure():
    async def main() -> WebhookSink:
        listener = Listener()
        config = WebhookConfig(url="http://127.0.0.1:9/alarms", num_attempts=3)
        async with WebhookSink(config, listener.sleep) as sink:
            sink.send([make_alarm(1)])
        return sink

    assert asyncio.run(main()).dropped == {Drop.FAILED: 1}


def test_a_full_queue_drops_the_oldest_and_counts_them():
    listener = Listener(200)
    sink = run(listener, send(*range(10)), max_waiting=4)
    assert listener.names == [[f"alarm-{number}" for number in (6, 7, 8, 9)]]
    assert sink.dropped == {Drop.QUEUE_FULL: 6}


def test_what_waits_when_it_is_closed_is_counted():
    listener = Listener()
    listener.is_held = True
    sink = run(listener, send(1, 2, 3), max_batch=2, drain_s=0.05)
    assert sink.dropped == {Drop.CLOSED: 3}


def test_sending_goes_on_while_a_delivery_hangs():
    listener = Listener()
    listener.is_held = True

    async def act(sink: WebhookSink) -> None:
        sink.send([make_alarm(0)])
        while not listener.bodies:
            await asyncio.sleep(0)
        for number in range(1, 2001):
            sink.send([make_alarm(number)])

    sink = run(listener, act, max_waiting=500, drain_s=0.0)
    assert sink.dropped == {Drop.QUEUE_FULL: 1500, Drop.CLOSED: 501}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"url": "ftp://x"}, "url must begin with http:// or https://, got 'ftp://x'"),
        ({"max_waiting": 0}, r"must be at least 1, got \(0, 100, 5\)"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0, got 0.0"),
        ({"first_wait_s": -1.0}, "waits must be at least 0 s"),
    ],
)
def test_the_configuration_is_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        WebhookConfig(**({"url": "http://x"} | changes))

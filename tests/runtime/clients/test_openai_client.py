"""The `openai` package, which nobody here wrote, against the whole gateway."""

import asyncio

import pytest
from clients_stand import KEY, Stand, in_a_thread, standing

openai = pytest.importorskip("openai", reason="the package openai is not installed")

MESSAGES = [{"role": "user", "content": "why is the queue so long?"}]


def client_of(stand: Stand, **options: object) -> "openai.AsyncOpenAI":
    values: dict[str, object] = {"base_url": stand.url, "api_key": KEY, "max_retries": 0}
    return openai.AsyncOpenAI(**(values | options))


def test_chats_whole_and_streamed() -> None:
    async def run() -> None:
        async with standing() as stand, client_of(stand) as client:
            whole = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=5)
            assert whole.usage.completion_tokens == 5
            assert whole.choices[0].message.content == " token" * 5
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=6, stream=True
            )
            pieces = [event.choices[0].delta.content async for event in stream if event.choices]
            assert pieces == [" token"] * 6
            assert stand.dispatcher.totals.num_finished == 2
            assert stand.dispatcher.num_open == 0

    asyncio.run(run())


def test_completions_and_models() -> None:
    async def run() -> None:
        async with standing() as stand, client_of(stand) as client:
            answer = await client.completions.create(model="m", prompt="why", max_tokens=3)
            assert answer.choices[0].text == " token" * 3
            assert [model.id async for model in client.models.list()] == ["m"]
            raw = await client.completions.with_raw_response.create(
                model="m", prompt="why", max_tokens=1
            )
            assert raw.headers["x-trimtab-replica"]
            assert raw.headers["x-request-id"].startswith("req-")

    asyncio.run(run())


def test_an_abort_in_mid_stream_reaches_the_engine() -> None:
    async def run() -> None:
        async with standing(step_s=0.02) as stand, client_of(stand) as client:
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, max_tokens=10_000, stream=True
            )
            async for _ in stream:
                break
            assert sum(len(engine.batch.running) for engine in stand.engines) == 1
            await stream.close()
            async with asyncio.timeout(60):
                while any(engine.batch.running for engine in stand.engines):
                    await asyncio.sleep(0.01)
            assert stand.dispatcher.totals.num_aborted == 1

    asyncio.run(run())


def test_errors_become_the_packages_own_exceptions() -> None:
    async def run() -> None:
        async with standing() as stand:
            async with client_of(stand, api_key="wrong") as client:
                with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
                    await client.completions.create(model="m", prompt="why")
            async with client_of(stand) as client:
                with pytest.raises(openai.NotFoundError, match="other"):
                    await client.completions.create(model="other", prompt="why")
                with pytest.raises(openai.BadRequestError, match="max_tokens"):
                    await client.completions.create(model="m", prompt="why", max_tokens=-1)
                stand.dispatcher.set_emergency(shed_limits=1e-9)
                with pytest.raises(openai.RateLimitError) as caught:
                    await client.completions.create(model="m", prompt="why")
                assert caught.value.code == "rejected-saturated"
                assert caught.value.response.headers["retry-after"] == "1"
                for replica in range(3):
                    stand.dispatcher.set_available(replica, False, 1.0)
                with pytest.raises(openai.InternalServerError):
                    await client.completions.create(model="m", prompt="why")

    asyncio.run(run())


def test_a_deadline_of_the_request_is_kept() -> None:
    async def run() -> None:
        async with standing(step_s=0.05) as stand, client_of(stand) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.completions.create(
                    model="m", prompt="why", max_tokens=1000,
                    extra_headers={"x-request-timeout-ms": "100"},
                )  # fmt: skip
            assert caught.value.status_code == 504

    asyncio.run(run())


def test_the_blocking_client_works_as_well() -> None:
    with in_a_thread() as stand, openai.OpenAI(base_url=stand.url, api_key=KEY) as client:
        stream = client.completions.create(model="m", prompt="why", max_tokens=4, stream=True)
        assert [event.choices[0].text for event in stream if event.choices] == [" token"] * 4

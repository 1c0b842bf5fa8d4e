"""The engine without a model: batches on paper with known answers, and its HTTP."""

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from trimtab.runtime.simulated_engine.batch import Batch, EngineSpeed, Sequence
from trimtab.runtime.simulated_engine.server import SimulatedEngine, block_hashes
from trimtab.runtime.telemetry.probes.engine_page import EnginePage
from trimtab.runtime.telemetry.signals import Scope, signal_index


@dataclass
class Tokens:
    seen: list[int] = field(default_factory=list)
    is_whole: bool = False

    def on_token(self, number: int, *, is_last: bool) -> None:
        self.seen.append(number)
        self.is_whole = is_last


def make_sequence(input_tokens: int = 100, max_tokens: int = 3, **options: object) -> Sequence:
    values: dict[str, object] = {"blocks": ()}
    return Sequence(
        answer=Tokens(), input_tokens=input_tokens, max_tokens=max_tokens, **(values | options)
    )  # type: ignore[arg-type]


def test_a_request_takes_its_prefill_and_then_a_step_a_token() -> None:
    batch = Batch(EngineSpeed(step_s=0.01, prefill_token_s=1e-3, decode_seq_s=2e-3))
    sequence = make_sequence()
    batch.add(sequence)
    times = []
    while (time_s := batch.begin_iteration()) > 0:
        times.append(round(time_s, 6))
        batch.end_iteration()
    assert times == [0.11, 0.012, 0.012]
    assert sequence.answer.seen == [1, 2, 3]  # type: ignore[attr-defined]
    assert batch.num_finished == 1


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    batch = Batch(EngineSpeed(batch_tokens=50, step_s=0.0, prefill_token_s=1e-3, decode_seq_s=0.0))
    short, long = make_sequence(10, 10), make_sequence(100, 1)
    batch.add(short)
    batch.begin_iteration()
    batch.end_iteration()
    batch.add(long)
    assert batch.begin_iteration() == pytest.approx(0.049)
    assert long.left_tokens == 51


def test_slots_and_kv_bound_the_batch_and_urgent_ones_go_first() -> None:
    batch = Batch(EngineSpeed(max_num_seqs=2, kv_tokens=150))
    first, second = make_sequence(100), make_sequence(100)
    late, urgent = make_sequence(10, priority=5), make_sequence(10, priority=0)
    for sequence in (first, second, late, urgent):
        batch.add(sequence)
    batch.begin_iteration()
    assert batch.running == [first]
    assert list(batch.waiting) == [second, urgent, late]


def test_a_repeated_prompt_finds_its_blocks_but_computes_one_token() -> None:
    batch = Batch(EngineSpeed())
    blocks = tuple(range(4))
    for expected in (0, 48):
        sequence = make_sequence(64, 1, blocks=blocks)
        batch.add(sequence)
        batch.begin_iteration()
        batch.end_iteration()
        assert sequence.cached_tokens == expected


def test_a_request_that_is_gone_leaves_its_slot() -> None:
    batch = Batch(EngineSpeed(max_num_seqs=1))
    gone, next_one = make_sequence(), make_sequence()
    batch.add(gone)
    batch.begin_iteration()
    batch.add(next_one)
    batch.remove(gone)
    batch.end_iteration()
    batch.begin_iteration()
    assert batch.running == [next_one]
    assert gone.answer.seen == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "value"), [("max_num_seqs", 0), ("step_s", -1.0)])
def test_impossible_speeds_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        EngineSpeed(**{name: value})  # type: ignore[arg-type]


async def ask(port: int, path: str, body: dict[str, object] | None = None) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    answer = await reader.readuntil(b"\r\n\r\n")
    if b"chunked" in answer:
        rest = await reader.readuntil(b"0\r\n\r\n")
    else:
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        rest = await reader.readexactly(length)
    writer.close()
    return answer, rest


FAST = EngineSpeed(step_s=1e-4, prefill_token_s=0.0, decode_seq_s=0.0)


def test_it_answers_whole_and_in_events_and_counts_on_its_page() -> None:
    async def run() -> None:
        engine = SimulatedEngine(FAST, model="m")
        port = await engine.start()
        prompt = "word " * 60
        body: dict[str, object] = {"model": "m", "prompt": prompt, "max_tokens": 5}
        _, whole = await ask(port, "/v1/completions", body)
        usage = json.loads(whole)["usage"]
        assert usage["completion_tokens"] == 5
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        _, events = await ask(port, "/v1/chat/completions", {**body, "stream": True})
        assert events.count(b"data: ") == 7
        assert b'"completion_tokens":5' in events
        head, _ = await ask(port, "/v1/completions", {"max_tokens": "many"})
        assert b" 400 " in head
        _, page = await ask(port, "/metrics")
        row = EnginePage().read(page.decode(), 0.0)
        column = {
            name: row[signal_index(Scope.REPLICA, name)]
            for name in ("running_requests", "output_tokens", "kv_page_tokens", "kv_usage_frac")
        }
        assert column == {
            "running_requests": 0.0, "output_tokens": 10.0, "kv_page_tokens": 16.0,
            "kv_usage_frac": 0.0,
        }  # fmt: skip
        await engine.close()

    asyncio.run(run())


def test_a_client_that_goes_away_is_forgotten() -> None:
    async def run() -> None:
        engine = SimulatedEngine(EngineSpeed(step_s=0.01))
        port = await engine.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        content = json.dumps({"prompt": "x", "max_tokens": 1000}).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(content))
        writer.write(content)
        while not engine.batch.running:
            await asyncio.sleep(0.001)
        writer.transport.abort()
        while engine.batch.running or engine.num_aborted == 0:
            await asyncio.sleep(0.001)
        await engine.close()

    asyncio.run(run())


def test_prompts_that_begin_alike_share_blocks() -> None:
    one, two = block_hashes(b"a" * 200 + b"b" * 60), block_hashes(b"a" * 200 + b"c" * 60)
    assert len(one) == 4
    assert one[:3] == two[:3]
    assert one[3] != two[3]

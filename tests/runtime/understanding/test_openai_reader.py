"""What a gateway learns of a request from its body and headers."""

import json
from math import inf

import pytest
from understood import (
    CHAT,
    TEXT,
    FakeTenant,
    chat,
    end,
    facts_of,
    make_call,
    make_reader,
)  # fmt: skip

from trimtab.runtime.dispatcher.request import Ending
from trimtab.runtime.understanding.call_headers import Objective
from trimtab.runtime.understanding.openai_reader import OpenAiReader, ReaderConfig


@pytest.fixture(scope="module")
def reader() -> OpenAiReader:
    objectives = {"urgent": Objective(10, 4.0), "batch": Objective(-1, 0.5)}
    return make_reader(ReaderConfig(objectives=objectives))


def test_a_plain_chat_is_understood(reader: OpenAiReader) -> None:
    body = chat(("user", "Name three colours."), max_tokens=64, stream=True)
    reading = reader.read(make_call(body))
    facts = reading.facts
    assert reading.body is None
    assert (facts.request_id, facts.model, facts.model_index) == ("r-1", "llama", 0)
    assert (facts.tenant, facts.adapter, facts.priority, facts.weight) == ("acme", None, 0, 1.0)
    assert (facts.ttft_slo_s, facts.tpot_slo_s) == (2.0, inf)
    assert (facts.arrived_at_s, facts.deadline_at_s) == (10.0, inf)
    assert facts.is_stream
    assert facts.max_output_tokens == 64
    assert 5 <= facts.input_tokens <= 20
    assert 0.0 < facts.expected_output_tokens <= facts.output_tokens_p90 <= 64.0
    assert facts.session_hash != 0
    assert facts.blocks.size == 0  # shorter than one block


def test_the_name_is_rewritten_and_nothing_else(reader: OpenAiReader) -> None:
    raw = b'{ "messages" :[{"role":"user","content":"my model is \\"small\\""}],"model" : "small" }'
    body = reader.read(make_call(raw)).body
    assert body == raw.replace(b': "small" }', b': "/models/small.gguf" }')


def test_of_a_name_that_comes_twice_the_last_counts(reader: OpenAiReader) -> None:
    raw = b'{"model":"nobody","prompt":"Hi","mo\\u0064el":"small"}'
    reading = reader.read(make_call(raw, TEXT))
    assert reading.facts.model == "small"
    assert reading.body is not None
    assert json.loads(reading.body)["model"] == "/models/small.gguf"


def test_an_adapter_is_asked_for_by_its_own_name(reader: OpenAiReader) -> None:
    body = chat(("user", "x" * 600), model="sql")
    reading = reader.read(make_call(body))
    assert (reading.facts.adapter, reading.facts.model_index, reading.body) == ("sql", 0, None)
    bare = facts_of(reader, chat(("user", "x" * 600)))
    assert not set(bare.blocks.tolist()) & set(reading.facts.blocks.tolist())


@pytest.mark.parametrize(
    ("more", "most_tokens"),
    [
        ({}, 4096 - 1),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": None}, 4096 - 1),
        ({"max_tokens": 100_000}, 4096 - 1),
    ],
)
def test_limit_of_an_answer(reader: OpenAiReader, more: dict, most_tokens: int) -> None:
    facts = facts_of(reader, chat(("user", "Hi"), **more))
    assert facts.max_output_tokens <= most_tokens
    assert facts.max_output_tokens >= most_tokens - 20 * (most_tokens > 1000)


def test_ids_are_counted_not_estimated(reader: OpenAiReader) -> None:
    facts = facts_of(reader, {"model": "llama", "prompt": [5, 6, 7, 8]}, TEXT)
    assert facts.input_tokens == 4


@pytest.mark.parametrize("prefix", ["x-gateway-inference", "x-llm-d-inference"])
def test_objective_and_flow(reader: OpenAiReader, prefix: str) -> None:
    headers = {f"{prefix}-objective".encode(): b"batch", f"{prefix}-fairness-id".encode(): b"flow"}
    body = chat(("user", "Hi"))
    facts = facts_of(reader, body, headers=headers)
    assert (facts.priority, facts.weight, facts.tenant) == (1, 0.5, "acme")
    facts = facts_of(reader, body, headers=headers, tenant=FakeTenant(may_name_flow=True))
    assert facts.tenant == "flow"
    urgent = {f"{prefix}-objective".encode(): b"urgent"}
    facts = facts_of(reader, body, headers=urgent, tenant=FakeTenant(priority=1, weight=2.0))
    assert (facts.priority, facts.weight) == (0, 8.0)
    unknown = {f"{prefix}-objective".encode(): b"nobody"}
    assert facts_of(reader, body, headers=unknown, tenant=FakeTenant(priority=1)).priority == 1


def test_limits_and_trace_of_headers(reader: OpenAiReader) -> None:
    headers = {
        b"x-slo-ttft-ms": b"250",
        b"x-llm-d-slo-tpot-ms": b"40",
        b"x-request-timeout-ms": b"1500",
        b"traceparent": b"00-ab-cd-01",
    }
    facts = facts_of(reader, chat(("user", "Hi")), headers=headers)
    assert (facts.ttft_slo_s, facts.tpot_slo_s) == (0.25, 0.04)
    assert facts.deadline_at_s == pytest.approx(11.5)
    assert facts.trace_parent == "00-ab-cd-01"


def test_a_body_may_only_lower_its_priority(reader: OpenAiReader) -> None:
    assert facts_of(reader, chat(("user", "Hi"), priority=5)).priority == 1
    low = FakeTenant(priority=1)
    assert facts_of(reader, chat(("user", "Hi"), priority=-5), tenant=low).priority == 1


def test_turns_of_a_conversation_are_one_session(reader: OpenAiReader) -> None:
    first = [("system", "Be brief."), ("user", "Hello there, who are you?")]
    later = [*first, ("assistant", "I am a bot."), ("user", "And what do you do?")]
    other = [("system", "Be brief."), ("user", "Hello there, what is up?")]
    sessions = [facts_of(reader, chat(*turns)).session_hash for turns in (first, later, other)]
    assert sessions[0] == sessions[1] != sessions[2]
    tenant = FakeTenant(name="other")
    assert facts_of(reader, chat(*first), tenant=tenant).session_hash != sessions[0]


@pytest.mark.parametrize("name", ["user", "session_id", "prompt_cache_key"])
def test_a_named_session_binds_whatever_is_said(reader: OpenAiReader, name: str) -> None:
    one = facts_of(reader, chat(("user", "Hi"), **{name: "s-1"}))
    two = facts_of(reader, chat(("user", "Something else"), **{name: "s-1"}))
    by_header = facts_of(reader, chat(("user", "More")), headers={b"x-session-id": b"s-1"})
    assert one.session_hash == two.session_hash == by_header.session_hash


def test_hashes_are_the_same_in_every_process(reader: OpenAiReader) -> None:
    facts = facts_of(reader, chat(("user", "a" * 300), user="u"))
    assert facts.session_hash == 635684713685137414
    assert make_reader().read(make_call(chat(("user", "a" * 300)))).facts.blocks.tolist() == (
        facts.blocks.tolist()
    )


def test_lengths_are_learned_from_ends() -> None:
    reader = make_reader()
    body = chat(("user", "Summarise this."), max_tokens=1000)
    before = facts_of(reader, body)
    for _ in range(300):
        end(reader, facts_of(reader, body), 40)
    after = facts_of(reader, body)
    assert before.output_tokens_p90 > 200.0
    assert after.expected_output_tokens == pytest.approx(40.0, rel=0.25)
    assert 40.0 <= after.output_tokens_p90 <= 60.0


def test_answers_to_one_prompt_share_its_tokens() -> None:
    reader = make_reader()
    body = chat(("user", "Give me four."), n=4)
    for _ in range(200):
        end(reader, facts_of(reader, body), 160)
    facts = facts_of(reader, body)
    assert facts.num_choices == 4
    assert facts.expected_output_tokens == pytest.approx(40.0, rel=0.25)


@pytest.mark.parametrize("ending", [Ending.FAILED, Ending.REFUSED])
def test_what_its_replica_broke_off_teaches_nothing(ending: Ending) -> None:
    reader = make_reader()
    facts = facts_of(reader, chat(("user", "Hi")))
    end(reader, facts, 3, ending)
    assert reader.state.lengths["num_learned"][0] == 0


def test_tokens_are_learned_from_the_engines_counts() -> None:
    reader = make_reader()
    words = [
        "lorem",
        "ipsum",
        "dolor",
        "sit",
        "amet",
        "consectetur",
        "adipiscing",
        "elit",
        "sed",
        "do",
    ]
    for k in range(400):
        text = " ".join(words[(k * i + i) % len(words)] for i in range(20 + k % 300))
        facts = facts_of(reader, {"model": "llama", "prompt": text}, TEXT)
        end(reader, facts, 5, input_tokens=2 * len(text.split()))  # two tokens a word
    text = " ".join(words * 20)
    facts = facts_of(reader, {"model": "llama", "prompt": text}, TEXT)
    assert facts.input_tokens == pytest.approx(400, rel=0.05)
    assert facts.block_tokens == pytest.approx(400 * 256 / len(text), rel=0.1)
    chat_facts = facts_of(reader, chat(("user", text)), CHAT)
    assert chat_facts.input_tokens < 380  # of chats nothing was learned

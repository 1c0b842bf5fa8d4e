"""Two prompts share the blocks of what they have in common, and no more."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from understood import TEXT, FakeTenant, chat, facts_of, make_reader

from trimtab.runtime.understanding.openai_reader import OpenAiReader, ReaderConfig
from trimtab.runtime.understanding.prompt_kernel import (
    BLOCK_BYTES,
    count_traits,
    hash_blocks,
    session_end,
)
from trimtab.runtime.understanding.token_blocks import adapter_seed, token_block_hashes
from trimtab.runtime.understanding.tokenized_prompts import PromptTokens, TokenizerFile


@pytest.fixture(scope="module")
def reader() -> OpenAiReader:
    return make_reader()


def blocks_of(data: bytes, seed: int = 1) -> list[int]:
    blocks = np.empty(len(data) // BLOCK_BYTES, np.uint64)
    hash_blocks(np.frombuffer(data, np.uint8), np.uint64(seed), blocks)
    return blocks.tolist()


@settings(max_examples=60)
@given(st.binary(max_size=1200), st.binary(max_size=600), st.binary(max_size=600))
def test_blocks_are_shared_as_far_as_bytes_are(common: bytes, one: bytes, two: bytes) -> None:
    first, second = common + one, common + two
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    ours, theirs = blocks_of(first), blocks_of(second)
    num_shared = same // BLOCK_BYTES
    assert ours[:num_shared] == theirs[:num_shared]
    assert not set(ours[num_shared:]) & set(theirs[num_shared:])


def test_a_hash_tells_where_its_block_stands() -> None:
    blocks = blocks_of(b"a" * BLOCK_BYTES * 5)
    assert len(set(blocks)) == 5
    assert not set(blocks) & set(blocks_of(b"a" * BLOCK_BYTES * 5, seed=2))


def test_every_bit_of_a_block_counts() -> None:
    block = bytearray(range(256))
    seen = {blocks_of(bytes(block))[0]}
    for place in range(256):
        for bit in (0, 7):
            block[place] ^= 1 << bit
            seen.add(blocks_of(bytes(block))[0])
            block[place] ^= 1 << bit
    assert len(seen) == 1 + 512


def test_messages_that_begin_alike_share_blocks(reader: OpenAiReader) -> None:
    start = [("system", "You answer questions on our shop. " * 40)]
    one = facts_of(reader, chat(*start, ("user", "Where is my parcel?"), max_tokens=5))
    two = facts_of(reader, {"stream": True, **chat(*start, ("user", "Can I pay by card?"))})
    assert one.blocks.size == two.blocks.size >= 5
    assert one.blocks.tolist()[:-1] == two.blocks.tolist()[:-1]
    assert one.input_tokens // one.block_tokens in (one.blocks.size, one.blocks.size + 1)


def test_tools_are_part_of_the_prompt(reader: OpenAiReader) -> None:
    tools = [{"type": "function", "function": {"name": "find", "description": "x" * 300}}]
    start = ("user", "Where is my parcel? " * 40)
    bare = facts_of(reader, chat(start))
    with_tools = facts_of(reader, chat(start, tools=tools))
    assert with_tools.input_tokens > bare.input_tokens + 20
    assert not set(bare.blocks.tolist()) & set(with_tools.blocks.tolist())
    assert bare.session_hash == with_tools.session_hash
    assert facts_of(reader, chat(start, tools=None)).blocks.tolist() == bare.blocks.tolist()


def test_tenants_share_blocks_only_where_they_may(reader: OpenAiReader) -> None:
    body = chat(("user", "x" * 2000))
    other = FakeTenant(name="other")
    ours, theirs = facts_of(reader, body), facts_of(reader, body, tenant=other)
    assert not set(ours.blocks.tolist()) & set(theirs.blocks.tolist())
    shared = make_reader(ReaderConfig(isolates_tenants=False))
    ours, theirs = facts_of(shared, body), facts_of(shared, body, tenant=other)
    assert ours.blocks.tolist() == theirs.blocks.tolist()


@pytest.mark.parametrize("num_bytes", [9, 16, 200, 700])
@pytest.mark.parametrize("brace", [None, 0, 3, 7, 8, 15, 40])
def test_a_session_ends_with_the_first_message(num_bytes: int, brace: int | None) -> None:
    text = bytearray(b"x" * num_bytes)
    if brace is not None and brace < num_bytes:
        text[brace] = ord("}")
    data = b'[{"role":"user"' + text
    expected = data.find(b"}") if b"}" in data else min(len(data), data.find(b'"user"') + 512)
    assert session_end(np.frombuffer(data, np.uint8)) == expected


@settings(max_examples=40)
@given(st.text(min_size=8, max_size=300).map(lambda text: text.encode()))
def test_bytes_are_counted_by_kind(data: bytes) -> None:
    whole = data[: len(data) // 8 * 8]  # the rest is taken to be alike
    traits = np.empty(8)
    count_traits(np.frombuffer(whole, np.uint8), traits)
    letters = sum(chr(c).isalpha() for c in whole if c < 128)
    digits = sum(chr(c).isdigit() for c in whole if c < 128)
    printable = sum(33 <= c < 127 for c in whole)
    expected = [
        *(letters, digits, printable - letters - digits),
        *(sum(c >= 128 for c in whole), whole.count(b"\\"), whole.count(b"{")),
    ]
    assert traits[2:] == pytest.approx(expected)


def test_a_long_prompt_is_counted_from_samples() -> None:
    data = (b"Some words, 12 of them {here}. " * 4000)[:100_000]
    traits = np.empty(8)
    count_traits(np.frombuffer(data, np.uint8), traits)
    assert traits[1] == pytest.approx(4000 * 5 * 100_000 / 124_000, rel=0.02)
    assert traits[7] == pytest.approx(4000 * 100_000 / 124_000, rel=0.02)


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text: str) -> list[int]:
        return [hash(word) & 0xFFFF for word in text.split()]


def test_a_tokenizer_counts_and_cuts_blocks() -> None:
    reader = make_reader(tokenizers={0: PromptTokens(Words(), block_tokens=4)})
    facts = facts_of(reader, {"model": "llama", "prompt": "one two three four five"}, TEXT)
    assert (facts.input_tokens, facts.block_tokens, facts.blocks.size) == (5, 4, 1)
    ids = np.array(Words().encode("one two three four five"), np.int64)
    assert facts.blocks.tolist() == token_block_hashes(ids, 4).tolist()  # as KV events name them
    lora = facts_of(reader, {"model": "sql", "prompt": "one two three four five"}, TEXT)
    assert lora.blocks.tolist() == token_block_hashes(ids, 4, adapter_seed("sql")).tolist()
    assert facts_of(reader, chat(("user", "one two"))).input_tokens > 2  # no template: estimated
    render = PromptTokens(Words(), render=lambda messages, tools: messages[0]["content"])
    reader = make_reader(tokenizers={0: render})
    assert facts_of(reader, chat(("user", "one two"))).input_tokens == 2
    small = {"model": "small", "prompt": "one two three four five"}
    assert facts_of(reader, small, TEXT).input_tokens != 5


def test_a_tokenizer_file(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "one": 1, "two": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    assert TokenizerFile(tmp_path / "tokenizer.json").encode("two one nine") == [2, 1, 0]

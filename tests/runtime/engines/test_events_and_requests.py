"""What an engine says that it holds is found again by the request that asks for it."""

import json

import numpy as np
import pytest
from kv_payloads import payload_of, stored

from trimtab.runtime.dispatcher.prefix_index import PrefixIndex
from trimtab.runtime.engines.block_index import EngineBlockIndex
from trimtab.runtime.engines.kv_stream import KvStream
from trimtab.runtime.gateway.tenants import Tenant
from trimtab.runtime.understanding.openai_reader import OpenAiReader, ReaderConfig
from trimtab.runtime.understanding.reader import Call
from trimtab.runtime.understanding.served_models import ServedModel
from trimtab.runtime.understanding.token_blocks import adapter_seed
from trimtab.runtime.understanding.tokenized_prompts import PromptTokens

SEED = 77
MODELS = (
    ServedModel(name="tiny", model_index=0, engine_name="tiny"),
    ServedModel(name="sql", model_index=0, engine_name="sql", adapter="sql"),
)


class Letters:
    """A tokenizer with one token a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


@pytest.mark.parametrize("engine_tokens", [1, 8, 32], ids=lambda n: f"pages of {n}")
@pytest.mark.parametrize("name", ["tiny", "sql"])
def test_a_request_finds_what_events_told(engine_tokens: int, name: str) -> None:
    config = ReaderConfig(isolates_tenants=False, seed=SEED)
    tokenizers = {0: PromptTokens(Letters(), block_tokens=16)}
    reader = OpenAiReader(MODELS, config, tokenizers=tokenizers)
    prefixes = PrefixIndex([1000, 1000])
    index = EngineBlockIndex(
        prefixes, block_tokens=16, seed_of=lambda _, adapter: adapter_seed(adapter)
    )
    prompt = "Route this request to the replica that holds it. " * 4
    ids = [ord(letter) for letter in prompt][: len(prompt) // 32 * 32]
    hashes = list(range(1, 1 + len(ids) // engine_tokens))
    lora = None if name == "tiny" else name
    event = stored(hashes, None, ids, engine_tokens, lora_name=lora)
    KvStream(1, index).take(0, payload_of(event))
    body = json.dumps({"model": name, "prompt": prompt + "And more."}).encode()
    facts = reader.read(Call("/v1/completions", {}, body, Tenant(name="t"), "r-1", 0.0)).facts
    assert facts.block_tokens == 16
    assert (prefixes.match(facts.blocks) * 16).tolist() == [0, len(ids)]
    other = json.dumps({"model": "sql" if name == "tiny" else "tiny", "prompt": prompt}).encode()
    facts = reader.read(Call("/v1/completions", {}, other, Tenant(name="t"), "r-2", 0.0)).facts
    assert not np.any(prefixes.match(facts.blocks))

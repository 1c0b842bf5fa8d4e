"""Understands requests of OpenAI's completion endpoints, and learns from how they end.

One call reads a body once (`openai_body`), its headers (`call_headers`) and, compiled, its prompt
(`reading_kernel`). Nothing of a prompt is kept but hashes and counts.

Does not know: connections, replicas, or which of them a request goes to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...agents.output_length_kernel import AT_LIMIT, GIVEN_UP, WHOLE
from ...agents.prompt_clusters import PromptEmbedder
from ..dispatcher.request import (
    BlockHashes,
    Ending,
    Placement,
    Refusal,
    RequestEnd,
    RequestFacts,
)
from . import faults
from .call_headers import Objective
from .learned_state import LearnedState
from .openai_body import OpenAiBody, check_numbers, decode_body
from .prompt_kernel import BLOCK_BYTES, distance
from .raw_prompt import json_type, prompt_bytes, spliced
from .reader import Call, Reading
from .reading_kernel import NUM_NOTES, learn_end, understand
from .sender import Sender, sender_of
from .served_models import KnownName, NameTable, ServedModel
from .stable_hashes import StableHashes
from .token_blocks import adapter_seed, token_block_hashes
from .token_estimate import CHAT, NUM_KINDS, TEXT
from .tokenized_prompts import PromptTokens, given_ids

# Share of a prompt's estimated length by which it may be too long before it is refused for that:
# the engine, which counts, refuses the rest.
_ESTIMATE_SLACK_FRAC = 0.3
_63_BITS = 0x7FFFFFFFFFFFFFFF
_OPENING_BRACKET = ord("[")
# What the end of a request says of its answer; others say nothing.
_CUT = {Ending.FINISHED: WHOLE, Ending.ABORTED: GIVEN_UP, Ending.TIMED_OUT: GIVEN_UP}


Understood = tuple[int, int, int, int, float, float]
"""Hash of the session, input tokens, cluster, most output tokens, their mean, 90 % quantile."""


class ReadFacts(RequestFacts, kw_only=True, gc=False):
    """Facts of a request, with what is needed to learn from its end."""

    notes: NDArray[np.uint64]
    """Keys of its histograms and bits of its prompt's traits (`reading_kernel.NUM_NOTES`)."""
    estimate_row: int
    """Of `LearnedState.tokens`: the weights that its tokens were estimated with."""
    num_choices: int = 1
    """Answers that it asks for; lengths in the facts are of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig:
    """How requests are understood."""

    objectives: Mapping[str, Objective] = field(default_factory=dict)
    """What requests that name an objective are worth, by its name."""
    isolates_tenants: bool = True
    """Equal prompts of two tenants share no blocks; False where their caches are one.

    Blocks of token ids are called as KV events call them, which know no tenants.
    """
    seed: int = 0
    """Mixed into all hashes of prompts: a secret one where a tenant might forge equal hashes."""


_DEFAULT_CONFIG = ReaderConfig()


@cache
def _load_compiled() -> None:
    """Compile, or load, what a request's path calls, so that no request waits for it."""
    state = LearnedState.new(1)
    notes = np.zeros(NUM_NOTES + 1, np.uint64)
    understand(
        b" " * BLOCK_BYTES, notes, 0, (0, 0, -1, 0, 1, False, 0), (0, 0, 0), *state.addresses()[:1]
    )
    learn_end(notes, 1.0, 1.0, WHOLE, 1.0, *state.addresses()[:1])
    distance(notes.view(np.uint8), notes.view(np.uint8))


class OpenAiReader:
    """Implements `RequestReader` for `/v1/completions` and `/v1/chat/completions`."""

    def __init__(
        self,
        models: Iterable[ServedModel],
        config: ReaderConfig = _DEFAULT_CONFIG,
        *,
        state: LearnedState | None = None,
        tokenizers: Mapping[int, PromptTokens] | None = None,
        embedder: PromptEmbedder | None = None,
    ) -> None:
        """Serve the names of `models`; `tokenizers` by model count prompts instead of estimating.

        Both `tokenizers` and `embedder` take their time on the path of every request.
        """
        self._names = NameTable(models)
        self._config = config
        self._seed = config.seed & _63_BITS
        self.state = state or LearnedState.new(self._names.num_models)
        self._addresses = self.state.addresses()
        self._tokenizers = dict(tokenizers or {})
        self._embedder = embedder
        self._hash = StableHashes()
        _load_compiled()

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Names that are served."""
        return self._names.models

    def recall(self, path: Path) -> None:
        """Go on with what was saved of `state`.

        Raises: ConfigError if the file is not of this kind, or of another number of models.
        """
        self.state = LearnedState.load(path, self._names.num_models)
        self._addresses = self.state.addresses()

    def read(self, call: Call) -> Reading:
        """Return what a request asks for.

        Raises: RequestFault.
        """
        body = decode_body(call.body)
        known = self._known(body.model, call)
        check_numbers(body)
        facts = self._facts(call, body, known)
        if known.rewritten is None:
            return Reading(facts)
        return Reading(facts, spliced(call.body, body.model, known.rewritten))

    def _known(self, written: msgspec.Raw, call: Call) -> KnownName:
        """Return the served name that a body asks for.

        Raises: RequestFault if there is none, or none for this tenant.
        """
        name = bytes(written)
        if not name:
            raise faults.missing(param="model")
        try:
            known = self._names.find(name)
        except msgspec.DecodeError:
            got = json_type(name)
            raise faults.wrong_type(param="model", expected="a string", got=got) from None
        allowed = call.tenant.models
        if known is None or (allowed is not None and known.model.name not in allowed):
            raise faults.unknown_model(msgspec.json.decode(name, type=str))
        return known

    def _facts(self, call: Call, body: OpenAiBody, known: KnownName) -> ReadFacts:
        """Return the facts of a request whose model is known.

        Raises: RequestFault.
        """
        sender = sender_of(call, body, self._config.objectives, self._hash)
        is_chat = "chat" in call.path
        model = known.model
        row = model.model_index * NUM_KINDS + (CHAT if is_chat else TEXT)
        found, notes, blocks, block_tokens = self._prompt(body, known, sender, row, is_chat)
        session_hash, tokens, cluster, most_tokens, mean, p90 = found
        return ReadFacts(
            request_id=call.request_id,
            model=model.name,
            model_index=model.model_index,
            tenant=sender.tenant,
            adapter=model.adapter,
            priority=sender.priority,
            session_hash=session_hash,
            input_tokens=tokens,
            max_output_tokens=most_tokens,
            expected_output_tokens=mean,
            output_tokens_p90=p90,
            cluster=cluster,
            ttft_slo_s=sender.ttft_slo_s,
            tpot_slo_s=sender.tpot_slo_s,
            weight=sender.weight,
            is_stream=body.stream is True,
            is_chat="chat" in call.path,
            blocks=blocks,
            block_tokens=block_tokens,
            arrived_at_s=call.arrived_at_s,
            deadline_at_s=sender.deadline_at_s,
            trace_parent=sender.trace_parent,
            notes=notes,
            estimate_row=row,
            num_choices=body.n or 1,
        )

    def _prompt(
        self, body: OpenAiBody, known: KnownName, sender: Sender, row: int, is_chat: bool
    ) -> tuple[Understood, NDArray[np.uint64], BlockHashes, int]:
        """Return what a prompt tells: as `understand`; notes; blocks; tokens of a block.

        Raises: RequestFault for none, for a wrong type, and for one that nobody has room for.
        """
        raw, first = prompt_bytes(body, is_chat=is_chat)
        model = known.model
        seed = known.seed ^ self._seed
        if self._config.isolates_tenants:
            seed ^= sender.tenant_hash
        exact = None
        if not is_chat or self._tokenizers:
            exact = self._tokenized(body, model.model_index, is_chat=is_chat)
        counted = 0 if exact is None else exact[0].size
        cluster = -1 if self._embedder is None else self._embedder.cluster(raw)
        limit, is_greedy = body.limit(), body.temperature == 0.0
        notes = np.empty(NUM_NOTES + len(raw) // BLOCK_BYTES, np.uint64)
        given = sender.session_hash, counted, cluster, limit, model.context_tokens, is_greedy, first
        who = known.seed, sender.tenant_hash, sender.application_hash
        found: Understood = understand(raw, notes, seed, given, who, self._addresses[row])
        tokens = found[1]
        if tokens >= model.context_tokens and (
            counted or tokens >= (1.0 + _ESTIMATE_SLACK_FRAC) * model.context_tokens
        ):
            param = "messages" if is_chat else "prompt"
            raise faults.too_long(model.context_tokens, tokens, param)
        if exact is not None and exact[1] > 0:
            blocks = token_block_hashes(exact[0], exact[1], adapter_seed(model.adapter))
            return found, notes, blocks, exact[1]
        return found, notes, notes[NUM_NOTES:], int(BLOCK_BYTES * tokens / len(raw) + 0.5) or 1

    def _tokenized(
        self, body: OpenAiBody, model_index: int, *, is_chat: bool
    ) -> tuple[NDArray[np.int64], int] | None:
        """Return (token ids, tokens of a block) of a prompt, None if only bytes are known.

        Blocks of 0 tokens stand for those of bytes.
        """
        tokens = self._tokenizers.get(model_index)
        raw = bytes(body.messages if is_chat else body.prompt)
        if not is_chat and raw[0] == _OPENING_BRACKET:
            ids = given_ids(raw)
        elif tokens is None:
            return None
        else:
            ids = tokens.ids(raw, bytes(body.tools), is_chat=is_chat)
        if ids is None:
            return None
        return ids, 0 if tokens is None else tokens.block_tokens

    def on_placed(self, placement: Placement) -> None:
        """Nothing is learned from where a request went."""

    def on_refused(self, facts: RequestFacts, refusal: Refusal, now_s: float) -> None:
        """Nothing is learned from a request that was refused."""

    def on_ended(self, placement: Placement, end: RequestEnd) -> None:
        """Learn from the tokens of a request that has ended, as its engine counted them."""
        facts = placement.facts
        if not isinstance(facts, ReadFacts):
            return
        cut = _CUT.get(end.ending)
        tokens = 0.0 if cut is None else end.output_tokens / facts.num_choices
        if cut == WHOLE and tokens >= facts.max_output_tokens:
            cut = AT_LIMIT
        learn_end(
            facts.notes, float(end.input_tokens or 0), tokens, cut or WHOLE,
            float(facts.max_output_tokens), self._addresses[facts.estimate_row],
        )  # fmt: skip

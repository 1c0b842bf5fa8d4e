"""Exact prefix caches: prompts counted by a tokenizer, and engines that tell what they hold.

Both are needed: an engine names its blocks by token ids, so a request finds them only by its own.

Does not know: requests, or how events travel.
"""

from collections.abc import Sequence
from pathlib import Path

from ...traces.errors import ConfigError, MissingExtraError
from ..dispatcher.prefix_index import PrefixIndex
from ..engines.block_index import EngineBlockIndex
from ..engines.kv_subscriber import KvSubscriber, kv_sources
from ..engines.live_replica import LiveReplica
from ..understanding.call_headers import Objective
from ..understanding.tokenized_prompts import PromptTokens

BLOCK_TOKENS = 16
"""Tokens of a block of the index: vLLM's own block size by default."""
OBJECTIVES = {
    "interactive": Objective(priority=0, weight=2.0),
    "batch": Objective(priority=-1, weight=1.0),
}
"""Objectives that requests may name in a header."""


def prompt_tokens(path: Path) -> PromptTokens:
    """Return the tokenizer of a `tokenizer.json`.

    Raises:
        MissingExtraError: the package `tokenizers` is not installed.
        ConfigError: the file is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        msg = "counting prompts needs the package tokenizers; install trimtab[tokenizer]"
        raise MissingExtraError(msg) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        msg = f"tokenizer file '{path}' cannot be read: {error}; give a tokenizer.json"
        raise ConfigError(msg) from error
    return PromptTokens(_Ids(tokenizer), block_tokens=BLOCK_TOKENS)


class _Ids:
    """A tokenizer that gives ids alone."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self._tokenizer.encode(text).ids  # type: ignore[attr-defined]
        return ids


def kv_subscriber(replicas: Sequence[LiveReplica], index: PrefixIndex) -> KvSubscriber | None:
    """Return who hears the KV events of a fleet; None if no replica publishes any."""
    sources = kv_sources(replicas)
    if not sources:
        return None
    return KvSubscriber(sources, EngineBlockIndex(index, block_tokens=BLOCK_TOKENS))

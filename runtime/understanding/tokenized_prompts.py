"""Prompts as token ids: exact lengths, and what blocks are cut from as engines cut them.

Counting takes far longer than estimating (`docs/understanding.md`), so it is off unless a tokenizer
is given: `pip install trimtab[tokenizer]`.

Does not know: requests, or how blocks are hashed (`token_blocks.py`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...traces.errors import MissingExtraError


class Tokenizer(Protocol):
    """Turns text into token ids."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a text, with what the model wants before and behind it."""
        ...


class TokenizerFile:
    """A tokenizer from a `tokenizer.json` file.

    Raises: MissingExtraError without the package `tokenizers`.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError as error:
            msg = "reading a tokenizer needs the package tokenizers; pip install trimtab[tokenizer]"
            raise MissingExtraError(msg) from error
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> Sequence[int]:
        """Return the ids of a text."""
        ids: Sequence[int] = self._tokenizer.encode(text).ids
        return ids


class PromptTokens:
    """Token ids of the prompts of one model.

    `render` makes the text of a chat from its messages and tools, as the model's template has it;
    without it chats are estimated.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        block_tokens: int = 16,
        render: Callable[[Any, Any], str] | None = None,
    ) -> None:
        if block_tokens < 1:
            msg = f"block_tokens must be at least 1, got {block_tokens}"
            raise ValueError(msg)
        self._tokenizer = tokenizer
        self._render = render
        self.block_tokens = block_tokens

    def ids(self, raw: bytes, tools: bytes, *, is_chat: bool) -> NDArray[np.int64] | None:
        """Return the ids of a raw prompt or raw messages, None if they cannot be told."""
        prompt = msgspec.json.decode(raw)
        if is_chat:
            if self._render is None:
                return None
            prompt = self._render(prompt, msgspec.json.decode(tools) if tools else None)
        return (
            np.array(self._tokenizer.encode(prompt), np.int64) if isinstance(prompt, str) else None
        )


def given_ids(raw: bytes) -> NDArray[np.int64] | None:
    """Return the token ids of a prompt that is an array of them, None if it is something else."""
    try:
        return np.array(msgspec.json.decode(raw, type=list[int]), np.int64)
    except (msgspec.DecodeError, OverflowError):
        return None

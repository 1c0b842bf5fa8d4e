"""Prompts for the requests of a trace: as long as recorded, equal where their blocks are equal.

A block's words follow from its hash alone, so two requests that share blocks begin with the same
text, and an engine's prefix cache finds what the trace says it should.

Does not know: engines, or how a prompt is sent.
"""

from functools import lru_cache

import numpy as np

# Words that are one token each for the tiny model, and one or two for most others.
_WORD_TEXT = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do how"
)
_WORDS = tuple(_WORD_TEXT.split())


@lru_cache(maxsize=65536)
def block_text(block_hash: int, num_words: int) -> str:
    """Return the words of a block."""
    chosen = np.random.default_rng(block_hash).integers(len(_WORDS), size=num_words)
    return " ".join(_WORDS[i] for i in chosen)


def prompt_text(blocks: np.ndarray, block_tokens: int, input_tokens: int, own_seed: int) -> str:
    """Return a prompt of about `input_tokens` tokens that begins with its blocks.

    Shapes: `blocks` uint64 [n]; what is beyond them is drawn from the request's own seed.
    """
    parts = [block_text(int(block), block_tokens) for block in blocks]
    num_left = input_tokens - len(parts) * block_tokens
    if num_left > 0:
        parts.append(block_text(own_seed + (1 << 64), num_left))
    return " ".join(parts)

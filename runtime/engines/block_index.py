"""Turns the blocks that engines name by their own hashes into ours, and keeps a prefix index.

An engine's hashes mean nothing to others, so a block is named anew by the chain over its token ids
(`understanding/token_blocks.py`). The chain does not depend on where blocks end: engines whose
blocks are smaller or larger than the fleet's are understood, and a fleet's block is held as soon as
the engine's block that ends it is.

What is not sure is not believed: a block whose parent is unknown, whose content is more than its
tokens, or which lies in a tier below the GPU stays out, and is counted.

Does not know: how events come (`kv_subscriber.py`), or how the index finds a prefix.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..dispatcher.request import BlockHashes
from ..understanding.token_blocks import adapter_seed, token_block_hashes
from .kv_events import AllCleared, BlockHash, BlocksRemoved, BlocksStored, KvEvent

MAX_BLOCKS: Final = 1 << 20
"""Blocks of one engine that are remembered, about 200 bytes each."""

# Tier names of vLLM and SGLang for what a prompt finds at once; nothing means the same.
_NEAR_MEDIA: Final = frozenset({None, "GPU"})
# A prompt's prefix is found where these hold it; a window or a state says too little.
_PREFIX_KINDS: Final = frozenset(
    {None, "full_attention", "mla_attention", "sink_full_attention", "unknown"}
)


SeedOf = Callable[[int, str | None], int | np.uint64]
"""Returns where the chain of a prompt begins, by replica and adapter."""


class HolderIndex(Protocol):
    """Who holds which blocks, by our own hashes; the dispatcher's `PrefixIndex`."""

    def set_exact(self, replica: int, is_exact: bool) -> None:
        """Say whether a replica's engine tells what it holds."""
        ...

    def store(self, replica: int, blocks: BlockHashes) -> None:
        """Note that a replica holds blocks, in the order of the prompt."""
        ...

    def remove(self, replica: int, blocks: BlockHashes) -> int:
        """Note that a replica holds blocks no more."""
        ...

    def clear(self, replica: int) -> None:
        """Note that a replica holds nothing."""
        ...


@dataclass(slots=True)
class BlockCounts:
    """What became of the blocks that engines named."""

    stored: int = 0
    removed: int = 0
    clears: int = 0
    orphans: int = 0
    """Their parent is not known: what came before was missed."""
    salted: int = 0
    """More than their tokens makes them what they are."""
    elsewhere: int = 0
    """In a tier below the GPU, or of layers that do not hold a prefix."""
    unknown_removed: int = 0
    """Removed, and not known to have been held."""
    over_capacity: int = 0
    """Not remembered, as the engine named too many."""


_Block = tuple[int, int, tuple[int, ...] | None]
"""One block of an engine, by our chain: the chain's state at its end, the tokens from the prompt's
beginning to there, and the blocks of the fleet's size that end in it; None for one that ends where
it does (most do, and a tuple without tuples in it is nothing to the garbage collector)."""


def _adapter_seed(replica: int, adapter: str | None) -> np.uint64:
    return adapter_seed(adapter)


class EngineBlockIndex:
    """The blocks of several engines. Threads may call it."""

    def __init__(
        self,
        holders: HolderIndex,
        *,
        block_tokens: int,
        max_blocks: int = MAX_BLOCKS,
        seed_of: SeedOf = _adapter_seed,
    ) -> None:
        """`block_tokens` and `seed_of` say what a request's `blocks` are made of.

        Raises: ValueError if a size is below 1.
        """
        if min(block_tokens, max_blocks) < 1:
            msg = f"sizes must be at least 1: block_tokens {block_tokens}, max_blocks {max_blocks}"
            raise ValueError(msg)
        self._holders = holders
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._seed_of = seed_of
        self._blocks: dict[int, dict[BlockHash, _Block]] = {}
        self._far_groups: dict[int, set[int]] = {}
        self._lock = threading.Lock()
        self.counts = BlockCounts()

    def apply(self, replica: int, event: KvEvent) -> None:
        """Take one event of a replica's engine."""
        with self._lock:
            self._known(replica)
        if isinstance(event, AllCleared):
            self.clear(replica)
        elif isinstance(event, BlocksRemoved):
            if event.medium in _NEAR_MEDIA and not self._is_far(replica, event.group):
                self.remove(replica, event.block_hashes)
        else:
            self._apply_stored(replica, event)

    def store(
        self,
        replica: int,
        parent_hash: BlockHash | None,
        block_hashes: Sequence[BlockHash],
        token_ids: NDArray[np.int64],
        block_tokens: int,
        *,
        adapter: str | None = None,
    ) -> None:
        """Note that a replica holds blocks that follow each other.

        Shapes: token_ids [len(block_hashes) * block_tokens].
        """
        with self._lock:
            known = self._known(replica)
            root: _Block = (int(self._seed_of(replica, adapter)), 0, ())
            parent = root if parent_hash is None else known.get(parent_hash)
            if parent is None:
                self.counts.orphans += len(block_hashes)
                return
            blocks = self._following(parent, token_ids, block_tokens)
            room = self._max_blocks - len(known)
            if len(blocks) > room:
                self.counts.over_capacity += len(blocks) - room
                blocks = blocks[:room]
            known.update(zip(block_hashes, blocks, strict=False))
            self.counts.stored += len(blocks)
            self._holders.store(replica, _own(blocks))

    def remove(self, replica: int, block_hashes: Sequence[BlockHash]) -> None:
        """Note that a replica holds blocks no more."""
        with self._lock:
            known = self._known(replica)
            gone = [known.pop(block_hash, None) for block_hash in block_hashes]
            blocks = [block for block in gone if block is not None]
            self.counts.removed += len(blocks)
            self.counts.unknown_removed += len(gone) - len(blocks)
            self._holders.remove(replica, _own(blocks))

    def clear(self, replica: int) -> None:
        """Note that a replica holds nothing, or that nobody knows what it holds."""
        with self._lock:
            self._blocks.get(replica, {}).clear()
            self._far_groups.pop(replica, None)
            self.counts.clears += 1
            self._holders.clear(replica)

    def forget(self, replica: int) -> None:
        """Note that a replica's engine tells no more what it holds; others may guess again."""
        with self._lock:
            if self._blocks.pop(replica, None) is not None:
                self._holders.set_exact(replica, False)

    def num_blocks(self, replica: int) -> int:
        """Return how many blocks, by its own size, an engine is believed to hold."""
        return len(self._blocks.get(replica, ()))

    def _apply_stored(self, replica: int, event: BlocksStored) -> None:
        if event.kind not in _PREFIX_KINDS and event.group is not None:
            self._far_groups.setdefault(replica, set()).add(event.group)
        if event.medium not in _NEAR_MEDIA or event.kind not in _PREFIX_KINDS:
            self.counts.elsewhere += len(event.block_hashes)
        elif event.is_salted:
            self.counts.salted += len(event.block_hashes)
        else:
            self.store(
                replica,
                event.parent_hash,
                event.block_hashes,
                event.token_ids,
                event.block_tokens,
                adapter=event.adapter,
            )

    def _is_far(self, replica: int, group: int | None) -> bool:
        return group is not None and group in self._far_groups.get(replica, ())

    def _known(self, replica: int) -> dict[BlockHash, _Block]:
        """Return a replica's blocks; with the first that is heard of it, its index is exact."""
        if replica not in self._blocks:
            self._blocks[replica] = {}
            self._holders.set_exact(replica, True)
        return self._blocks[replica]

    def _following(
        self, parent: _Block, token_ids: NDArray[np.int64], block_tokens: int
    ) -> list[_Block]:
        """Return the blocks that come after one."""
        size, start = self._block_tokens, parent[1]
        state = np.uint64(parent[0])
        if block_tokens == size and start % size == 0:
            ends = token_block_hashes(token_ids, size, state).tolist()
            return [(end, start + size * (k + 1), None) for k, end in enumerate(ends)]
        states = token_block_hashes(token_ids, 1, state).tolist()
        blocks: list[_Block] = []
        for first in range(0, len(states), block_tokens):
            after = first + block_tokens
            own_end = first + size - 1 - (start + first) % size
            own = tuple(states[own_end:after:size]) if own_end < after else ()
            blocks.append((states[after - 1], start + after, own))
        return blocks


def _own(blocks: Sequence[_Block]) -> BlockHashes:
    own: list[int] = []
    for end, _, inside in blocks:
        if inside is None:
            own.append(end)
        else:
            own += inside
    return np.array(own, np.uint64)

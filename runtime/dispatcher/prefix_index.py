"""Which replica holds which prompt blocks, as far as a gateway can know.

Two sources: what was sent where (a guess that forgets what was used least recently), or an engine's
own KV events (exact). Each replica has one of the two.

Does not know: how blocks are hashed, or how events are read.
"""

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .prefix_kernel import (
    BLOCK_DTYPE,
    HOLDER_DTYPE,
    INDEX_HANDLE_DTYPE,
    NONE,
    PAIR_DTYPE,
    POOL_DTYPE,
    clear,
    match,
    remove,
    store,
)
from .request import BlockHashes

MAX_PAIRS = 1 << 20
"""Blocks times holders that are kept for a whole fleet: about 60 MB."""


class PrefixIndex:
    """Blocks by replica. Threads may call it; the dispatcher's kernel takes the same lock."""

    def __init__(self, max_blocks: Sequence[int], *, max_pairs: int = MAX_PAIRS) -> None:
        """`max_blocks` is the capacity of each replica's cache; together at most `max_pairs`.

        Raises:
            ValueError: there is no replica.
        """
        num_replicas = len(max_blocks)
        if num_replicas < 1:
            msg = "max_blocks must name at least 1 replica, got none"
            raise ValueError(msg)
        share = max(1, max_pairs // num_replicas)
        capacity = np.clip(np.array(max_blocks, np.int64), 1, share)
        num_pairs = int(capacity.sum())
        table_size = 1 << (2 * num_pairs - 1).bit_length()
        self.lock = threading.Lock()
        self._replicas = np.zeros(num_replicas, HOLDER_DTYPE)
        self._replicas["oldest"] = self._replicas["newest"] = NONE
        self._replicas["max_blocks"] = capacity
        blocks, pairs = np.zeros(num_pairs, BLOCK_DTYPE), np.zeros(num_pairs, PAIR_DTYPE)
        blocks["next_free"] = pairs["next"] = np.arange(1, num_pairs + 1)
        num_words = (num_replicas + 63) // 64
        self._arrays = {
            "blocks": blocks,
            "holders": np.zeros((num_pairs, num_words), np.uint64),
            "pairs": pairs,
            "replicas": self._replicas,
            "pool": np.zeros(1, POOL_DTYPE),
            "block_table": np.zeros(table_size, np.int32),
            "pair_table": np.zeros(table_size, np.int32),
            "scratch": np.zeros(num_words, np.uint64),
        }
        self.handle = np.zeros(1, INDEX_HANDLE_DTYPE)
        """Addresses of the arrays, for compiled functions; INDEX_HANDLE_DTYPE [1]."""
        for name, array in self._arrays.items():
            self.handle[f"{name}_at"] = array.ctypes.data
        self.handle["num_blocks"] = self.handle["num_pairs"] = num_pairs
        self.handle["num_words"], self.handle["num_replicas"] = num_words, num_replicas
        self.handle["block_table_size"] = self.handle["pair_table_size"] = table_size

    def set_exact(self, replica: int, is_exact: bool) -> None:
        """Say whether a replica's engine tells what it holds; the index of it begins anew."""
        with self.lock:
            self._replicas["is_exact"][replica] = is_exact
            clear(self.handle[0], replica)

    def is_exact(self, replica: int) -> bool:
        """Whether a replica's engine tells what it holds."""
        return bool(self._replicas["is_exact"][replica])

    def match(self, blocks: BlockHashes) -> NDArray[np.int64]:
        """Return how many of a prompt's first blocks each replica holds; [R]."""
        depths = np.zeros(self._replicas.size, np.int64)
        with self.lock:
            match(self.handle[0], blocks, depths)
        return depths

    def store(self, replica: int, blocks: BlockHashes) -> None:
        """Note that a replica holds blocks, in the order of the prompt; uint64 [n]."""
        with self.lock:
            store(self.handle[0], replica, blocks)

    def remove(self, replica: int, blocks: BlockHashes) -> int:
        """Note that a replica holds blocks no more; return how many it held."""
        with self.lock:
            return int(remove(self.handle[0], replica, blocks))

    def clear(self, replica: int) -> None:
        """Note that a replica holds nothing."""
        with self.lock:
            clear(self.handle[0], replica)

    def num_blocks(self, replica: int) -> int:
        """Return how many blocks a replica holds."""
        return int(self._replicas["num_blocks"][replica])

    def num_evicted(self, replica: int) -> int:
        """Return how many blocks were forgotten for want of room at a replica."""
        return int(self._replicas["num_evicted"][replica])

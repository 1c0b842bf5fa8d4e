"""Joins KV events that follow each other, so that an index is called once for many blocks.

vLLM names each block that it removes in an event of its own, and SGLang each page that it stores.

Does not know: where events come from, or what an index does with them.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
from msgspec.structs import replace

from .kv_events import BlockHash, BlocksRemoved, BlocksStored, KvEvent


def joined(events: Iterable[KvEvent]) -> list[KvEvent]:
    """Return events that mean the same in the same order, as few as can be."""
    runs: list[list[KvEvent]] = []
    for event in events:
        if runs and _follows(runs[-1][-1], event):
            runs[-1].append(event)
        else:
            runs.append([event])
    return [run[0] if len(run) == 1 else _as_one(run) for run in runs]


def _follows(before: KvEvent, event: KvEvent) -> bool:
    if isinstance(event, BlocksRemoved):
        return isinstance(before, BlocksRemoved) and (before.medium, before.group) == (
            event.medium,
            event.group,
        )
    if not isinstance(event, BlocksStored) or not isinstance(before, BlocksStored):
        return False
    return (
        bool(before.block_hashes)
        and event.parent_hash == before.block_hashes[-1]
        and before.block_tokens == event.block_tokens
        and before.adapter == event.adapter
        and before.medium == event.medium
        and before.group == event.group
        and before.kind == event.kind
        and before.is_salted == event.is_salted
    )


def _as_one(run: Sequence[KvEvent]) -> KvEvent:
    first = run[0]
    if isinstance(first, BlocksRemoved):
        removed = [event for event in run if isinstance(event, BlocksRemoved)]
        return replace(first, block_hashes=_hashes(removed))
    stored = [event for event in run if isinstance(event, BlocksStored)]
    assert isinstance(first, BlocksStored), f"a run of {type(first).__name__} has one event"
    tokens = np.concatenate([event.token_ids for event in stored])
    return replace(first, block_hashes=_hashes(stored), token_ids=tokens)


def _hashes(run: Sequence[BlocksRemoved | BlocksStored]) -> tuple[BlockHash, ...]:
    return tuple(chain.from_iterable(event.block_hashes for event in run))

"""Moves a session's KV from one replica to another, through a file that both can reach.

Both engines save slots to the same folder and serve the same model. What is moved is checked: as
many tokens and bytes come out of the file as went in. The session's next turn at the target then
finds its prefix cached; the source still holds it too, unless it is to forget it.

Does not know: which session should move, or where (that is the scheduler's).
"""

import contextlib
import hashlib
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from .engine import Engine, SessionFile
from .engine_error import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class KvMove:
    """A session's KV that was moved, and how long it took."""

    tokens: int
    size_bytes: int
    save_s: float
    """As the source measured it."""
    restore_s: float
    """As the target measured it."""
    total_s: float
    """On our clock, both requests included."""


async def move_session(
    source: Engine,
    target: Engine,
    *,
    source_slot: int,
    target_slot: int,
    folder: Path | None = None,
    is_erased: bool = False,
) -> KvMove:
    """Copy the KV of a slot to a slot of another replica; what was in that slot is gone.

    `folder` is where both save their slots, if it is within reach: the file is removed then, else
    it stays, and the next move from this slot writes over it. With `is_erased` the source forgets.

    Raises: EngineError if a slot is busy or empty, an engine cannot save, or the target does not
    take it: then the source still holds it.
    """
    await _check_ready(source, source_slot, "source", is_full=True)
    await _check_ready(target, target_slot, "target", is_full=False)
    # Of a replica's name not every character may stand in a file's.
    owner = hashlib.blake2b(source.replica.name.encode(), digest_size=8).hexdigest()
    once = f"-{uuid.uuid4().hex}" if folder is not None else ""
    name = f"trimtab-{owner}-{source_slot}{once}.bin"
    started_at_s = time.monotonic()
    try:
        saved = await source.save_session(source_slot, name)
        restored = await target.restore_session(target_slot, name)
    finally:
        if folder is not None:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).unlink()
    total_s = time.monotonic() - started_at_s
    _check_same(source, target, saved, restored)
    if is_erased:
        await source.erase_session(source_slot)
    return KvMove(
        tokens=saved.tokens,
        size_bytes=saved.size_bytes,
        save_s=saved.span_s,
        restore_s=restored.span_s,
        total_s=total_s,
    )


async def _check_ready(engine: Engine, number: int, role: str, *, is_full: bool) -> None:
    slots = {slot.number: slot for slot in await engine.slots()}
    slot, place = slots.get(number), f"{role} slot {number} of replica '{engine.replica.name}'"
    if slot is None:
        msg = f"{place} is not there; it has slots {sorted(slots)}"
        raise EngineError(msg)
    if slot.is_busy:
        msg = f"{place} is busy; move its session once its request has ended"
        raise EngineError(msg)
    if is_full and not slot.held_tokens:
        msg = f"{place} holds no KV; there is no session to move"
        raise EngineError(msg)


def _check_same(source: Engine, target: Engine, saved: SessionFile, restored: SessionFile) -> None:
    went, came = (saved.tokens, saved.size_bytes), (restored.tokens, restored.size_bytes)
    if went != came:
        msg = (
            f"replica '{source.replica.name}' saved {went[0]} tokens in {went[1]} bytes and "
            f"'{target.replica.name}' read {came[0]} in {came[1]}: do not rely on the move; "
            "give both the same --slot-save-path and model"
        )
        raise EngineError(msg)

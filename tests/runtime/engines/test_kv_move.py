"""A move that went wrong on the way is not called done."""

import asyncio
from pathlib import Path

import pytest
from fake_engine import Answers, answering

from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.kv_move import KvMove, move_session
from trimtab.runtime.engines.live_replica import EngineKind


def answers(*, is_busy: bool = False, restored: int = 9, saved_text: object = None) -> Answers:
    slot = {"id": 0, "n_ctx": 512, "is_processing": is_busy, "n_prompt_tokens": 9}
    saved = {"n_saved": 9, "n_written": 208, "timings": {"save_ms": 1.5}}
    came = {"n_restored": restored, "n_read": 208, "timings": {"restore_ms": 0.5}}
    return {
        "GET /slots": (200, [slot]),
        "POST /slots/0?action=ask": (400, {"error": {"message": "Invalid action"}}),
        "POST /slots/0?action=save": (200, saved_text or saved),
        "POST /slots/0?action=restore": (200, came),
    }


async def move(given: Answers, folder: Path | None = None) -> tuple[KvMove, list[str]]:
    """Move from one server to another that answer alike; return the move and the file names."""
    kind = EngineKind.LLAMACPP
    async with (
        answering(kind, given) as (source, asked),
        answering(kind, given) as (target, asked_of_target),
    ):
        done = await move_session(source, target, source_slot=0, target_slot=0, folder=folder)
        bodies = [body for _, body in asked + asked_of_target if isinstance(body, dict)]
        return done, [str(body["filename"]) for body in bodies if "filename" in body]


def test_a_move_gives_tokens_bytes_and_times() -> None:
    done, names = asyncio.run(move(answers()))
    assert (done.tokens, done.size_bytes) == (9, 208)
    assert (done.save_s, done.restore_s) == (0.0015, 0.0005)
    assert done.total_s > 0
    assert len(set(names)) == 1
    assert names[0].endswith("-0.bin")
    assert "/" not in names[0]


def test_within_reach_every_move_has_its_own_file_and_it_is_removed(tmp_path: Path) -> None:
    _, first = asyncio.run(move(answers(), tmp_path))
    _, second = asyncio.run(move(answers(), tmp_path))
    assert first[0] == first[1] != second[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (answers(restored=8), r"saved 9 tokens in 208 bytes .* read 8 in 208: do not rely on"),
        (answers(is_busy=True), r"source slot 0 of replica 'r0' is busy; move its session once"),
        (answers(saved_text={"ok": True}), r"slot file '.*' was answered \{'ok': True\}"),
    ],
)
def test_what_goes_wrong_is_said(given: Answers, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        asyncio.run(move(given))

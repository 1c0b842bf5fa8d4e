import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.traces.errors import TraceError
from trimtab.traces.sources.agent_sessions import AGENT_BLOCK_TOKENS, lay_out, read_agent_sessions


def turn(at_s: float, tokens: int, *runs: list[int], out: int = 5) -> dict[str, Any]:
    return {"t": at_s, "type": "n", "in": tokens, "out": out, "hash_ranges": list(runs)}


def write(path: Path, *sessions: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(session) + "\n" for session in sessions))
    return path


def two_sessions(path: Path) -> Path:
    helper = {"t": 4.0, "type": "subagent", "requests": [turn(1.0, 600, [900, 9])]}
    return write(
        path,
        {"group": 7, "requests": [turn(0.0, 1100, [1, 17]), helper, turn(90.0, 1700, [1, 26])]},
        {"group": 8, "requests": [turn(0.0, 1100, [1, 17], out=0)]},
    )


def test_turns_of_helpers_are_among_the_others(tmp_path: Path) -> None:
    first, second = read_agent_sessions(two_sessions(tmp_path / "s"), max_input_tokens=2000)
    assert (first.group, second.group) == (7, 8)
    assert first.at_s.tolist() == [0.0, 5.0, 90.0]
    assert first.input_tokens.tolist() == [1100, 600, 1700]
    assert second.output_tokens.tolist() == [1]


def test_coarse_blocks_are_shared_where_the_fine_ones_are(tmp_path: Path) -> None:
    first, second = read_agent_sessions(two_sessions(tmp_path / "s"), max_input_tokens=2000)
    # Full blocks of 512 tokens: 2 of 1100, 1 of 600, 3 of 1700.
    assert first.num_blocks.tolist() == [2, 1, 3]
    assert first.blocks[:2].tolist() == first.blocks[3:5].tolist()
    assert first.blocks[2] not in first.blocks[[0, 1, 3, 4, 5]]
    # The same ids in another session are other blocks.
    assert not set(first.blocks.tolist()) & set(second.blocks.tolist())


def test_turns_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    sessions = read_agent_sessions(two_sessions(tmp_path / "s"), max_input_tokens=700)
    assert [one.input_tokens.tolist() for one in sessions] == [[600]]
    with pytest.raises(TraceError, match="no session with prompts up to 10 tokens"):
        read_agent_sessions(tmp_path / "s", max_input_tokens=10)


def test_sessions_are_laid_on_one_clock(tmp_path: Path) -> None:
    sessions = read_agent_sessions(two_sessions(tmp_path / "s"), max_input_tokens=2000)
    trace = lay_out(sessions, rate_rps=0.1, max_gap_s=15.0, seed=0)
    assert len(trace) == 4
    assert trace.block_tokens == AGENT_BLOCK_TOKENS
    own = trace.session_ids == 0
    # A gap of 85 s is cut to 15 s.
    assert np.diff(trace.arrival_s[own]).tolist() == pytest.approx([5.0, 15.0])
    assert trace.input_tokens[own].tolist() == [1100, 600, 1700]
    offsets, hashes = trace.prefix_offsets, trace.prefix_block_hashes
    rows = [hashes[offsets[i] : offsets[i + 1]].tolist() for i in np.flatnonzero(own)]
    assert rows[0] == rows[2][:2]


@pytest.mark.parametrize(
    "line", ['{"group": 1}', "no json", '{"group": 1, "requests": [{"type": "n"}]}']
)
def test_a_malformed_line_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TraceError, match=r"line 1: .*expected one agent session"):
        read_agent_sessions(path, max_input_tokens=10)

"""Import of recorded sessions of coding agents: turns with lengths, prefix blocks and times.

One JSON object a line: `group` (copies and forks of one session share it) and `requests`, each
with `t` (s from the session's start), `in` and `out` (tokens) and `hash_ranges` (runs of block ids
of 64 tokens; an id stands for its block and all before it). Requests of sub-agents are nested.
Sessions have no absolute time; `lay_out` puts them on one clock.

Does not know: which sessions are for training.
Source: callanjfox/kv-cache-tester, traces, reformatted (`hash_ids` packed as ranges).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TraceError
from ..hashing import mix_all
from ..schema import RequestTrace, TraceSource
from .importing import RowFault, json_lines, json_object, open_text

AGENT_SOURCE = TraceSource(
    name="kv-cache-tester agent sessions",
    licence="Apache-2.0",
    url="https://github.com/callanjfox/kv-cache-tester",
)
_FINE_BLOCK_TOKENS = 64
# Blocks that are kept: one in eight, so that a prompt of 100 k tokens has 200 of them.
AGENT_BLOCK_TOKENS = 512
_STRIDE = AGENT_BLOCK_TOKENS // _FINE_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class AgentSession:
    """The turns of one session, in order of time.

    Shapes: T turns, B blocks of all turns together.
    """

    group: int
    at_s: npt.NDArray[np.float64]
    """From the session's start, [T]."""
    input_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    num_blocks: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.uint64]
    """Turn after turn, [B]."""


def read_agent_sessions(path: str | Path, *, max_input_tokens: int) -> list[AgentSession]:
    """Read sessions without the turns whose prompts are longer; those left with none are left out.

    Raises: TraceError for a malformed line.
    """
    sessions = []
    with open_text(path) as text:
        for line, content in json_lines(text):
            try:
                session = _session(json_object(content), line, max_input_tokens)
            except (RowFault, KeyError, TypeError, ValueError) as error:
                msg = f"trace {str(path)!r} line {line}: {error!r}; expected one agent session"
                raise TraceError(msg) from error
            if session.at_s.size:
                sessions.append(session)
    if not sessions:
        msg = f"trace {str(path)!r} has no session with prompts up to {max_input_tokens} tokens"
        raise TraceError(msg)
    return sessions


def _turns(requests: Sequence[dict[str, Any]], start_s: float) -> Iterator[tuple[float, Any]]:
    """Each request with its time from the session's start, those of sub-agents among them."""
    for request in requests:
        at_s = start_s + float(request["t"])
        if request["type"] == "subagent":
            yield from _turns(request["requests"], at_s)
        else:
            yield at_s, request


def _session(content: dict[str, Any], number: int, max_input_tokens: int) -> AgentSession:
    turns = [
        (at_s, turn)
        for at_s, turn in _turns(content["requests"], 0.0)
        if 1 <= turn["in"] <= max_input_tokens
    ]
    turns.sort(key=lambda each: each[0])
    blocks = [_blocks(turn) for _, turn in turns]
    ids = np.concatenate([np.zeros(0, np.uint64), *blocks])
    return AgentSession(
        group=int(content["group"]),
        at_s=np.array([at_s for at_s, _ in turns], np.float64),
        input_tokens=np.array([turn["in"] for _, turn in turns], np.int64),
        output_tokens=np.array([max(1, turn["out"]) for _, turn in turns], np.int64),
        num_blocks=np.array([each.size for each in blocks], np.int64),
        # Ids are the session's own: its number makes them different from other sessions'.
        blocks=mix_all(ids, np.uint64(number)),
    )


def _blocks(turn: dict[str, Any]) -> npt.NDArray[np.uint64]:
    """Ids of the turn's full coarse blocks: each is that of its last fine one."""
    runs = [np.arange(first, first + count) for first, count in turn["hash_ranges"]]
    ids = np.concatenate([np.zeros(0, np.int64), *runs])
    num_full = turn["in"] // AGENT_BLOCK_TOKENS
    return ids[_STRIDE - 1 :: _STRIDE][:num_full].astype(np.uint64)


def lay_out(
    sessions: Sequence[AgentSession], *, rate_rps: float, max_gap_s: float, seed: int
) -> RequestTrace:
    """Return sessions as one trace: they begin at random moments, and long gaps are shortened.

    The moments are uniform over a span that makes the mean rate about `rate_rps`.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    num_turns = sum(session.at_s.size for session in sessions)
    starts_s = rng.uniform(0.0, num_turns / rate_rps, len(sessions))
    at_s = [
        start_s + np.concatenate([[0.0], np.cumsum(np.minimum(np.diff(one.at_s), max_gap_s))])
        for start_s, one in zip(starts_s, sessions, strict=True)
    ]
    arrival_s = np.concatenate(at_s)
    order = np.argsort(arrival_s, kind="stable")
    ends = np.cumsum(np.concatenate([one.num_blocks for one in sessions]))
    counts = np.diff(ends, prepend=0)
    blocks = np.concatenate([one.blocks for one in sessions])
    # Blocks of each row, in the new order of rows.
    first = (ends - counts)[order]
    offsets = np.concatenate([[0], np.cumsum(counts[order])])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts[order])
    session = np.repeat(np.arange(len(sessions)), [one.at_s.size for one in sessions])
    return RequestTrace.from_columns(
        arrival_s=arrival_s[order] - arrival_s.min(),
        input_tokens=np.concatenate([one.input_tokens for one in sessions])[order],
        output_tokens=np.concatenate([one.output_tokens for one in sessions])[order],
        block_tokens=AGENT_BLOCK_TOKENS,
        source=AGENT_SOURCE,
        session=session[order].astype(np.int64),
        prefix=(offsets, blocks[np.repeat(first, counts[order]) + place]),
    )

"""Recorded traces that sites resample, each cut into a part for training, validation and test.

A recording is cut in time, and sessions without absolute time by groups of related sessions, so
that no request, and no session, is in two parts. Conversations are overlaid on recordings that
have none, inside each part.

Does not know: sites.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...traces.conversations import assign_sessions
from ...traces.errors import ConfigError
from ...traces.rescaling import rescale
from ...traces.schema import RequestTrace
from ...traces.sources.agent_sessions import AgentSession, lay_out, read_agent_sessions
from ...traces.sources.azure import read_azure
from ...traces.sources.mooncake import read_mooncake
from ...traces.transform import select, split
from .split import PART_FRACS, Split
from .traffic import Shape, Traffic

BLOCK_TOKENS = 64
"""Tokens of a prompt block of every workload of a site."""
# Prompts of agent sessions beyond this are left out when they are read: at an eighth of it they
# are as long as any site's longest.
_AGENT_INPUT_TOKENS = 262_144
# Requests a second of the laid-out sessions; windows of them are laid over one another anyway.
_AGENT_RATE_RPS = 2.0
# Pauses of agents' users are cut to this, so that a session is more than one turn in a workload.
_AGENT_GAP_S = 15.0
# Gap between turns of overlaid conversations, s.
_OVERLAY_GAP_S = 60.0
_SEED = 7
# Share of a recording's requests that a stretch has at least, if shorter prompts can do that.
_LEAST_FRAC = 0.01


@dataclass(frozen=True, slots=True)
class _Recording:
    shape: Shape
    path: str
    read: Callable[[Path, Split], RequestTrace]


def _part(trace: RequestTrace, part: Split) -> RequestTrace:
    """One part of a recording's time."""
    order = list(Split)
    return split(trace, [PART_FRACS[each] for each in order])[order.index(part)]


def _read_azure(path: Path, part: Split) -> RequestTrace:
    recorded = _part(read_azure(path).trace, part)
    return assign_sessions(recorded, seed=_SEED, max_gap_s=_OVERLAY_GAP_S)


def _read_mooncake(path: Path, part: Split) -> RequestTrace:
    return _part(read_mooncake(path).trace, part)


def agent_sessions_of(sessions: list[AgentSession], part: Split) -> list[AgentSession]:
    """Return the sessions of a part: whole groups, in a fixed random order."""
    groups = np.unique([session.group for session in sessions])
    shuffled = np.random.Generator(np.random.PCG64(_SEED)).permutation(groups)
    bounds = np.round(np.cumsum([0.0, *PART_FRACS.values()]) * groups.size).astype(int)
    place = list(PART_FRACS).index(part)
    chosen = set(shuffled[bounds[place] : bounds[place + 1]].tolist())
    return [session for session in sessions if session.group in chosen]


def _read_agents(path: Path, part: Split) -> RequestTrace:
    sessions = read_agent_sessions(path, max_input_tokens=_AGENT_INPUT_TOKENS)
    chosen = agent_sessions_of(sessions, part)
    return lay_out(chosen, rate_rps=_AGENT_RATE_RPS, max_gap_s=_AGENT_GAP_S, seed=_SEED)


_RECORDINGS: dict[str, _Recording] = {
    "azure-conv": _Recording(
        Shape.CONVERSATION, "azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz", _read_azure
    ),
    "azure-code": _Recording(
        Shape.CODE_BURSTS, "azure_llm_2023/AzureLLMInferenceTrace_code.csv.gz", _read_azure
    ),
    "mooncake-conversation": _Recording(
        Shape.LONG_PROMPTS, "mooncake/conversation_trace.jsonl.gz", _read_mooncake
    ),
    "mooncake-synthetic": _Recording(
        Shape.LONG_PROMPTS, "mooncake/synthetic_trace.jsonl.gz", _read_mooncake
    ),
    "agent-sessions": _Recording(
        Shape.AGENT_SESSIONS, "weka_agentic/sessions.jsonl.gz", _read_agents
    ),
}


def recordings_of(shape: Shape) -> tuple[str, ...]:
    """Names of the recordings of a shape, whether they are there or not; none for chat."""
    return tuple(name for name, one in _RECORDINGS.items() if one.shape is shape)


@dataclass(frozen=True, slots=True)
class TraceLibrary:
    """A directory of recordings; those that are absent are left out.

    Raises:
        ConfigError: the directory holds none of them.
    """

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(self.directory).resolve())
        if not self.names:
            expected = ", ".join(one.path for one in _RECORDINGS.values())
            msg = f"'{self.directory}' holds no recorded trace; expected any of {expected} in it"
            raise ConfigError(msg)

    @property
    def names(self) -> tuple[str, ...]:
        """Recordings that are there."""
        return tuple(name for name in _RECORDINGS if self.has(name))

    def has(self, name: str) -> bool:
        """Whether a recording is there."""
        return name in _RECORDINGS and (self.directory / _RECORDINGS[name].path).is_file()

    def part(self, name: str, part: Split) -> RequestTrace:
        """Return what one split may draw of a recording, as it was recorded.

        Raises:
            ConfigError: the recording is not there.
        """
        if not self.has(name):
            msg = f"no recording '{name}' in '{self.directory}'; there are {', '.join(self.names)}"
            raise ConfigError(msg)
        return _read_part(self.directory, name, part)

    def stretch(self, traffic: Traffic, part: Split, max_prompt_tokens: int) -> RequestTrace:
        """Return a part with the prompts of a site's traffic, the longest left out.

        Lengths are shorter than the traffic says where else next to none would be left.
        """
        return _stretch(self, traffic.recording, traffic.length_eighths, part, max_prompt_tokens)

    def print_of(self, name: str) -> str:
        """Return what tells a recording from another of its name: its size in bytes."""
        return f"{name}:{(self.directory / _RECORDINGS[name].path).stat().st_size}"


@lru_cache(maxsize=16)
def _read_part(directory: Path, name: str, part: Split) -> RequestTrace:
    recording = _RECORDINGS[name]
    return recording.read(directory / recording.path, part)


# Few: a stretch of agent sessions takes up to 100 MB.
@lru_cache(maxsize=8)
def _stretch(
    library: TraceLibrary, name: str, eighths: int, part: Split, max_prompt_tokens: int
) -> RequestTrace:
    recorded = library.part(name, part)
    tokens = recorded.input_tokens.astype(np.int64)
    # Where next to no prompt would fit, all are made shorter.
    while eighths > 1 and (tokens * eighths <= 8 * max_prompt_tokens).mean() < _LEAST_FRAC:
        eighths -= 1
    kept = select(recorded, np.flatnonzero(tokens * eighths <= 8 * max_prompt_tokens))
    if recorded.block_tokens == BLOCK_TOKENS:
        return kept
    return rescale(kept, eighths=eighths, block_tokens=BLOCK_TOKENS)

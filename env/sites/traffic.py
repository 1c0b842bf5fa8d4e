"""What arrives at a site: shapes of traffic, and where each may be drawn from.

Does not know: fleets, rates, or how recordings are read (`library.py`).
"""

from dataclasses import dataclass
from enum import StrEnum


class Shape(StrEnum):
    """Kinds of traffic."""

    CONVERSATION = "conversation"
    CODE_BURSTS = "code-bursts"
    LONG_PROMPTS = "long-prompts"
    AGENT_SESSIONS = "agent-sessions"
    SYNTHETIC_CHAT = "synthetic-chat"


SYNTHETIC = "synthetic"
"""Name that stands for generated traffic where a recording's name could be."""

# Lengths of long prompts and of agent sessions are an eighth to a half of those recorded, so that
# a conversation with its KV fits the smallest replicas.
MOST_EIGHTHS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One kind of traffic as a site has it.

    Raises:
        ValueError: a number is out of its bounds.
    """

    shape: Shape
    """Its kind."""
    recording: str = SYNTHETIC
    """Recording in the trace library that it is resampled from, or `synthetic`."""
    length_eighths: int = 8
    """Lengths of prompts and answers, in eighths of what was recorded."""
    num_overlays: int = 0
    """Copies of the recording that lie over one another, at a faster clock where the rate asks for
    more: bursts stay. 0: at its own clock, as many copies as the rate asks for."""

    def __post_init__(self) -> None:
        if not 1 <= self.length_eighths <= 8:
            msg = f"length_eighths must be from 1 to 8, got {self.length_eighths}"
            raise ValueError(msg)
        if self.num_overlays < 0:
            msg = f"num_overlays must be at least 0, got {self.num_overlays}"
            raise ValueError(msg)

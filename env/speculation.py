"""Speculative decoding, reduced to how many tokens a verify iteration keeps.

Does not know: the draft model, or batches. Every draft token is accepted with the same chance,
whatever the request.
Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding (2023), eq. 1.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How a replica drafts tokens and how many of them are kept."""

    draft_tokens: int
    """Tokens drafted for each sequence before each verify iteration."""
    acceptance: float
    """Chance that a drafted token is accepted, given those before it were."""
    draft_cost_frac: float = 0.0
    """Cost of drafting one token for the batch, as a share of the verify iteration."""

    def __post_init__(self) -> None:
        """Refuse what no draft can be."""
        if self.draft_tokens < 1:
            msg = f"draft_tokens must be at least 1, got {self.draft_tokens}"
            raise ValueError(msg)
        if not 0.0 <= self.acceptance <= 1.0:
            msg = f"acceptance must be between 0 and 1, got {self.acceptance}"
            raise ValueError(msg)
        if self.draft_cost_frac < 0.0:
            msg = f"draft_cost_frac must be at least 0, got {self.draft_cost_frac}"
            raise ValueError(msg)

    @property
    def kept_tokens(self) -> float:
        """Expected tokens that a verify iteration yields for a sequence, its own one included."""
        return sum(self.acceptance**i for i in range(self.draft_tokens + 1))

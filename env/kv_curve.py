"""KV bytes of one sequence as a function of its context: a number a token, or a concave table.

Between the points of a table bytes run straight, from 0 bytes at 0 tokens; beyond the last point
they run on at the last slope. What the simulator makes of it:
- Memory: a KV page has the same bytes wherever it lies in a sequence. Without `reference_tokens` a
  page has the bytes of the first slope: exact up to the first bend, too many beyond, never too few.
  With it, a page has the mean bytes a token of a sequence of that length: exact there, too many for
  longer sequences, too few for shorter ones.
- Time: a decode iteration reads min(first slope x tokens, last slope x tokens + the rest), the two
  outer lines of the table. Exact for a table with one bend; with more, exact up to the first bend
  and on the last line, and in between never too little.

Does not know: models, layers or number formats; bytes are those that a cache really takes.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

# share by which slopes may rise before a table counts as not concave: rounding of its bytes
_SLOPE_SLACK = 1e-6


@dataclass(frozen=True, kw_only=True)
class KvCurve:
    """Bytes that a sequence's KV takes, by its length."""

    points: tuple[tuple[int, float], ...]
    """(tokens, bytes in all), tokens rising."""
    reference_tokens: int | None = None
    """Length for which pages are counted exactly; None counts them by the first slope."""

    def __post_init__(self) -> None:
        """Refuse what no cache can be."""
        if not self.points:
            msg = "a table of KV bytes must have at least one point, got none"
            raise ValueError(msg)
        tokens = [count for count, _ in self.points]
        if tokens[0] < 1 or any(later <= count for count, later in pairwise(tokens)):
            msg = f"tokens of KV bytes must rise from at least 1, got {tokens}"
            raise ValueError(msg)
        if not self.points[0][1] > 0:
            msg = f"KV bytes must be above 0, got {self.points[0][1]:g} at {tokens[0]} tokens"
            raise ValueError(msg)
        if self.reference_tokens is not None and self.reference_tokens < 1:
            msg = f"reference_tokens must be at least 1, got {self.reference_tokens}"
            raise ValueError(msg)
        if self.slopes[-1] < 0 or min(self.slopes) < 0:
            msg = f"KV bytes must not fall with length, got {list(self.points)}"
            raise ValueError(msg)
        for (count, _), before, after in zip(
            self.points, self.slopes, self.slopes[1:], strict=False
        ):
            if after > before * (1 + _SLOPE_SLACK):
                msg = (
                    f"KV bytes must grow no faster with length, got {before:g} bytes a token up "
                    f"to {count} tokens and {after:g} beyond; give bytes in all, not by token"
                )
                raise ValueError(msg)

    @classmethod
    def per_token(cls, token_bytes: float) -> "KvCurve":
        """The same bytes for every token."""
        return cls(points=((1, token_bytes),))

    @cached_property
    def slopes(self) -> tuple[float, ...]:
        """Bytes a token up to each point."""
        corners = ((0, 0.0), *self.points)
        return tuple((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(corners))

    @property
    def first_slope(self) -> float:
        """Bytes of each of the first tokens."""
        return self.slopes[0]

    def bytes_at(self, tokens: float) -> float:
        """Bytes of a sequence of some length."""
        start, done = 0, 0.0
        for (count, total), slope in zip(self.points, self.slopes, strict=True):
            if tokens <= count:
                return done + slope * (tokens - start)
            start, done = count, total
        return done + self.slopes[-1] * (tokens - start)

    @property
    def page_token_bytes(self) -> float:
        """Bytes of a token in a KV page."""
        if self.reference_tokens is None:
            return self.first_slope
        return self.bytes_at(self.reference_tokens) / self.reference_tokens

    @property
    def bend_tokens(self) -> int:
        """Where the first and the last line meet; 0 for a straight line."""
        bent = self.first_slope - self.slopes[-1]
        if bent <= self.first_slope * _SLOPE_SLACK:
            return 0
        tokens, total = self.points[-1]
        return max(1, round((total - self.slopes[-1] * tokens) / bent))

    @property
    def bent_frac(self) -> float:
        """Share of the first slope that ends at the bend; 0 for a straight line."""
        return 1.0 - self.slopes[-1] / self.first_slope if self.bend_tokens else 0.0

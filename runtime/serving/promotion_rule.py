"""The rule by which a policy in shadow is promoted: comparisons joined by `and`.

    gain > 0.0 and doubts < 0.05

Does not know: where the figures come from (`promotion.py`).
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ...traces.errors import ConfigError

FIGURES: Final[Mapping[str, str]] = {
    "gain": "lower bound of policy minus fallback, as a share of the weight of requests",
    "doubts": "share of the windows in which the policy was in doubt",
    "overrides": "share of the windows in which its knobs were brought within their limits",
    "windows": "number of windows",
    "samples": "number of requests that both were tried on",
}
"""What a rule may speak of, and what it means."""

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*([a-z]+)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure against a number."""

    figure: str
    symbol: str
    number: float

    def is_met(self, figures: Mapping[str, float]) -> bool:
        """Whether the figure is on the right side; one that is no number never is."""
        return _OPERATORS[self.symbol](figures[self.figure], self.number)

    def __str__(self) -> str:
        return f"{self.figure} {self.symbol} {self.number:g}"


@dataclass(frozen=True, slots=True)
class PromotionRule:
    """All comparisons must be met."""

    comparisons: tuple[Comparison, ...]

    def unmet(self, figures: Mapping[str, float]) -> tuple[Comparison, ...]:
        """Return the comparisons that are not met."""
        return tuple(each for each in self.comparisons if not each.is_met(figures))

    def __str__(self) -> str:
        return " and ".join(map(str, self.comparisons))


def parse_promotion_rule(text: str) -> PromotionRule:
    """Read a rule.

    Raises:
        ConfigError: it is not comparisons of known figures with numbers, joined by `and`.
    """
    return PromotionRule(tuple(_comparison(part, text) for part in re.split(r"\band\b", text)))


def _comparison(part: str, text: str) -> Comparison:
    found = _COMPARISON.fullmatch(part)
    if found is None:
        msg = (
            f"promotion rule '{text}': '{part.strip()}' is no comparison; write a figure, one of "
            "> >= < <=, and a number, joined by 'and', such as: gain > 0.0 and doubts < 0.05"
        )
        raise ConfigError(msg)
    name, symbol, number = found.groups()
    if name not in FIGURES:
        msg = f"promotion rule '{text}': unknown figure '{name}'; known: {', '.join(FIGURES)}"
        raise ConfigError(msg)
    return Comparison(name, symbol, float(number))

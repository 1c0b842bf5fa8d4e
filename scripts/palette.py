"""Which policies a figure emphasises, and in which colours.

At most six lines are coloured, with the colours of Okabe and Ito, which colour-blind readers can
tell apart, and with different dashes; all others are grey.

Does not know: any drawing library.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..agents.evaluation import Evaluation
from .summary import is_imported, ranked

# Okabe and Ito, Color Universal Design (2008), without black, yellow and the lighter blue twin.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot", "solid", "dash")
GREY = "#B8B8B8"


@dataclass(frozen=True, slots=True)
class Style:
    """How one policy or knob is drawn."""

    colour: str
    dash: str
    """One of solid, dash, dot, dashdot."""
    is_emphasised: bool

    @property
    def width(self) -> float:
        """Width of its line in points."""
        return 2.4 if self.is_emphasised else 1.2


def emphasise(names_by_weight: Iterable[str]) -> dict[str, Style]:
    """Return a style for each name: the first six in colour, the others grey."""
    names = list(names_by_weight)
    styles = {name: Style(GREY, "solid", False) for name in names}
    for name, colour, dash in zip(names, _COLOURS, _DASHES, strict=False):
        styles[name] = Style(colour, dash, True)
    return styles


def policy_styles(evaluation: Evaluation) -> dict[str, Style]:
    """Return a style for each policy, in order of goodput; this project's come first in colour."""
    names = [result.name for result in ranked(evaluation)]
    own_first = sorted(names, key=is_imported)
    styles = emphasise(own_first)
    return {name: styles[name] for name in names}

"""Where on an engine's metrics page a signal stands: the grammar of `replica_signals.py`.

    SOURCE      = ALTERNATIVE { " | " ALTERNATIVE }      the first that is on the page counts
    ALTERNATIVE = NUMBER [ " / " NUMBER ]
    NUMBER      = NAME                                   a sample by its exact name
                | NAME{LABEL="VALUE"}                    samples with this label only
                | NAME[LABEL]                            the number that a label holds
                | pNN NAME                               a quantile of a histogram's recent gain

Several samples that fit are those of several engines behind one page.

Does not know: the text of a page (`engine_page.py`), or which signals there are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""By exact name: the labels and the value of each sample on a page."""

_NUMBER: Final = re.compile(
    r"(?:p(?P<percent>\d\d) )?(?P<name>[\w:]+)"
    r'(?:\{(?P<label>\w+)="(?P<value>[^"]*)"\})?(?:\[(?P<held>\w+)\])?$'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageNumber:
    """One number of a page."""

    name: str
    only: tuple[str, str] | None = None
    """Label and value that a sample must have."""
    held_by: str | None = None
    """Label that holds the number, instead of the sample's value."""
    quantile: float | None = None
    """Of the histogram with this name."""

    @property
    def sample_name(self) -> str:
        """Exact name of the samples that are needed."""
        return self.name if self.quantile is None else f"{self.name}_bucket"

    def values(self, samples: Samples) -> list[float]:
        """Return the values of all samples that fit; none if the page has none."""
        found = []
        for labels, value in samples.get(self.name, ()):
            if self.only is not None and labels.get(self.only[0]) != self.only[1]:
                continue
            number = value if self.held_by is None else _number(labels.get(self.held_by))
            if number is not None:
                found.append(number)
        return found


PageSource = tuple[tuple[PageNumber, ...], ...]
"""Alternatives; of each one number, or two of which the first is divided by the second."""


def parse_source(text: str) -> PageSource:
    """Read a source as it is written in the table of signals.

    Raises: ValueError if it does not follow the grammar.
    """
    return tuple(
        tuple(_parse_number(part.strip()) for part in alternative.split(" / "))
        for alternative in text.split(" | ")
    )


def _parse_number(text: str) -> PageNumber:
    match = _NUMBER.match(text)
    if match is None:
        msg = f"{text!r} is no source on a metrics page; see the grammar of page_source.py"
        raise ValueError(msg)
    part = match.groupdict()
    return PageNumber(
        name=part["name"],
        only=(part["label"], part["value"]) if part["label"] else None,
        held_by=part["held"],
        quantile=int(part["percent"]) / 100 if part["percent"] else None,
    )


def _number(text: str | None) -> float | None:
    """Return the number in a label; engines write None where they have none."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None

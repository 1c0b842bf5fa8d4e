"""One fault of a file, with its place.

Does not know: what files hold.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .yaml_lines import line_of

# characters of a fault's text; values in it may be as long as the file
_MAX_TEXT = 500


class Fault(NamedTuple):
    """What is wrong with a key of a file."""

    key: str
    """Path of the key: `layers[0].params`."""
    text: str
    """What is wrong, the value, what was expected, what to do."""
    line: int | None = None
    """Line of the file, from 1."""

    def __str__(self) -> str:
        """The fault as messages show it."""
        place = "" if self.line is None else f"line {self.line}: "
        return f"{place}{self.key}: {self.text}"


def placed(faults: Iterable[tuple[str, str]], lines: Mapping[str, int]) -> tuple[Fault, ...]:
    """Faults with the lines of their keys, in the order of the file."""
    found = [Fault(_cut(key), _cut(text), line_of(dict(lines), key)) for key, text in faults]
    return tuple(sorted(dict.fromkeys(found), key=lambda fault: fault.line or 0))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 4]} ..."

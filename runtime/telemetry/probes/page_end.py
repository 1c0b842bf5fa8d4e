"""Notices what a metrics page lost at its end: a page cut in half gives no wrong number.

A page ends with a line feed; what comes after the last one is half a line. Everything before the
last family of samples is whole. Of the last one some samples may be missing, and what is added up
over them would be too small: then the family is left out. It counts as cut if it has fewer samples
than on the page before, or a histogram that is not whole. Pages that end twice at the same place
are whole.

Does not know: what the samples mean. Nor can it know that the very first page of an engine ends
between two samples of one family: whoever fetches a page checks its length.
"""

from collections.abc import Mapping, MutableMapping
from typing import Final

from .page_source import Samples

_SUFFIXES: Final = ("_bucket", "_sum", "_count", "_total", "_created")

Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels of a sample."""


def whole_lines(text: str) -> str:
    """Return a page without the half line at its end."""
    return text[: text.rfind("\n") + 1]


def family_of(name: str) -> str:
    """Return the name that the samples of one counter or histogram share."""
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


class PageEnd:
    """The ends of one engine's pages."""

    def __init__(self) -> None:
        self._families: dict[str, frozenset[Key]] = {}
        self._last: tuple[str, frozenset[Key]] | None = None
        self.num_cut = 0
        """Pages whose last family was left out."""

    def leave_out_cut(
        self, samples: MutableMapping[str, list[tuple[Mapping[str, str], float]]], last_line: str
    ) -> None:
        """Take the last family out of a page's samples if it is not whole."""
        keys = _keys_by_family(samples)
        last = family_of(_name_in(last_line))
        found = keys.get(last)
        if found is not None and self._is_cut(last, found, samples):
            self.num_cut += 1
            for name in [name for name in samples if family_of(name) == last]:
                del samples[name]
            keys.pop(last)
        self._last = None if found is None else (last, found)
        self._families.update(keys)

    def _is_cut(self, family: str, found: frozenset[Key], samples: Samples) -> bool:
        if not _is_whole_histogram(family, samples):
            return True
        return found < self._families.get(family, frozenset()) and self._last != (family, found)


def _name_in(line: str) -> str:
    """Return the name that a line is about; of a comment it is the third word."""
    if line.startswith("#"):
        return ""  # all samples of the family before have come
    return line.partition("{")[0].partition(" ")[0]


def _keys_by_family(samples: Samples) -> dict[str, frozenset[Key]]:
    keys: dict[str, set[Key]] = {}
    for name, found in samples.items():
        of_family = keys.setdefault(family_of(name), set())
        of_family.update((name, tuple(sorted(labels.items()))) for labels, _ in found)
    return {family: frozenset(found) for family, found in keys.items()}


def _is_whole_histogram(family: str, samples: Samples) -> bool:
    """Whether each group of buckets has its last one; true for what is no histogram."""
    buckets = samples.get(f"{family}_bucket", ())
    groups = {_without_bound(labels) for labels, _ in buckets}
    whole = {_without_bound(labels) for labels, _ in buckets if labels.get("le") == "+Inf"}
    return groups == whole


def _without_bound(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pair for pair in labels.items() if pair[0] != "le"))

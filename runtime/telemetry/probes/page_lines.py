"""Reads the lines of a metrics page that somebody asks for; lines that come again are known.

A page repeats itself: of most lines only the number at the end changes. The library that reads the
format is asked once for each name with its labels.

Does not know: which names are asked for, or what they mean.
Source: Prometheus' text format, as `prometheus_client` reads it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

PageSamples = dict[str, list[tuple[Mapping[str, str], float]]]
"""By exact name: the labels and the value of each sample on a page."""
# Names with labels that are kept; a page with more is read anew each time.
_MOST_KNOWN: Final = 20_000


class PageLines:
    """The lines of one engine's pages."""

    def __init__(self, wanted: Set[str]) -> None:
        self._wanted = wanted
        self._known: dict[str, tuple[str, Mapping[str, str]] | None] = {}

    def read(self, lines: Iterable[str]) -> PageSamples:
        """Return the samples that are asked for; the other lines are not parsed at all.

        Raises: ValueError for a line that is asked for and is none of the format.
        """
        samples: PageSamples = defaultdict(list)
        known = self._known
        for line in lines:
            head, _, number = line.rpartition(" ")
            if head in known:
                sample = known[head]
                if sample is not None:
                    samples[sample[0]].append((sample[1], float(number)))
            elif line.partition("{")[0].partition(" ")[0].strip() in self._wanted:
                self._parse(line, head, number, samples)
            elif head:
                self._keep(head, None)
        return samples

    def _parse(self, line: str, head: str, number: str, samples: PageSamples) -> None:
        for family in text_string_to_metric_families(line + "\n"):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, float(sample.value)))
                # A line may end with a moment behind its number.
                if sample.timestamp is None and _is_number(number):
                    self._keep(head, (sample.name, sample.labels))

    def _keep(self, head: str, sample: tuple[str, Mapping[str, str]] | None) -> None:
        if len(self._known) < _MOST_KNOWN:
            self._known[head] = sample


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

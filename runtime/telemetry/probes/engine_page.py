"""Reads the metrics page of vLLM, SGLang or llama.cpp into the signals of a replica.

Names are exact, old ones included; what a page does not say is absent, never 0. Counters are
handed on as they stand; one that falls is counted as a restart of the engine. Of a page that was
cut in half, what may be too small is absent (`page_end.py`).

Does not know: how a page is fetched (`engine_pages_probe.py`), or what is derived from a signal.
"""

import math
from collections import defaultdict
from functools import cache
from typing import Final

import numpy as np

from ....env.state.feature import Live
from ..signals import SIGNALS_BY_SCOPE, Kind, Scope, Signal
from .histogram_window import HistogramWindow
from .page_end import PageEnd, whole_lines
from .page_lines import PageLines
from .page_source import PageNumber, PageSource, Samples, parse_source
from .probe import FloatArray

ENGINES: Final = {"vllm:": Live.VLLM, "sglang:": Live.SGLANG, "llamacpp:": Live.LLAMACPP}
"""How the names of an engine's metrics begin."""
_SIGNALS = SIGNALS_BY_SCOPE[Scope.REPLICA]
# Of several engines behind one page these are averaged; everything else is added up.
_AVERAGED_UNITS: Final = frozenset({"share", "0 or 1", "tokens a page"})


_COUNTERS: Final = np.array([signal.kind is Kind.COUNTER for signal in _SIGNALS])


class EnginePage:
    """The metrics page of one replica, read again and again."""

    def __init__(self) -> None:
        self._histograms: dict[str, HistogramWindow] = defaultdict(HistogramWindow)
        self._end = PageEnd()
        self._lines = PageLines(_wanted_names())
        self._counters = np.full(int(_COUNTERS.sum()), np.nan)
        self.num_restarts = 0
        """Pages on which a counter stood lower than before."""

    @property
    def num_cut(self) -> int:
        """Pages of which the last family was left out, as it was not whole."""
        return self._end.num_cut

    def read(self, text: str, at_s: float) -> FloatArray:
        """Return the signals of a page, in the order of their table; NaN where absent.

        Shapes: [signals of a replica]. `at_s` is when the page was fetched, on any clock.
        Raises: ValueError if the text is no metrics page, or of an engine that is not known.
        """
        lines = whole_lines(text).splitlines()
        samples = self._lines.read(lines)
        engine = _engine_of(samples)
        self._end.leave_out_cut(samples, lines[-1])
        for name in _histogram_names(engine):
            self._take_histogram(name, samples, at_s)
        row = np.full(len(_SIGNALS), np.nan)
        for column, signal, source in _sources(engine):
            row[column] = self._value(signal, source, samples)
        self._count_restart(row[_COUNTERS])
        return row

    def _count_restart(self, counters: FloatArray) -> None:
        self.num_restarts += bool((counters < self._counters).any())
        self._counters = np.where(np.isnan(counters), self._counters, counters)

    def _value(self, signal: Signal, source: PageSource, samples: Samples) -> float:
        for alternative in source:
            numbers = [self._number(signal, part, samples) for part in alternative]
            if not any(math.isnan(number) for number in numbers):
                return _divide(*numbers) if len(numbers) == 2 else numbers[0]
        return np.nan

    def _number(self, signal: Signal, part: PageNumber, samples: Samples) -> float:
        if part.quantile is not None:
            return self._histograms[part.name].quantile(part.quantile)
        values = part.values(samples)
        if not values:
            return np.nan
        is_averaged = signal.unit in _AVERAGED_UNITS
        return sum(values) / len(values) if is_averaged else sum(values)

    def _take_histogram(self, name: str, samples: Samples, at_s: float) -> None:
        counts: dict[float, float] = defaultdict(float)
        for labels, value in samples.get(f"{name}_bucket", ()):
            counts[float(labels["le"])] += value
        if counts:
            bounds = np.array(sorted(counts))
            self._histograms[name].add(at_s, bounds, np.array([counts[b] for b in bounds]))


def _divide(above: float, below: float) -> float:
    return above / below if below > 0 else np.nan


def _engine_of(samples: Samples) -> Live:
    for prefix, engine in ENGINES.items():
        if any(name.startswith(prefix) for name in samples):
            return engine
    known = ", ".join(ENGINES)
    msg = (
        f"the page has no metric of a known engine; expected names that begin with {known}: "
        "check the address, and that the engine serves metrics (llama.cpp: --metrics, "
        "SGLang: --enable-metrics)"
    )
    raise ValueError(msg)


@cache
def _sources(engine: Live) -> tuple[tuple[int, Signal, PageSource], ...]:
    return tuple(
        (column, signal, parse_source(signal.source[engine]))
        for column, signal in enumerate(_SIGNALS)
        if engine in signal.source
    )


def _parts(engine: Live) -> list[PageNumber]:
    return [
        part for _, _, source in _sources(engine) for alternative in source for part in alternative
    ]


@cache
def _histogram_names(engine: Live) -> frozenset[str]:
    return frozenset(part.name for part in _parts(engine) if part.quantile is not None)


@cache
def _wanted_names() -> frozenset[str]:
    return frozenset(part.sample_name for engine in ENGINES.values() for part in _parts(engine))

"""How long answers will be: mean and quantiles, learned online from those that ended.

`OutputLengths` keeps one record of fixed size, so its memory is bounded whatever comes, and what it
learned can be saved and loaded. A prediction takes about a microsecond, learning a few.

Does not know: requests of the live gateway (`runtime/understanding`), or prompts.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from .length_keys import fill_keys
from .output_length_kernel import (
    INITIAL_WEIGHT,
    LENGTHS_DTYPE,
    NUM_BINS,
    NUM_KEYS,
    NUM_QUANTILES,
    WHOLE,
    learn_in,
    predict_in,
)

# tokens; the longest answer that is told from longer ones
_MOST_TOKENS = 131_072
# Bins of one length each, from 0.
_NUM_SINGLE = 12
# tokens, and spread of the logarithm, of an answer before any was seen: median and spread of
# sharegpt answers (10,000 first turns, Llama-2 tokens: p50 286, p95 839)
_PRIOR_TOKENS, _PRIOR_LOG_STD = 200.0, 1.2


def _edges() -> NDArray[np.float64]:
    """Return the bounds of the bins: single lengths, then each wider than the one before."""
    wide = np.geomspace(_NUM_SINGLE, _MOST_TOKENS, NUM_BINS - _NUM_SINGLE + 1)
    edges = np.concatenate([np.arange(_NUM_SINGLE), np.round(wide)])
    for b in range(1, edges.size):
        edges[b] = max(edges[b], edges[b - 1] + 1.0)
    return edges


def _prior(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each bin before any answer was seen."""
    middle = np.log(np.maximum(0.5 * (edges[:-1] + edges[1:]), 0.5))
    density = np.exp(-0.5 * ((middle - np.log(_PRIOR_TOKENS)) / _PRIOR_LOG_STD) ** 2)
    weights = density * np.diff(np.log(np.maximum(edges, 0.5)))
    return np.asarray(weights / weights.sum())


def new_lengths() -> NDArray[np.void]:
    """Return the record of a predictor that has seen nothing, shape [1]."""
    state = np.zeros(1, LENGTHS_DTYPE)
    state["edges"][0] = _edges()
    state["prior"][0] = _prior(state["edges"][0])
    state["weights"][0] = INITIAL_WEIGHT
    return state


class LengthClass(msgspec.Struct, kw_only=True, gc=False, frozen=True):
    """What a request is known by when the length of its answer is to be told.

    Names are hashes of 64 bits; 0 stands for none.
    """

    model: int = 0
    tenant: int = 0
    application: int = 0
    """User agent, or what a header names."""
    session: int = 0
    head: int = 0
    """Of the prompt's beginning, which most requests of an application share."""
    input_tokens: int
    most_tokens: int
    """Limit of the request, or what its model can give."""
    is_limited: bool = True
    """Whether the request itself names the limit."""
    is_greedy: bool = False
    """Temperature 0."""
    cluster: int = 0


class LengthPrediction(NamedTuple):
    """What is said of an answer's length, in tokens; the names are those of `QUANTILES`."""

    mean: float
    p05: float
    p50: float
    p90: float
    p95: float


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """A predictor of answer lengths with what it has learned."""

    state: NDArray[np.void]
    """As `new_lengths` makes it; changed in place."""

    @classmethod
    def new(cls) -> "OutputLengths":
        """One that has seen nothing."""
        return cls(new_lengths())

    def keys(self, request: LengthClass) -> NDArray[np.uint64]:
        """Return the keys of a request's histograms, [NUM_KEYS]."""
        keys = np.empty(NUM_KEYS, np.uint64)
        limit = request.most_tokens if request.is_limited else 0
        fill_keys(
            keys,
            request.model,
            request.tenant,
            request.application,
            request.session,
            request.head,
            request.input_tokens,
            -1 - limit if request.is_greedy else limit,
            request.cluster,
        )
        return keys

    def predict(self, keys: NDArray[np.uint64], most_tokens: int) -> LengthPrediction:
        """Return what is expected of an answer of at most so many tokens."""
        out = np.empty(NUM_QUANTILES)
        mean = predict_in(self.state, keys, float(most_tokens), out)
        return LengthPrediction(mean, *out.tolist())

    def learn(
        self,
        keys: NDArray[np.uint64],
        output_tokens: int,
        *,
        cut: int = WHOLE,
        issued: LengthPrediction | None = None,
        most_tokens: float = math.inf,
    ) -> None:
        """Learn from an answer that ended; `cut` as in `output_length_kernel`.

        `issued` is what had been said of it, as an answer of at most `most_tokens`.
        """
        given = np.full(NUM_QUANTILES, np.nan) if issued is None else np.array(issued[1:])
        learn_in(self.state, keys, float(output_tokens), cut, float(most_tokens), given)

    @property
    def num_learned(self) -> int:
        """Answers learned from."""
        return int(self.state["num_learned"][0])

    @property
    def num_evicted(self) -> int:
        """Histograms that made room for others."""
        return int(self.state["num_evicted"][0])

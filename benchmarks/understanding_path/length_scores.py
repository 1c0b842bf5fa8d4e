"""How well answer lengths are predicted: coverage and loss, against simple predictors.

Each request is predicted as it arrives, from those that had ended by then. Losses count from the
500th request on. The rivals: quantiles of all lengths so far; and the mean that the simulator's
gateway keeps (an exponential mean a priority class), as the only number that it has.

Does not know: where the streams come from (`length_streams.py`).
"""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from understanding_path.length_streams import Answer

from trimtab.agents.output_length import LengthClass, LengthPrediction, OutputLengths
from trimtab.agents.output_length_kernel import AT_LIMIT, QUANTILES, WHOLE
from trimtab.env.simulator.gateway import OUTPUT_TOKENS_GAIN

# Requests at the beginning that no loss counts.
WARM_UP = 500
_INITIAL_TOKENS = 200.0


def pinball(actual: NDArray[np.float64], predicted: NDArray[np.float64], level: float) -> float:
    """Return the mean pinball loss in tokens."""
    error = actual - predicted
    return float(np.mean(np.maximum(level * error, (level - 1.0) * error)))


def _class_of(answer: Answer, without: frozenset[str]) -> LengthClass:
    """Return what a request is known by, some of it left out."""
    known = {
        name: getattr(answer, name)
        for name in ("tenant", "application", "session", "cluster")
        if name not in without
    }
    return LengthClass(
        input_tokens=1 if "input_tokens" in without else answer.input_tokens,
        most_tokens=answer.most_tokens,
        is_limited=answer.is_limited,
        **known,
    )


class _GlobalQuantiles:
    """Quantiles of the last so many lengths, whatever the request."""

    def __init__(self, memory: int = 2000) -> None:
        self._lengths: list[float] = []
        self._memory = memory
        self._cached = np.full(len(QUANTILES), _INITIAL_TOKENS)

    def predict(self, most_tokens: int) -> NDArray[np.float64]:
        return np.minimum(self._cached, most_tokens)

    def learn(self, length: int) -> None:
        self._lengths.append(length)
        del self._lengths[: -self._memory]
        if len(self._lengths) % 20 == 0:
            self._cached = np.quantile(self._lengths, QUANTILES)


def predict_all(
    answers: Sequence[Answer], without: frozenset[str] = frozenset()
) -> tuple[NDArray[np.float64], ...]:
    """Return (ours [N, 5]: mean and quantiles; quantiles of all [N, 4]; exponential mean [N])."""
    ours, rival, mean = OutputLengths.new(), _GlobalQuantiles(), _INITIAL_TOKENS
    predictions, quantiles, means = [], [], []
    pending: list[tuple[float, int, NDArray[np.uint64], LengthPrediction]] = []
    for number, answer in enumerate(answers):
        while pending and pending[0][0] <= answer.arrived_at_s:
            _, done, keys, issued = heapq.heappop(pending)
            ended = answers[done]
            is_cut = ended.is_limited and ended.output_tokens >= ended.most_tokens
            cut = AT_LIMIT if is_cut else WHOLE
            ours.learn(
                keys, ended.output_tokens, cut=cut, issued=issued, most_tokens=ended.most_tokens
            )
            rival.learn(ended.output_tokens)
            mean += OUTPUT_TOKENS_GAIN * (ended.output_tokens - mean)
        keys = ours.keys(_class_of(answer, without))
        predicted = ours.predict(keys, answer.most_tokens)
        predictions.append(predicted)
        quantiles.append(rival.predict(answer.most_tokens))
        means.append(min(mean, answer.most_tokens))
        heapq.heappush(pending, (answer.ended_at_s, number, keys, predicted))
    return np.array(predictions), np.array(quantiles), np.array(means)


def score(answers: Sequence[Answer], without: frozenset[str] = frozenset()) -> dict[str, float]:
    """Return coverage and losses of a stream."""
    ours, quantiles, means = (part[WARM_UP:] for part in predict_all(answers, without))
    actual = np.array([float(answer.output_tokens) for answer in answers[WARM_UP:]])
    tenant = np.array([answer.tenant for answer in answers[WARM_UP:]])
    is_covered = actual <= ours[:, 3]
    worst = [np.mean(is_covered[tenant == t]) for t in set(tenant) if np.sum(tenant == t) >= 200]
    recent = np.convolve(is_covered, np.ones(500) / 500, "valid")
    return {
        "requests": len(answers),
        "p90_coverage": float(np.mean(is_covered)),
        "p90_coverage_worst_tenant": float(min(worst)),
        "p90_coverage_worst_500": float(recent.min()),
        "interval_90_coverage": float(np.mean((ours[:, 1] <= actual) & (actual <= ours[:, 4]))),
        "p90_pinball": pinball(actual, ours[:, 3], 0.9),
        "p90_pinball_all_lengths": pinball(actual, quantiles[:, 2], 0.9),
        "p90_pinball_exponential_mean": pinball(actual, means, 0.9),
        "p50_pinball": pinball(actual, ours[:, 2], 0.5),
        "p50_pinball_all_lengths": pinball(actual, quantiles[:, 1], 0.5),
        "p50_pinball_exponential_mean": pinball(actual, means, 0.5),
        "mean_error": float(np.mean(np.abs(actual - ours[:, 0]))),
        "mean_error_exponential_mean": float(np.mean(np.abs(actual - means))),
        "root_mean_square": float(np.sqrt(np.mean((actual - ours[:, 0]) ** 2))),
        "root_mean_square_exponential_mean": float(np.sqrt(np.mean((actual - means) ** 2))),
        "bias": float(np.mean(ours[:, 0] - actual)),
    }

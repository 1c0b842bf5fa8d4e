"""Shadow first: a policy decides beside the fallback until it is shown to do better, then serves.

The windows of the last span are kept. Once there is a whole span of them, the rule is asked after
each window; the gain that it sees is the lower bound of a paired difference, by a bootstrap over
blocks of neighbouring windows, as neighbours are alike.

Does not know: knobs, processes, or how a gain is measured (`env/regret.py`).
Source: moving block bootstrap, Kuensch, Annals of Statistics 1989.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from ...env.regret import Regret
from .promotion_rule import PromotionRule, parse_promotion_rule

_NUM_RESAMPLES = 1000


class Phase(StrEnum):
    """Where a policy stands."""

    SHADOW = "shadow"
    """It decides, and nothing obeys."""
    PROMOTED = "promoted"
    """It serves, unless it is in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionConfig:
    """How long a policy decides in shadow, and when it is promoted.

    Raises:
        ValueError: a span is not above 0, or the confidence not in (0.5, 1).
    """

    span_s: float = 600.0
    """Least time in shadow; the rule looks at so much of the past."""
    window_s: float = 2.0
    """Length of a window."""
    rule: PromotionRule = field(
        default_factory=lambda: parse_promotion_rule("gain > 0.0 and doubts < 0.05")
    )
    confidence: float = 0.95
    """One-sided confidence of the gain's lower bound."""

    def __post_init__(self) -> None:
        for name in ("span_s", "window_s"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be above 0, got {getattr(self, name)}"
                raise ValueError(msg)
        if not 0.5 < self.confidence < 1:
            msg = f"confidence must be in (0.5, 1), got {self.confidence}"
            raise ValueError(msg)

    @property
    def num_windows(self) -> int:
        """Windows of a span."""
        return max(1, round(self.span_s / self.window_s))


@dataclass(frozen=True, slots=True)
class ShadowWindow:
    """What a window in shadow told."""

    gain: Regret
    """Policy minus fallback."""
    has_doubt: bool
    is_overridden: bool


class Promotion:
    """The state of one policy on its way to serving."""

    def __init__(self, config: PromotionConfig) -> None:
        self.config = config
        self.phase = Phase.SHADOW
        self._windows: deque[ShadowWindow] = deque(maxlen=config.num_windows)

    def step(self, window: ShadowWindow, *, may_promote: bool = True) -> Phase:
        """Take in a window; return the phase from here on."""
        if self.phase is Phase.SHADOW:
            self._windows.append(window)
            is_whole = len(self._windows) == self.config.num_windows
            if may_promote and is_whole and not self.unmet():
                self.phase = Phase.PROMOTED
        return self.phase

    @property
    def progress_frac(self) -> float:
        """Share of the span that has passed."""
        return len(self._windows) / self.config.num_windows

    def unmet(self) -> tuple[str, ...]:
        """Return what of the rule is not met by the windows so far."""
        return tuple(map(str, self.config.rule.unmet(self.figures())))

    def figures(self) -> dict[str, float]:
        """Return the figures that a rule may speak of."""
        num = len(self._windows)
        return {
            "gain": self.gain_lower(),
            "doubts": sum(w.has_doubt for w in self._windows) / num if num else np.nan,
            "overrides": sum(w.is_overridden for w in self._windows) / num if num else np.nan,
            "windows": float(num),
            "samples": float(sum(w.gain.num_sampled for w in self._windows)),
        }

    def gain_lower(self) -> float:
        """Return the lower bound of the gain; minus infinity where nothing was sampled."""
        gains = [window.gain for window in self._windows if window.gain.num_sampled > 0]
        weights = np.array([gain.num_sampled for gain in gains], float)
        means = np.array([gain.mean for gain in gains], float)
        return block_bootstrap_lower(means, weights, confidence=self.config.confidence)


def block_bootstrap_lower(
    means: np.ndarray, weights: np.ndarray, *, confidence: float, seed: int = 0
) -> float:
    """Return the lower confidence bound of a weighted mean of a series.

    Shapes: `means` and `weights` [n], in order of time. Minus infinity if n is 0.
    """
    num = means.size
    if num == 0:
        return -np.inf
    length = max(1, round(num ** (1 / 3)))
    # Sums of every block, the series taken for a circle so that its ends count like the rest.
    around = np.arange(num)[:, None] + np.arange(length)[None, :]
    values = (means * weights)[around % num].sum(axis=1)
    masses = weights[around % num].sum(axis=1)
    chosen = np.random.default_rng(seed).integers(0, num, size=(_NUM_RESAMPLES, -(-num // length)))
    resampled = values[chosen].sum(axis=1) / masses[chosen].sum(axis=1)
    return float(np.quantile(resampled, 1.0 - confidence))

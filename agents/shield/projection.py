"""Projection: what a policy proposes, brought within the limits of what it may set.

Each knob has a range and a largest change per second; knobs that a policy may not move stay those
of the base. A positive knob changes by a factor, so its change is limited in the logarithm. A
proposal within the limits passes bit for bit; of any other, the amount taken off is reported.

Does not know: whether a proposal is any good (`fallback.py`), or moves of capacity
(`move_projection.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from ...env.config_file import Entry, known_name
from ...env.knobs import (
    BIAS_LIMIT,
    BIAS_SCALE,
    HIGH_VALUES,
    KNOB_INDEX,
    KNOB_NAMES,
    KNOB_SPECS,
    LOW_VALUES,
    FloatArray,
    Knobs,
)
from .doubt import Doubt

BIAS_NAME = "replica_bias"
"""What the bias is called where knobs are named."""

_IS_LOG = LOW_VALUES > 0.0
_RESIDUAL_SCALES = np.array([spec.residual_scale for spec in KNOB_SPECS])
_RANGES = np.where(
    _IS_LOG, np.log(HIGH_VALUES / np.where(_IS_LOG, LOW_VALUES, 1.0)), HIGH_VALUES - LOW_VALUES
)
# What an override of a knob is measured in, in the logarithm where it is positive.
_UNITS = np.where(_RESIDUAL_SCALES > 0.0, _RESIDUAL_SCALES, _RANGES)
# A change counts as too fast only from this share beyond its limit: rounding alone passes.
_SLACK = 1e-9
# Exponents of larger changes overflow, and no range is as wide.
_LARGEST_LOG_CHANGE = 600.0
# Overrides beyond this many units say no more.
_LARGEST_SIZE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobLimit:
    """Limits of one knob, or of the bias of all replicas; None leaves what is.

    Raises:
        ValueError: the name is unknown, or a number is beyond what the knob can be.
    """

    knob: str
    """Name of a knob, or `replica_bias`."""
    low: float | None = None
    """Least value; none: that of the knob."""
    high: float | None = None
    """Largest value, of the bias both ways; none: that of the knob."""
    max_change_per_s: float | None = None
    """In the natural logarithm for a positive knob: 0.1 lets it grow by some 10 % in a second."""
    is_movable: bool | None = None
    """Whether a policy may move it; else it stays that of the base."""

    def __post_init__(self) -> None:
        least, most = -BIAS_LIMIT, BIAS_LIMIT
        if self.knob != BIAS_NAME:
            # `Knobs` refuses unknown names, and names the nearest.
            Knobs()[self.knob]
            spec = KNOB_SPECS[KNOB_INDEX[self.knob]]
            least, most = spec.low, spec.high
        elif self.low is not None or self.is_movable is not None:
            msg = f"{BIAS_NAME} takes 'high' (the limit both ways) and 'max_change_per_s' only"
            raise ValueError(msg)
        low = least if self.low is None else self.low
        high = most if self.high is None else self.high
        if not least <= low <= high <= most:
            msg = f"limit of '{self.knob}' must lie in [{least:g}, {most:g}], got [{low}, {high}]"
            raise ValueError(msg)
        if self.knob == BIAS_NAME and high < 0.0:
            msg = f"high of '{self.knob}' must be at least 0, got {high}"
            raise ValueError(msg)
        if self.max_change_per_s is not None and not self.max_change_per_s >= 0.0:
            rate = self.max_change_per_s
            msg = f"max_change_per_s of '{self.knob}' must be at least 0, got {rate}"
            raise ValueError(msg)

    def sentence(self) -> str:
        """Return the rule in words."""
        bounds = (("at least", self.low), ("at most", self.high))
        parts = [f"{words} {value:g}" for words, value in bounds if value is not None]
        if self.max_change_per_s is not None:
            parts.append(f"changed by at most {self.max_change_per_s:g} a second")
        if self.is_movable is not None:
            parts.append("moved by a policy" if self.is_movable else "moved by no policy")
        what = f"Knob '{self.knob}'" if self.knob != BIAS_NAME else "The bias of each replica"
        return f"{what} is {', '.join(parts) or 'as by default'}."


def _is_known(name: str) -> str:
    return known_name("knob", name, (*KNOB_NAMES, BIAS_NAME))


class LimitEntry(Entry):
    """One entry of `limits:` in a policy file."""

    knob: Annotated[str, AfterValidator(_is_known)]
    low: float | None = None
    high: float | None = None
    max_change_per_s: float | None = Field(default=None, ge=0)
    is_movable: bool | None = None

    def limit(self) -> KnobLimit:
        """Return what the entry says.

        Raises:
            ValueError: a number is beyond what the knob can be.
        """
        return KnobLimit(**{name: getattr(self, name) for name in type(self).model_fields})


def _default_change_per_s() -> FloatArray:
    """A policy's full swing takes two seconds, its window; knobs without one change at once."""
    return np.where(_RESIDUAL_SCALES > 0.0, _RESIDUAL_SCALES, np.inf)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnobLimits:
    """What a policy may set, and how fast.

    Shapes: all arrays [len(KNOB_SPECS)].

    Raises:
        ValueError: a range is empty or wider than the knob's own, or a rate below 0.
    """

    low: FloatArray = field(default_factory=LOW_VALUES.copy)
    high: FloatArray = field(default_factory=HIGH_VALUES.copy)
    change_per_s: FloatArray = field(default_factory=_default_change_per_s)
    """Largest change in a second, in the logarithm where the knob is positive; may be infinite."""
    is_movable: NDArray[np.bool_] = field(
        default_factory=lambda: np.array([spec.is_tunable for spec in KNOB_SPECS])
    )
    """Knobs that a policy may move."""
    bias_limit: float = BIAS_LIMIT
    bias_change_per_s: float = BIAS_SCALE

    def __post_init__(self) -> None:
        is_range = (self.low >= LOW_VALUES) & (self.low <= self.high) & (self.high <= HIGH_VALUES)
        is_bad = ~(is_range & (self.change_per_s >= 0.0))
        if is_bad.any():
            place = int(is_bad.argmax())
            spec = KNOB_SPECS[place]
            msg = (
                f"limits of knob '{spec.name}' must be a range in [{spec.low:g}, {spec.high:g}] "
                f"and a rate of at least 0, got [{self.low[place]:g}, {self.high[place]:g}] and "
                f"{self.change_per_s[place]:g}"
            )
            raise ValueError(msg)
        if not (0.0 <= self.bias_limit <= BIAS_LIMIT and self.bias_change_per_s >= 0.0):
            msg = (
                f"bias_limit must be in [0, {BIAS_LIMIT:g}] and bias_change_per_s at least 0, got "
                f"{self.bias_limit} and {self.bias_change_per_s}"
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, limits: Sequence[KnobLimit]) -> "KnobLimits":
        """Return the default limits with some of them replaced; of two for a knob, the later."""
        made = cls()
        bias = {"bias_limit": made.bias_limit, "bias_change_per_s": made.bias_change_per_s}
        for limit in limits:
            places: tuple[tuple[np.ndarray, float | None], ...] = (
                (made.low, limit.low),
                (made.high, limit.high),
                (made.change_per_s, limit.max_change_per_s),
                (made.is_movable, limit.is_movable),
            )
            if limit.knob == BIAS_NAME:
                given = {"bias_limit": limit.high, "bias_change_per_s": limit.max_change_per_s}
                bias |= {name: value for name, value in given.items() if value is not None}
                continue
            for array, value in places:
                if value is not None:
                    array[KNOB_INDEX[limit.knob]] = value
        return cls(
            low=made.low,
            high=made.high,
            change_per_s=made.change_per_s,
            is_movable=made.is_movable,
            **bias,
        )

    def bounded(self, knobs: Knobs) -> Knobs:
        """Return knobs within the ranges, however far away they were."""
        bias = np.clip(knobs.replica_bias, -self.bias_limit, self.bias_limit)
        return Knobs(np.clip(knobs.values, self.low, self.high), bias)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """A proposal within the limits, and what that took.

    Shapes: `clamped` [K], `bias_clamped` [R]: what was added to each proposed number.
    """

    knobs: Knobs
    clamped: FloatArray
    bias_clamped: FloatArray
    size: float
    """Largest change of one number, in units of what action 1 of a policy moves it by, or of its
    range if no action does; at most 100."""

    @property
    def is_overridden(self) -> bool:
        """Whether any number was changed."""
        return bool(self.clamped.any() or self.bias_clamped.any())

    def clamped_by_name(self) -> dict[str, float]:
        """Return what was added to each knob that was changed, and the largest such of the bias."""
        named = {
            name: float(amount)
            for name, amount in zip(KNOB_NAMES, self.clamped, strict=True)
            if amount
        }
        if self.bias_clamped.any():
            named[BIAS_NAME] = float(self.bias_clamped[np.abs(self.bias_clamped).argmax()])
        return named


def _numbers(proposed: object, sizes: tuple[int, ...]) -> FloatArray | Doubt:
    """Return what was proposed as a vector of one of these sizes, or what is wrong with it."""
    try:
        array = np.asarray(proposed)
    except (TypeError, ValueError):
        return Doubt.WRONG_SHAPE
    if array.ndim != 1 or array.size not in sizes or array.dtype.kind not in "fiub":
        return Doubt.WRONG_SHAPE
    numbers: FloatArray = array.astype(np.float64)
    return numbers if np.isfinite(numbers).all() else Doubt.NOT_FINITE


def _slowed(
    proposed: FloatArray, current: FloatArray, change: FloatArray, is_log: NDArray[np.bool_]
) -> FloatArray:
    """Return numbers that are no further from the current ones than the change allows."""
    factor = np.exp(np.where(is_log, np.minimum(change, _LARGEST_LOG_CHANGE), 0.0))
    low = np.where(is_log, current / factor, current - change)
    high = np.where(is_log, current * factor, current + change)
    slack = _SLACK * np.maximum(np.abs(current), np.where(is_log, 0.0, 1.0))
    moved = np.where(proposed > high + slack, high, proposed)
    return np.where(proposed < low - slack, low, moved)


def _padded(bias: FloatArray, num_replicas: int) -> FloatArray:
    """Return a bias for each replica, 0 where there was none."""
    padded = np.zeros(num_replicas)
    padded[: bias.size] = bias[:num_replicas]
    return padded


def _allowed_change(change_per_s: FloatArray, span_s: float) -> FloatArray:
    """Return the change allowed in a span; a clock that ran back has let no time pass."""
    change: FloatArray = np.full(change_per_s.shape, np.inf)
    seconds = span_s if span_s > 0.0 else 0.0
    np.multiply(change_per_s, seconds, out=change, where=np.isfinite(change_per_s))
    return change


def _size(proposed: FloatArray, made: FloatArray, bias_clamped: FloatArray) -> float:
    tiny = np.finfo(np.float64).tiny
    logs = [np.log(np.where(_IS_LOG, np.maximum(x, tiny), 1.0)) for x in (proposed, made)]
    distance = np.where(_IS_LOG, logs[0] - logs[1], proposed - made)
    sizes = (np.abs(distance), _UNITS), (np.abs(bias_clamped), BIAS_SCALE)
    return float(max((np.minimum(d, _LARGEST_SIZE * u) / u).max(initial=0.0) for d, u in sizes))


def project(
    proposed_values: object,
    proposed_bias: object,
    *,
    current: Knobs,
    base: Knobs,
    num_replicas: int,
    span_s: float,
    limits: KnobLimits,
) -> Projection | Doubt:
    """Return a proposal within the limits, or why there is no telling what it means.

    `current` are the knobs that the policy set last, `span_s` ago; `base` has the knobs that it may
    not move. Ranges hold even where the rate would not let it get there yet.

    Shapes: `proposed_values` [len(KNOB_SPECS)], `proposed_bias` [num_replicas], or [0] for none;
    they may hold anything. The bias of the result is [num_replicas].
    """
    values = _numbers(proposed_values, (len(KNOB_SPECS),))
    bias = _numbers(proposed_bias, (0, num_replicas))
    for vector in (values, bias):
        if isinstance(vector, Doubt):
            return vector
    assert not isinstance(values, Doubt), values
    assert not isinstance(bias, Doubt), bias
    bias, before = (_padded(b, num_replicas) for b in (bias, current.replica_bias))
    change = _allowed_change(limits.change_per_s, span_s)
    moved = _slowed(values, current.values, change, _IS_LOG)
    made = np.clip(np.where(limits.is_movable, moved, base.values), limits.low, limits.high)
    bias_change = _allowed_change(np.full(num_replicas, limits.bias_change_per_s), span_s)
    moved = _slowed(bias, before, bias_change, np.zeros(num_replicas, np.bool_))
    made_bias = np.clip(moved, -limits.bias_limit, limits.bias_limit)
    return Projection(
        knobs=Knobs(made, made_bias),
        clamped=made - values,
        bias_clamped=made_bias - bias,
        size=_size(values, made, made_bias - bias),
    )

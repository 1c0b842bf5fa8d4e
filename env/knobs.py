"""Knobs: the one set of numbers through which every scheduler steers the fleet.

A heuristic is a constant setting of the knobs, the tuned scorer another, and the learned policy
one that moves every window. `KNOB_SPECS` is the only place where a knob's bounds, default and
meaning are written; the record that the compiled kernel reads is made from it.

Does not know: how the knobs are used (`dispatch.py`) or who sets them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobSpec:
    """Name, bounds and meaning of one knob."""

    name: str
    default: float
    low: float
    high: float
    description: str
    residual_scale: float = 0.0
    """How far action 1 of the learned policy moves it: a log factor if positive, else a shift."""
    is_tunable: bool = False

    @property
    def is_log(self) -> bool:
        """Whether tuning and residuals work on the logarithm: true where the low bound is > 0."""
        return self.low > 0.0


def _weight(name: str, description: str, high: float = 1e3) -> KnobSpec:
    return KnobSpec(name=name, default=0.0, low=-high, high=high, description=description)


def _tunable(
    name: str,
    bounds: tuple[float, float, float],
    residual_scale: float,
    description: str,
) -> KnobSpec:
    low, default, high = bounds
    return KnobSpec(
        name=name,
        default=default,
        low=low,
        high=high,
        description=description,
        residual_scale=residual_scale,
        is_tunable=True,
    )


def _form(
    name: str,
    bounds: tuple[float, float, float],
    residual_scale: float,
    description: str,
) -> KnobSpec:
    """Return a knob that is fitted once, and not moved by a policy."""
    return replace(_tunable(name, bounds, residual_scale, description), is_tunable=False)


KNOB_SPECS: tuple[KnobSpec, ...] = (
    # Terms that the usual heuristics are made of; all off by default.
    _weight("random_weight", "uniform noise in [0, 1) per candidate"),
    _weight("round_robin_weight", "distance from the round-robin cursor, in [0, 1)"),
    _weight("session_hash_weight", "rendezvous hash of session and replica, in [0, 1)"),
    _weight(
        "outstanding_requests_weight", "requests sent and not finished, counted by the gateway"
    ),
    _weight("outstanding_tokens_weight", "their prompt plus half their expected output, tokens"),
    _weight("pending_tokens_weight", "uncached prompt tokens without a first token, own included"),
    _weight("running_weight", "running requests on the last scraped metrics page"),
    _weight("waiting_weight", "waiting requests on the last scraped metrics page"),
    _weight("waiting_share_weight", "waiting requests, scaled over the candidates to [0, 1]"),
    _weight("kv_usage_weight", "share of KV pages in use on the last scraped page"),
    _weight("cached_tokens_weight", "tokens in the replica's prefix cache over its KV capacity"),
    _weight("prefix_miss_weight", "share of the prompt not in the replica's prefix cache"),
    _weight("predicted_ttft_weight", "predicted TTFT, per second"),
    # The analytic scorer. `scorer_weight` 0 switches the whole group off.
    KnobSpec(
        name="scorer_weight",
        default=0.0,
        low=0.0,
        high=1.0,
        description="predicted TTFT over its limit; 0 or 1",
    ),
    _tunable("backlog", (0.05, 1.0, 4.0), 0.5, "prefill work ahead, per nominal second of it"),
    _tunable("elapsed", (0.01, 0.5, 2.0), 0.5, "backlog written off per second since progress"),
    _tunable("iteration", (0.01, 0.5, 4.0), 0.5, "predicted decode iteration time in the TTFT"),
    _tunable("tpot_hinge_weight", (0.01, 2.0, 20.0), 0.5, "predicted TPOT over its threshold"),
    _tunable("tpot_hinge_ratio", (0.2, 0.8, 3.0), 0.3, "threshold of that hinge, in TPOT limits"),
    _tunable("kv_hinge_weight", (0.01, 2.0, 20.0), 0.5, "KV usage above 0.8"),
    _tunable("batch_weight", (0.01, 2.0, 50.0), 0.5, "running requests / 64 x weight time / TPOT"),
    _tunable("hit_weight", (0.01, 0.5, 8.0), 0.5, "prompt share found in the prefix cache"),
    _tunable("externality_interactive", (-4.0, 0.0, 4.0), 0.5, "own prefill time, class 0"),
    _tunable("externality_batch", (-4.0, 0.0, 4.0), 0.5, "own prefill time, class 1"),
    _tunable("ttft_drift", (0.01, 0.5, 3.0), 0.4, "exponent of observed over predicted TTFT"),
    _tunable("iteration_drift", (0.01, 1.0, 3.0), 0.4, "exponent of measured iteration time ratio"),
    _tunable("shed_interactive", (0.1, 2.0, 50.0), 0.4, "shed above this predicted TTFT / limit"),
    _tunable("shed_batch", (0.1, 2.0, 50.0), 0.4, "the same for class 1"),
    # What counts where the worth of a placement is judged (`lookahead/`), and nowhere else.
    _tunable("slo_margin", (0.3, 0.9, 1.5), 0.2, "limits that outcomes are judged by / the real"),
    _tunable("price_interactive", (0.0, 0.0, 8.0), 0.3, "worth asked per own prefill / TTFT limit"),
    _tunable("price_batch", (0.0, 0.0, 8.0), 0.3, "the same for class 1"),
    _tunable("cost_weight", (1e-5, 1e-3, 10.0), 0.5, "worth given up per unit of scorer cost"),
    KnobSpec(
        name="value_weight",
        default=0.0,
        low=0.0,
        high=1.0,
        description="place by worth, as the value network foretells it; 0 or 1",
    ),
    # How the value network's closed form foretells an outcome (`value/features.py`); a policy moves
    # the prices of what is to come, of waits for KV, and of what others lose.
    _form("value_growth", (0.01, 1.0, 8.0), 0.4, "share of those that wait that decode beside it"),
    _tunable("value_future", (0.0, 0.0, 4.0), 0.3, "exponent of what load to come does to TPOT"),
    _tunable("value_queue", (0.0, 0.0, 4.0), 0.3, "exponent of what load to come does to class 1"),
    _form("value_stall", (0.01, 1.0, 16.0), 0.4, "what known prefill costs those that decode"),
    _form("value_ramp", (0.02, 0.3, 3.0), 0.4, "TTFT share over which a chance falls from 1 to 0"),
    _form("value_center", (0.3, 1.0, 2.0), 0.15, "TTFT share at which that chance is a half"),
    _form("value_length", (0.1, 1.0, 8.0), 0.4, "tokens left / those that were seen on average"),
    _tunable("value_kv", (0.05, 1.0, 16.0), 0.4, "wait for KV or a slot, beside what is foretold"),
    _tunable("value_loss", (0.05, 1.0, 16.0), 0.4, "what the others lose, beside what is gained"),
    _tunable("value_doubt", (-4.0, 0.0, 4.0), 0.3, "worth given up for chances that become unsure"),
    # Gates and limits.
    KnobSpec(
        name="shed_enabled",
        default=0.0,
        low=0.0,
        high=1.0,
        description="whether the shed thresholds are obeyed; 0 or 1",
    ),
    KnobSpec(
        name="num_choices",
        default=0.0,
        low=0.0,
        high=1024.0,
        description="candidates drawn at random per request; 0 means all",
    ),
    KnobSpec(
        name="balance_abs_requests",
        default=0.0,
        low=0.0,
        high=1e6,
        description="cache-aware gate: imbalance in requests that switches to shortest queue",
    ),
    KnobSpec(
        name="balance_ratio",
        default=0.0,
        low=0.0,
        high=1e3,
        description="cache-aware gate: imbalance ratio that is needed as well",
    ),
    KnobSpec(
        name="hit_threshold_frac",
        default=0.0,
        low=0.0,
        high=1.0,
        description="cache-aware gate: matched share above which the best match is taken; 0 is off",
    ),
    KnobSpec(
        name="batch_tokens_scale",
        default=1.0,
        low=0.125,
        high=4.0,
        description="factor on each replica's token budget per iteration",
    ),
    KnobSpec(
        name="max_num_seqs_frac",
        default=1.0,
        low=0.05,
        high=1.0,
        description="share of each replica's sequence slots that may be used",
    ),
)

KNOB_NAMES: tuple[str, ...] = tuple(spec.name for spec in KNOB_SPECS)
KNOB_INDEX: dict[str, int] = {name: i for i, name in enumerate(KNOB_NAMES)}
KNOBS_DTYPE = np.dtype([(name, np.float64) for name in KNOB_NAMES])
TUNABLE_KNOBS: tuple[str, ...] = tuple(spec.name for spec in KNOB_SPECS if spec.is_tunable)
WORTH_KNOBS: tuple[str, ...] = (
    *("slo_margin", "price_interactive", "price_batch", "cost_weight"),
    *("value_future", "value_queue", "value_kv", "value_loss", "value_doubt"),
)
"""Tunable knobs that count only where the worth of a placement is judged."""
VALUE_KNOBS: tuple[str, ...] = tuple(
    spec.name
    for spec in KNOB_SPECS
    if spec.name.startswith("value_") and spec.name != "value_weight" and not spec.is_tunable
)
"""Other knobs of the value network's closed form; fitted, and not moved by a policy."""
SCORER_KNOBS: tuple[str, ...] = tuple(name for name in TUNABLE_KNOBS if name not in WORTH_KNOBS)
"""Tunable knobs of the analytic scorer."""

DEFAULT_VALUES: FloatArray = np.array([spec.default for spec in KNOB_SPECS])
LOW_VALUES: FloatArray = np.array([spec.low for spec in KNOB_SPECS])
HIGH_VALUES: FloatArray = np.array([spec.high for spec in KNOB_SPECS])
BIAS_LIMIT = 2.0
"""Largest per-replica bias, in units of the score (predicted TTFT over its limit)."""


def _unknown_knob(name: str) -> ValueError:
    near = get_close_matches(name, KNOB_NAMES, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ValueError(f"unknown knob '{name}'{hint}; known knobs: {', '.join(KNOB_NAMES)}")


@dataclass(frozen=True, slots=True, eq=False)
class Knobs:
    """One setting of every knob, with an optional additive bias for each replica.

    Shapes: `values` [len(KNOB_SPECS)], `replica_bias` [num_replicas] or [0] for none.

    Raises:
        ValueError: a value is not finite or outside its bounds.
    """

    values: FloatArray = field(default_factory=DEFAULT_VALUES.copy)
    replica_bias: FloatArray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if self.values.shape != (len(KNOB_SPECS),):
            msg = f"knob vector must have shape ({len(KNOB_SPECS)},), got {self.values.shape}"
            raise ValueError(msg)
        is_bad = ~((self.values >= LOW_VALUES) & (self.values <= HIGH_VALUES))
        if is_bad.any():
            spec = KNOB_SPECS[int(np.argmax(is_bad))]
            msg = (
                f"knob '{spec.name}' must be in [{spec.low:g}, {spec.high:g}], "
                f"got {self.values[KNOB_INDEX[spec.name]]:g}"
            )
            raise ValueError(msg)
        if not np.all(np.abs(self.replica_bias) <= BIAS_LIMIT):
            msg = f"replica_bias must be within +-{BIAS_LIMIT:g}, got {self.replica_bias}"
            raise ValueError(msg)

    @classmethod
    def of(cls, **values: float) -> "Knobs":
        """Make knobs from names; what is not named keeps its default."""
        return cls().replace(values)

    def replace(self, values: Mapping[str, float]) -> "Knobs":
        """Return a copy with the named knobs changed."""
        changed = self.values.copy()
        for name, value in values.items():
            if name not in KNOB_INDEX:
                raise _unknown_knob(name)
            changed[KNOB_INDEX[name]] = value
        return Knobs(changed, self.replica_bias)

    def with_bias(self, replica_bias: FloatArray) -> "Knobs":
        """Return a copy with another per-replica bias, clipped to its limit."""
        return Knobs(self.values, np.clip(replica_bias, -BIAS_LIMIT, BIAS_LIMIT))

    def __getitem__(self, name: str) -> float:
        if name not in KNOB_INDEX:
            raise _unknown_knob(name)
        return float(self.values[KNOB_INDEX[name]])

    def as_dict(self) -> dict[str, float]:
        """Return all values by name."""
        return {name: float(value) for name, value in zip(KNOB_NAMES, self.values, strict=True)}

    def record(self) -> np.ndarray:
        """Return the values as one record of `KNOBS_DTYPE`, shape [1], for the kernel."""
        return np.ascontiguousarray(self.values).view(KNOBS_DTYPE).copy()


ANALYTIC_SCORER_KNOBS = Knobs.of(scorer_weight=1.0, shed_enabled=1.0)
"""The analytic scorer with its untuned priors, and predictive shedding."""

_TUNABLE_SPECS = [spec for spec in KNOB_SPECS if spec.is_tunable]
_TUNABLE_INDEX = np.array([KNOB_INDEX[spec.name] for spec in _TUNABLE_SPECS])
_TUNABLE_IS_LOG = np.array([spec.is_log for spec in _TUNABLE_SPECS])


RESIDUAL_SCALES: FloatArray = np.array([spec.residual_scale for spec in _TUNABLE_SPECS])
BIAS_SCALE = 0.2
"""Bias, in units of the score, that action 1 of the learned policy sets on a replica."""


def residual(base: Knobs, action: NDArray[np.floating[Any]], num_replicas: int) -> Knobs:
    """Return `base` moved by an action, clipped to bounds; action 0 changes no bit of it.

    Shapes: `action` [len(TUNABLE_KNOBS) + max replicas], each in [-1, 1]; the part beyond
    `num_replicas` is padding and ignored.
    """
    num_tunable = len(TUNABLE_KNOBS)
    shift = RESIDUAL_SCALES * action[:num_tunable]
    own = base.values[_TUNABLE_INDEX]
    moved = np.where(_TUNABLE_IS_LOG, own * np.exp(shift), own + shift)
    values = base.values.copy()
    values[_TUNABLE_INDEX] = np.clip(moved, LOW_VALUES[_TUNABLE_INDEX], HIGH_VALUES[_TUNABLE_INDEX])
    bias = np.zeros(num_replicas)
    bias[: base.replica_bias.size] = base.replica_bias[:num_replicas]
    bias += BIAS_SCALE * action[num_tunable : num_tunable + num_replicas]
    return Knobs(values).with_bias(bias)

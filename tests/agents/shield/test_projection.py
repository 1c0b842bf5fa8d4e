"""Projection of knobs: bounds, rates, what may not move, and what is no proposal at all."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.agents.shield.doubt import Doubt
from trimtab.agents.shield.projection import (
    KnobLimit,
    KnobLimits,
    LimitEntry,
    Projection,
    project,
)
from trimtab.env.knobs import (
    ANALYTIC_SCORER_KNOBS,
    BIAS_LIMIT,
    HIGH_VALUES,
    KNOB_INDEX,
    KNOB_NAMES,
    LOW_VALUES,
    TUNABLE_KNOBS,
    Knobs,
    residual,
)

BASE = ANALYTIC_SCORER_KNOBS
NUM_REPLICAS = 3
TUNABLE = np.array([KNOB_INDEX[name] for name in TUNABLE_KNOBS])
finite = st.floats(allow_nan=False, allow_infinity=False)


def made(values, bias=(), *, current=BASE, span_s=2.0, limits=None) -> Projection:
    projection = project(
        values,
        np.array(bias, float),
        current=current,
        base=BASE,
        num_replicas=NUM_REPLICAS,
        span_s=span_s,
        limits=limits or KnobLimits(),
    )
    assert isinstance(projection, Projection), projection
    return projection


def within(draw_frac: np.ndarray, limits: KnobLimits) -> Knobs:
    """Knobs within limits, at these shares of each knob's range; what may not move is the base's"""
    values = BASE.values.copy()
    values[TUNABLE] = (limits.low + draw_frac * (limits.high - limits.low))[TUNABLE]
    return Knobs(np.clip(values, limits.low, limits.high))


fracs = st.lists(st.floats(0, 1), min_size=len(KNOB_NAMES), max_size=len(KNOB_NAMES)).map(np.array)
proposals = st.one_of(
    st.lists(finite, min_size=len(KNOB_NAMES), max_size=len(KNOB_NAMES)),
    fracs.map(lambda frac: within(frac, KnobLimits()).values.tolist()),
)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_a_policy_can_ask_for_in_a_window_passes_bit_for_bit(sign):
    action = sign * np.ones(len(TUNABLE_KNOBS) + NUM_REPLICAS)
    before, asked = (residual(BASE, a, NUM_REPLICAS) for a in (-action, action))
    projection = made(asked.values, asked.replica_bias, current=before)
    assert projection.knobs.values.tobytes() == asked.values.tobytes()
    assert projection.knobs.replica_bias.tobytes() == asked.replica_bias.tobytes()
    assert not projection.is_overridden
    assert projection.size == 0.0


def test_a_positive_knob_is_slowed_in_the_logarithm_and_any_other_in_itself():
    limits = KnobLimits.of(
        [
            KnobLimit(knob="backlog", max_change_per_s=math.log(2.0)),
            KnobLimit(knob="externality_batch", max_change_per_s=0.25),
            KnobLimit(knob="replica_bias", high=0.3, max_change_per_s=0.1),
        ]
    )
    asked = BASE.replace({"backlog": 4.0, "externality_batch": -3.0})
    projection = made(asked.values, [1.0, -0.05, 0.0], span_s=1.0, limits=limits)
    assert projection.knobs["backlog"] == pytest.approx(2.0)
    assert projection.knobs["externality_batch"] == pytest.approx(-0.25)
    assert projection.knobs.replica_bias == pytest.approx([0.1, -0.05, 0.0])
    assert projection.clamped_by_name() == pytest.approx(
        {"backlog": -2.0, "externality_batch": 2.75, "replica_bias": -0.9}
    )
    # Action 1 moves externality_batch by 0.5 and a bias by 0.2.
    assert projection.size == pytest.approx(2.75 / 0.5)
    later = made([*asked.values], [1.0, 0, 0], current=projection.knobs, span_s=60, limits=limits)
    assert later.knobs["backlog"] == 4.0
    assert later.knobs.replica_bias[0] == 0.3


def test_what_may_not_move_stays_that_of_the_base():
    asked = BASE.replace({"random_weight": 1.0, "shed_enabled": 0.0})
    projection = made(asked.values)
    assert projection.knobs.values.tobytes() == BASE.values.tobytes()
    assert projection.clamped_by_name() == {"random_weight": -1.0, "shed_enabled": 1.0}
    free = KnobLimits.of([KnobLimit(knob="random_weight", is_movable=True)])
    assert made(asked.values, limits=free).knobs["random_weight"] == 1.0


def test_a_range_holds_at_once_even_where_the_rate_is_slow():
    limits = KnobLimits.of([KnobLimit(knob="shed_interactive", low=1, high=10, max_change_per_s=0)])
    far = BASE.replace({"shed_interactive": 40.0})
    assert made(far.values, current=far, limits=limits).knobs["shed_interactive"] == 10.0
    assert limits.bounded(far)["shed_interactive"] == 10.0


def test_a_clock_that_ran_back_lets_no_knob_move():
    asked = BASE.replace({"backlog": 4.0})
    for span_s in (0.0, -5.0, math.nan):
        assert made(asked.values, span_s=span_s).knobs["backlog"] == BASE["backlog"]


@pytest.mark.parametrize(
    ("values", "bias", "doubt"),
    [
        (np.where(np.arange(len(KNOB_NAMES)) == 7, np.nan, BASE.values), [], Doubt.NOT_FINITE),
        (np.full(len(KNOB_NAMES), np.inf), [], Doubt.NOT_FINITE),
        (BASE.values, [0.0, -np.inf, 0.0], Doubt.NOT_FINITE),
        (BASE.values[:-1], [], Doubt.WRONG_SHAPE),
        (BASE.values[None], [], Doubt.WRONG_SHAPE),
        (BASE.values, [0.0, 0.0], Doubt.WRONG_SHAPE),
        (BASE.values.astype(complex), [], Doubt.WRONG_SHAPE),
        (["a"] * len(KNOB_NAMES), [], Doubt.WRONG_SHAPE),
        ([[1.0], [1.0, 2.0]], [], Doubt.WRONG_SHAPE),
        (None, [], Doubt.WRONG_SHAPE),
    ],
)
def test_what_is_no_proposal_is_a_doubt(values, bias, doubt):
    found = project(
        values, bias, current=BASE, base=BASE, num_replicas=3, span_s=1.0, limits=KnobLimits()
    )
    assert found is doubt


@settings(max_examples=60)
@given(values=proposals, start=fracs, span_s=st.floats(0, 10), bias=st.lists(finite, max_size=3))
def test_whatever_is_proposed_the_result_is_in_bounds_at_the_rate_and_final(
    values, start, span_s, bias
):
    limits = KnobLimits.of(
        [
            KnobLimit(knob="backlog", low=0.5, high=2.0, max_change_per_s=0.1),
            KnobLimit(knob="externality_batch", low=-1.0, high=2.0),
            KnobLimit(knob="replica_bias", high=0.5, max_change_per_s=0.1),
        ]
    )
    bias = bias if len(bias) == 3 else []
    current = within(start, limits)
    projection = made(values, bias, current=current, span_s=span_s, limits=limits)
    knobs = projection.knobs
    assert ((limits.low <= knobs.values) & (knobs.values <= limits.high)).all()
    is_log = (LOW_VALUES > 0)[TUNABLE]
    now, then = knobs.values[TUNABLE], current.values[TUNABLE]
    moved = np.where(
        is_log, np.log(np.where(is_log, now, 1) / np.where(is_log, then, 1)), now - then
    )
    assert (np.abs(moved) <= limits.change_per_s[TUNABLE] * span_s + 1e-8).all()
    assert (np.abs(knobs.replica_bias) <= min(0.5, 0.1 * span_s) + 1e-8).all()
    fixed = np.setdiff1d(np.arange(len(KNOB_NAMES)), TUNABLE)
    assert knobs.values[fixed].tobytes() == BASE.values[fixed].tobytes()
    assert 0.0 <= projection.size <= 100.0
    assert projection.is_overridden == bool(projection.size > 0)
    again = made(knobs.values, knobs.replica_bias, current=current, span_s=span_s, limits=limits)
    assert again.knobs.values.tobytes() == knobs.values.tobytes()
    assert again.knobs.replica_bias.tobytes() == knobs.replica_bias.tobytes()
    assert not again.is_overridden


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"knob": "backlogg"}, "did you mean 'backlog'"),
        ({"knob": "backlog", "low": 3, "high": 2}, r"must lie in \[0.05, 4\], got \[3, 2\]"),
        ({"knob": "backlog", "high": 5}, r"must lie in \[0.05, 4\], got \[0.05, 5\]"),
        ({"knob": "backlog", "low": math.nan}, "must lie in"),
        ({"knob": "replica_bias", "low": -1}, "takes 'high'"),
        ({"knob": "replica_bias", "high": -1}, "high of 'replica_bias' must be at least 0, got -1"),
        ({"knob": "backlog", "max_change_per_s": -1}, "max_change_per_s of 'backlog' must be"),
    ],
)
def test_limits_that_cannot_be_are_refused(limit, text):
    with pytest.raises(ValueError, match=text):
        KnobLimit(**limit)


def test_limits_of_one_knob_that_contradict_each_other_are_refused():
    two = [KnobLimit(knob="backlog", low=2.0), KnobLimit(knob="backlog", high=1.0)]
    with pytest.raises(ValueError, match=r"limits of knob 'backlog' .* got \[2, 1\]"):
        KnobLimits.of(two)
    with pytest.raises(ValueError, match="bias_limit must be in"):
        KnobLimits(bias_limit=BIAS_LIMIT + 1)
    assert (KnobLimits().high == HIGH_VALUES).all()


def test_entries_of_a_policy_file():
    content = {"knob": "shed_interactive", "low": 1, "high": 10, "max_change_per_s": 1}
    limit = LimitEntry.model_validate(content).limit()
    assert limit == KnobLimit(knob="shed_interactive", low=1, high=10, max_change_per_s=1)
    with pytest.raises(ValidationError, match="did you mean 'shed_batch'"):
        LimitEntry.model_validate({"knob": "shed_batches"})
    with pytest.raises(ValueError, match=r"got \[0.1, 99.0\]"):
        LimitEntry.model_validate({"knob": "shed_batch", "high": 99}).limit()

"""Knobs: bounds, names, tuning coordinates, and moves around a base."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.env.knobs import (
    BIAS_LIMIT,
    BIAS_SCALE,
    KNOB_NAMES,
    KNOB_SPECS,
    KNOBS_DTYPE,
    TUNABLE_KNOBS,
    Knobs,
    residual,
)

SPECS = {spec.name: spec for spec in KNOB_SPECS}


def make_base(rng: np.random.Generator) -> Knobs:
    """Tunable knobs anywhere within bounds."""
    return Knobs.of(**{n: rng.uniform(SPECS[n].low, SPECS[n].high) for n in TUNABLE_KNOBS})


@pytest.mark.parametrize("spec", KNOB_SPECS, ids=KNOB_NAMES)
def test_bounds_are_kept_and_named(spec):
    assert spec.low <= spec.default <= spec.high
    for value in (spec.low, spec.high):
        assert Knobs.of(**{spec.name: value})[spec.name] == value
    for value in (spec.low - 1.0, spec.high + 1.0, float("nan"), float("inf")):
        text = f"knob '{spec.name}' must be in [{spec.low:g}, {spec.high:g}], got {value:g}"
        with pytest.raises(ValueError, match=re.escape(text)):
            Knobs.of(**{spec.name: value})


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown knob 'bcklog'; did you mean 'backlog'\?"):
        Knobs.of(bcklog=1.0)
    with pytest.raises(ValueError, match="unknown knob 'zzz'; known knobs: random_weight, "):
        Knobs()["zzz"]


def test_wrong_shapes_and_biases_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(\d+,\), got \(3,\)"):
        Knobs(np.zeros(3))
    for bias in (BIAS_LIMIT + 0.1, float("nan")):
        with pytest.raises(ValueError, match=r"replica_bias must be within \+-2, got"):
            Knobs(Knobs().values, np.array([0.0, bias]))
    clipped = Knobs().with_bias(np.array([5.0, -5.0, 1.0]))
    assert clipped.replica_bias.tolist() == [BIAS_LIMIT, -BIAS_LIMIT, 1.0]


def test_changes_leave_the_original_alone():
    base = Knobs.of(backlog=2.0)
    changed = base.replace({"elapsed": 1.5})
    assert (base["elapsed"], changed["elapsed"], changed["backlog"]) == (0.5, 1.5, 2.0)
    assert changed.as_dict() == base.as_dict() | {"elapsed": 1.5}


def test_record_holds_each_value_under_its_name():
    knobs = make_base(np.random.default_rng(0))
    record = knobs.record()
    assert record.dtype == KNOBS_DTYPE
    assert record.shape == (1,)
    for name in KNOB_NAMES:
        assert record[name][0] == knobs[name]
    record["backlog"] = 0.0
    assert knobs["backlog"] != 0.0


@settings(max_examples=50, derandomize=True)
@given(seed=st.integers(0, 2**20), num_replicas=st.integers(1, 16))
def test_action_zero_is_the_base_to_the_bit(seed, num_replicas):
    rng = np.random.default_rng(seed)
    base = make_base(rng).with_bias(rng.uniform(-1.0, 1.0, num_replicas))
    same = residual(base, np.zeros(len(TUNABLE_KNOBS) + 16), num_replicas)
    np.testing.assert_array_equal(same.values, base.values)
    np.testing.assert_array_equal(same.replica_bias, base.replica_bias)


def test_action_moves_by_the_scale_of_each_knob():
    num_tunable, base = len(TUNABLE_KNOBS), Knobs.of(backlog=1.0)
    for i, name in enumerate(TUNABLE_KNOBS):
        action = np.zeros(num_tunable + 4)
        action[i] = 0.5
        moved, scale = residual(base, action, 4), SPECS[name].residual_scale
        if SPECS[name].is_log:
            assert moved[name] == pytest.approx(base[name] * np.exp(0.5 * scale))
        else:
            assert moved[name] == pytest.approx(base[name] + 0.5 * scale)
        others = {n: v for n, v in moved.as_dict().items() if n != name}
        assert others == {n: v for n, v in base.as_dict().items() if n != name}
    action = np.zeros(num_tunable + 4)
    action[num_tunable:] = [1.0, -1.0, 0.5, 0.7]
    np.testing.assert_allclose(
        residual(base, action, 3).replica_bias, BIAS_SCALE * np.array([1.0, -1.0, 0.5])
    )


def test_moved_knobs_stay_within_bounds():
    base = Knobs.of(**{name: SPECS[name].high for name in TUNABLE_KNOBS})
    moved = residual(base, np.ones(len(TUNABLE_KNOBS) + 2), 2)
    np.testing.assert_array_equal(moved.values, base.values)

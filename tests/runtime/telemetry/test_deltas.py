"""What is decoded is within the stated error, and a loss is never silent."""

import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from racks import make_layout

from trimtab.runtime.telemetry.cell_scales import STEP, CellScales, is_constant, scaled_range
from trimtab.runtime.telemetry.deltas import (
    Delta,
    DeltaDecoder,
    DeltaEncoder,
    DeltaFault,
    dead_bands,
)

SCALES = CellScales(make_layout(num_servers=1, num_gpus=1))
NUM_CELLS = len(SCALES.feature_of)
LOW, HIGH = np.array([scaled_range(f.scale) for f in SCALES.features]).T[:, SCALES.feature_of]


def make_encoder(steps: float = 5.0) -> DeltaEncoder:
    return DeltaEncoder(SCALES, dead_bands(SCALES, steps=steps))


def random_values(random: np.random.Generator, absent_frac: float = 0.2) -> np.ndarray:
    values = random.uniform(LOW, HIGH).astype(np.float32)
    values[random.random(NUM_CELLS) < absent_frac] = np.nan
    return values


@given(seed=st.integers(0, 2**32), num_frames=st.integers(1, 6), size=st.floats(0.0, 0.5))
@settings(max_examples=30)
def test_what_is_decoded_is_within_the_stated_error(seed: int, num_frames: int, size: float):
    random = np.random.default_rng(seed)
    encoder, decoder = make_encoder(), DeltaDecoder(SCALES)
    error = encoder.largest_error[SCALES.feature_of] + 1e-5 * (HIGH - LOW)
    values = random_values(random)
    for i in range(num_frames):
        assert decoder.apply(encoder.encode(values, is_key=i == 0), is_key=i == 0) is None
        decoded = decoder.scaled()
        assert (np.isnan(decoded) == np.isnan(values)).all()
        assert (np.abs(decoded - values) <= error)[~np.isnan(values)].all()
        moved = values + size * random.standard_normal(NUM_CELLS)
        values = np.clip(moved, LOW, HIGH).astype(np.float32)
        values[random.random(NUM_CELLS) < 0.1] = np.nan


@given(
    lost=st.lists(st.booleans(), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
    key_every=st.integers(2, 6),
)
@settings(max_examples=30)
def test_no_pattern_of_loss_gives_wrong_values_silently(
    lost: list[bool], seed: int, key_every: int
):
    random = np.random.default_rng(seed)
    encoder, decoder = make_encoder(), DeltaDecoder(SCALES)
    error = encoder.largest_error[SCALES.feature_of] + 1e-5 * (HIGH - LOW)
    for i, is_lost in enumerate(lost):
        values, is_key = random_values(random), i % key_every == 0
        delta = encoder.encode(values, is_key=is_key)
        if is_lost:
            continue
        if decoder.apply(delta, is_key=is_key) is not None:
            assert np.isnan(decoder.scaled()).all()
        else:
            assert (np.abs(decoder.scaled() - values) <= error)[~np.isnan(values)].all()


def test_what_did_not_leave_its_dead_band_is_not_sent():
    encoder = make_encoder(steps=5.0)
    values = np.where(HIGH - LOW > 0.5, 0.5 * (LOW + HIGH), LOW).astype(np.float32)
    encoder.encode(values, is_key=True)
    constant = np.array([is_constant(f) for f in SCALES.features])[SCALES.feature_of]
    wiggled = np.where(constant, values, values + 4 * STEP).astype(np.float32)
    assert encoder.encode(wiggled, is_key=False).num_changed == 0
    moved = np.where(constant, values, values + 7 * STEP).astype(np.float32)
    assert encoder.encode(moved, is_key=False).num_changed == int((~constant).sum())


def test_a_key_needs_no_frame_before_it_and_says_all():
    random = np.random.default_rng(1)
    encoder, decoder = make_encoder(), DeltaDecoder(SCALES)
    encoder.encode(random_values(random), is_key=True)
    values = random_values(random)
    delta = encoder.encode(values, is_key=True)
    assert delta.num_changed == int((~np.isnan(values)).sum())
    assert decoder.apply(delta, is_key=True) is None


def test_zero_one_and_constants_are_exact():
    encoder, decoder = make_encoder(), DeltaDecoder(SCALES)
    flags = [i for i, f in enumerate(SCALES.features) if f.unit == "0 or 1"]
    is_flag = np.isin(SCALES.feature_of, flags)
    values = np.where(is_flag, 1.0, np.nan).astype(np.float32)
    decoder.apply(encoder.encode(values, is_key=True), is_key=True)
    assert decoder.scaled()[is_flag] == pytest.approx(1.0, abs=1e-12)
    constant = [is_constant(f) for f in SCALES.features]
    assert (encoder.largest_error[constant] < 1e-3).all()


def _broken(delta: Delta) -> dict[str, Delta]:
    body = zlib.decompress(delta.body)
    return {
        "no zlib": replace(delta, body=b"junk"),
        "cut off": replace(delta, body=delta.body[:-3]),
        "more behind": replace(delta, body=delta.body + b"x"),
        "bomb": replace(delta, body=zlib.compress(bytes(50_000_000))),
        "short": replace(delta, body=zlib.compress(body[:-1])),
        "other counts": replace(delta, num_changed=delta.num_changed + 1),
        "more escapes than changes": replace(delta, num_escapes=delta.num_changed + 1),
        "all bits": replace(delta, body=zlib.compress(b"\xff" * len(body))),
        "huge count": replace(delta, num_changed=2**60),
    }


@pytest.mark.parametrize("name", _broken(make_encoder().encode(
    random_values(np.random.default_rng(0)), is_key=True)))  # fmt: skip
def test_a_broken_change_is_recognised(name: str):
    delta = make_encoder().encode(random_values(np.random.default_rng(0)), is_key=True)
    assert DeltaDecoder(SCALES).apply(_broken(delta)[name], is_key=True) is DeltaFault.MALFORMED


def test_a_change_of_other_codes_is_recognised():
    delta = make_encoder().encode(random_values(np.random.default_rng(0)), is_key=True)
    decoder = DeltaDecoder(SCALES)
    wrong = replace(delta, check=delta.check ^ 1)
    assert decoder.apply(wrong, is_key=True) is DeltaFault.MISMATCH
    assert np.isnan(decoder.scaled()).all()

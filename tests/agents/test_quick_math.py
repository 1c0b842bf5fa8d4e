"""Approximations are as near as they say."""

import numpy as np
import pytest

from trimtab.agents.quick_math import first_bit, letters_in, quick_exp, quick_log
from trimtab.env.compiled import compiled


@compiled
def logarithms(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = quick_log(values[i])


@compiled
def exponentials(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        out[i] = quick_exp(values[i])


@compiled
def letter_places(word):  # type: ignore[no-untyped-def]
    return letters_in(word)


@compiled
def lowest(word):  # type: ignore[no-untyped-def]
    return first_bit(word)


def test_logarithm() -> None:
    values = np.geomspace(1e-37, 1e38, 20_000).astype(np.float32)
    out = np.empty_like(values)
    logarithms(values, out)
    assert np.abs(out - np.log(values.astype(np.float64))).max() < 2e-5


def test_exponential() -> None:
    values = np.linspace(-87.0, 87.0, 20_000).astype(np.float32)
    out = np.empty_like(values)
    exponentials(values, out)
    assert np.abs(out / np.exp(values.astype(np.float64)) - 1.0).max() < 2e-5
    ends = np.array([-1e30, 1e30, 0.0], np.float32)
    exponentials(ends, ends)
    assert ends.tolist() == pytest.approx([np.exp(-87.0), np.exp(87.0), 1.0], rel=1e-4)


@pytest.mark.parametrize("text", [b"aZ09 @[{", b"`az~AMZ_", b"\xe1\xc1bc\x80\xff\x00x"])
def test_letters(text: bytes) -> None:
    found = int(letter_places(np.uint64(int.from_bytes(text, "little"))))
    expected = [0x80 if chr(c).isalpha() and c < 128 else 0 for c in text]
    assert list(found.to_bytes(8, "little")) == expected


@pytest.mark.parametrize(("word", "place"), [(0, 64), (1, 0), (1 << 63, 63), (0b101000, 3)])
def test_lowest_bit(word: int, place: int) -> None:
    assert lowest(np.uint64(word)) == place

"""The trip-wire: known moments of tripping and release, and windows that say nothing."""

import math

import pytest

from trimtab.agents.shield.trip_wire import TripWire, TripWireConfig
from trimtab.env.regret import NO_REGRET, Regret, pooled

CONFIG = TripWireConfig(limit=0.05, windows=5, release_frac=0.5)


def regret(mean: float, num: int = 100, std_error: float = 0.03) -> Regret:
    return Regret(num_sampled=num, mean=mean, std_error=std_error)


def steps(wire: TripWire, *means: float, release_windows: int = 3, **fields) -> list[bool]:
    return [wire.step(regret(m, **fields), release_windows=release_windows) for m in means]


def test_it_trips_when_the_mean_of_its_windows_is_over_the_limit():
    assert steps(TripWire(CONFIG), 0.06, 0.06, 0.06, 0.06, 0.06) == [False] * 4 + [True]
    assert steps(TripWire(CONFIG), *[0.049] * 20) == [False] * 20
    # Good and bad windows in turn: the mean is 0.1.
    assert steps(TripWire(CONFIG), 0.2, 0.0, 0.2, 0.0, 0.2)[-1]


def test_it_trips_sooner_when_there_is_no_doubt():
    # 1 - 3 x 0 - 9 / n is above 0.05 from n = 10 on.
    assert steps(TripWire(CONFIG), 1.0, num=9, std_error=0.0) == [False]
    assert steps(TripWire(CONFIG), 1.0, num=10, std_error=0.0) == [True]
    # 0.3 - 3 x 0.03 - 9 / 100 in the first window.
    assert steps(TripWire(CONFIG), 0.3) == [True]


def test_windows_that_say_nothing_change_nothing():
    wire = TripWire(CONFIG)
    for silent in (None, NO_REGRET, regret(math.nan), regret(7.0)):
        assert not wire.step(silent, release_windows=1)
    assert wire.regret == NO_REGRET
    steps(wire, 0.3)
    assert wire.is_tripped
    assert all(wire.step(None, release_windows=1) for _ in range(50))


def test_it_is_released_only_after_calm_windows_in_a_row():
    wire = TripWire(CONFIG)
    assert steps(wire, 0.3) == [True]
    # Over half of the limit is not calm, although it would not trip.
    assert all(steps(wire, *[0.04] * 30))
    wire = TripWire(CONFIG)
    assert steps(wire, 0.3, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0) == [True] * 9
    # The bad window has left the five that count; this is the third calm one.
    assert steps(wire, 0.0, 0.0) == [True, False]
    # It starts anew, with nothing held against it.
    assert wire.regret == NO_REGRET


def test_pooling_is_by_samples():
    both = pooled([regret(0.1, num=300, std_error=0.02), NO_REGRET, regret(0.5, num=100)])
    assert both.num_sampled == 400
    assert both.mean == pytest.approx(0.2)
    assert both.std_error == pytest.approx(math.hypot(0.75 * 0.02, 0.25 * 0.03))
    assert pooled([]).lower_bound(3.0) == -math.inf
    assert both.flipped().mean == -both.mean


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("limit", 0.0, r"regret limit must be in \(0, 1\], got 0"),
        ("windows", 0, "windows must be at least 1, got 0"),
        ("release_frac", 1.5, r"release_frac must be in \[0, 1\], got 1.5"),
        ("num_sigmas", 0.0, "num_sigmas must be above 0, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, text):
    with pytest.raises(ValueError, match=text):
        TripWireConfig(**{field: value})

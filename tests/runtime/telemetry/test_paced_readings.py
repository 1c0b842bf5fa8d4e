"""Which readings are taken when time is short, and what stands in their place."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from trimtab.runtime.telemetry.probes.paced_readings import (
    LostError,
    PacedReadings,
    Reading,
    ReadingError,
    UnsupportedError,
)


class Device:
    """Readings whose cost is time on a fake clock; each returns how often it was taken."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.taken: dict[str, int] = {}
        self.faults: dict[str, ReadingError] = {}
        self.costs_s: dict[str, float] = {}

    def clock(self) -> float:
        return self.now_s

    def reading(self, name: str, column: int, period_s: float = 0.0, row: int = 0) -> Reading:
        def read() -> Mapping[int, float]:
            self.taken[name] = self.taken.get(name, 0) + 1
            self.now_s += self.costs_s.get(name, 0.0)
            if name in self.faults:
                raise self.faults[name]
            return {column: float(self.taken[name])}

        return Reading(name=name, row=row, period_s=period_s, read=read)

    def sampler(self, paced: PacedReadings, shape: tuple[int, int]) -> Callable[[], np.ndarray]:
        """Return what takes a sample and moves on to 0.1 s after its start."""

        def sample() -> np.ndarray:
            began_at_s, matrix = self.now_s, np.full(shape, np.nan)
            paced.sample(matrix)
            self.now_s = max(self.now_s, began_at_s + 0.1)
            return matrix

        return sample


def test_each_reading_has_its_period_and_holds_in_between() -> None:
    device = Device()
    paced = PacedReadings(
        [device.reading("fast", 0), device.reading("slow", 1, period_s=1.0)],
        budget_s=0.05,
        clock=device.clock,
    )
    sample = device.sampler(paced, (1, 2))
    rows = [sample()[0].tolist() for _ in range(21)]
    assert rows[0] == [1, 1]
    assert rows[5] == [6, 1]
    assert device.taken["fast"] == 21
    assert device.taken["slow"] in (2, 3)


def test_readings_that_do_not_fit_come_first_in_the_next_sample() -> None:
    device = Device()
    names = [f"r{i}" for i in range(10)]
    device.costs_s = dict.fromkeys(names, 0.004)
    paced = PacedReadings(
        [device.reading(name, i) for i, name in enumerate(names)],
        budget_s=0.02,
        clock=device.clock,
    )
    sample = device.sampler(paced, (1, 10))
    sample()
    for _ in range(40):
        began_at_s, matrix = device.now_s, np.full((1, 10), np.nan)
        paced.sample(matrix)
        assert device.now_s - began_at_s <= 0.021
        device.now_s = began_at_s + 0.1
    assert min(device.taken.values()) >= 15  # of 40: each has its turn
    assert np.isfinite(matrix).all()
    assert paced.num_deferred > 0


def test_a_value_that_is_not_read_again_does_not_hold_for_ever() -> None:
    device = Device()
    paced = PacedReadings([device.reading("a", 0)], budget_s=0.05, clock=device.clock)
    sample = device.sampler(paced, (1, 1))
    assert sample()[0, 0] == 1
    paced._paced[0].due_at_s = np.inf
    assert sample()[0, 0] == 1
    device.now_s += 1.0
    assert np.isnan(sample()[0, 0])


def test_a_momentary_fault_makes_its_value_absent_and_no_other() -> None:
    device = Device()
    paced = PacedReadings(
        [device.reading("a", 0), device.reading("b", 1)], budget_s=0.05, clock=device.clock
    )
    sample = device.sampler(paced, (1, 2))
    sample()
    device.faults["a"] = ReadingError("not now")
    assert np.isnan(sample()[0, 0])
    del device.faults["a"]
    assert sample()[0].tolist() == [3, 3]
    assert paced.num_failed == 1


def test_what_is_unsupported_is_never_asked_again() -> None:
    device = Device()
    device.faults["a"] = UnsupportedError("never")
    paced = PacedReadings(
        [device.reading("a", 0), device.reading("b", 1)], budget_s=0.05, clock=device.clock
    )
    sample = device.sampler(paced, (1, 2))
    for _ in range(5):
        matrix = sample()
    assert device.taken == {"a": 1, "b": 5}
    assert np.isnan(matrix[0, 0])


def test_a_lost_row_is_left_alone_for_a_while_and_says_what_the_loss_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device()
    paced = PacedReadings(
        [device.reading("a", 0), device.reading("b", 1), device.reading("other", 0, row=1)],
        budget_s=0.05,
        clock=device.clock,
    )
    sample = device.sampler(paced, (2, 3))
    sample()
    device.faults["a"] = LostError("off the bus", {2: 7.0})
    for _ in range(90):
        matrix = sample()
    np.testing.assert_array_equal(matrix[0], [np.nan, np.nan, 7.0])
    assert device.taken == {"a": 2, "b": 1, "other": 91}
    assert caplog.messages == ["row 0 is lost, next attempt in 10 s: off the bus"]
    del device.faults["a"]
    for _ in range(15):
        matrix = sample()
    assert np.isfinite(matrix[0, :2]).all()
    assert np.isnan(matrix[0, 2])

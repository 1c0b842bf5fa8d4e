"""Processes beside the gateway: started anew with back-off, killed when they stand still."""

import itertools
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from trimtab.runtime.serving.child_process import Child, ChildConfig, spawn_process


class FakeProcess:
    def __init__(self, number: int) -> None:
        self.pid = number
        self.code: int | None = None
        self.told: list[object] = []

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.told.append("terminate")

    def kill(self) -> None:
        self.code = -9

    def send_signal(self, sig: int, /) -> None:
        self.told.append(sig)

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None
        return self.code


class Nursery:
    """Spawns fakes, and remembers them."""

    def __init__(self) -> None:
        self.made: list[FakeProcess] = []
        self.is_broken = False

    def __call__(self, command: Sequence[str]) -> FakeProcess:
        if self.is_broken:
            raise OSError(2, "No such file or directory")
        self.made.append(FakeProcess(len(self.made)))
        return self.made[-1]


def make_child(nursery: Nursery, **changes: object) -> Child:
    return Child(ChildConfig(name="child", command=("x",), **changes), nursery)  # type: ignore[arg-type]


def run(child: Child, start_s: float, end_s: float) -> None:
    for tick in range(round(start_s * 10), round(end_s * 10)):
        child.tick(tick / 10)


def test_it_restarts_later_each_time_that_it_lives_shortly() -> None:
    nursery = Nursery()
    child = make_child(nursery)
    starts = []
    for tick in range(1500):
        before = len(nursery.made)
        child.tick(tick / 10)
        if len(nursery.made) > before:
            starts.append(tick / 10)
            nursery.made[-1].code = 1
    waits = [round(b - a, 1) for a, b in itertools.pairwise(starts)]
    # A tick to notice, then 1, 2, 4, 8, 16 s, and never more than 30 s.
    assert waits == [1.1, 2.1, 4.1, 8.1, 16.1, 30.1, 30.1, 30.1]
    assert child.num_restarts == len(starts) - 1


def test_a_long_life_is_followed_by_the_shortest_wait() -> None:
    nursery = Nursery()
    child = make_child(nursery)
    run(child, 0, 5)
    nursery.made[0].code = 1
    run(child, 100, 100.6)
    assert len(nursery.made) == 2


def test_it_is_given_up_after_so_many_short_lives() -> None:
    nursery = Nursery()
    child = make_child(nursery, max_restarts=2)
    for tick in range(1000):
        child.tick(tick / 10)
        if nursery.made:
            nursery.made[-1].code = 1
    assert (len(nursery.made), child.is_given_up) == (3, True)


def test_one_that_stands_still_is_killed_and_started_anew() -> None:
    nursery = Nursery()
    child = make_child(nursery, silent_s=5.0, start_s=20.0)
    child.tick(0.0)
    child.tick(19.9)
    assert child.num_frozen == 0  # it may take its time to begin
    child.heard(20.0)
    child.tick(24.9)
    assert child.num_frozen == 0
    child.tick(25.1)
    assert (child.num_frozen, nursery.made[0].code) == (1, -9)
    run(child, 25.2, 27)
    assert len(nursery.made) == 2


def test_one_that_never_begins_is_killed_too() -> None:
    nursery = Nursery()
    child = make_child(nursery, start_s=20.0)
    child.tick(0.0)
    child.tick(20.1)
    assert child.num_frozen == 1


def test_a_command_that_is_not_there_is_tried_again() -> None:
    nursery = Nursery()
    nursery.is_broken = True
    child = make_child(nursery)
    child.tick(0.0)
    assert child.pid is None
    nursery.is_broken = False
    run(child, 0.1, 2)
    assert child.pid == 0


def test_stopped_it_is_asked_to_end_then_killed_and_never_comes_again() -> None:
    nursery = Nursery()
    child = make_child(nursery)
    child.tick(0.0)
    child.stop()
    process = nursery.made[0]
    assert process.told == [signal.SIGCONT, "terminate"]
    child.tick(1.0)
    assert process.code is None
    child.tick(6.1)
    assert process.code == -9
    run(child, 7, 60)
    assert child.is_gone
    assert len(nursery.made) == 1


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_real_process_is_gone_after_close(stubborn: bool, tmp_path: Path) -> None:
    up = tmp_path / "up"
    ignore = "signal.signal(15, signal.SIG_IGN); " if stubborn else ""
    code = f"import signal, time; {ignore}open({str(up)!r}, 'w'); time.sleep(60)"
    child = Child(ChildConfig(name="sleeper", command=(sys.executable, "-c", code)), spawn_process)
    child.tick(time.monotonic())
    assert child.pid is not None
    while not up.exists():
        time.sleep(0.01)
    child.close(0.2)
    assert child.pid is None

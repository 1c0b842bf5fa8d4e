"""What is not used is counted by reason, in memory that names from outside cannot grow."""

import pytest

from trimtab.runtime.telemetry.reasons import Counts, Reason


def test_every_reason_has_a_meaning_of_its_own() -> None:
    meanings = [reason.meaning for reason in Reason]
    assert all(len(meaning) > 20 for meaning in meanings)
    assert len(set(meanings)) == len(meanings)
    assert Reason["TOO_LARGE"] == "too_large"
    assert f"{Reason.TOO_LARGE}" == "too_large"


def test_counts_by_reason_and_by_probe() -> None:
    counts = Counts(["p1", "p2"])
    counts.add(Reason.LOST, "p1", 3)
    counts.add(Reason.LOST, "p2")
    counts.add(Reason.MALFORMED)
    assert counts[Reason.LOST] == 4
    assert counts.of_probe("p1") == {Reason.LOST: 3}
    assert counts.total == 5
    assert counts.by_reason[Reason.LATE] == 0
    assert list(counts.by_reason) == list(Reason)
    assert repr(counts) == "Counts(malformed=1, lost=4)"


def test_names_made_up_take_no_memory() -> None:
    counts = Counts(["p1"])
    for i in range(1000):
        counts.add(Reason.UNKNOWN_PROBE, f"made-up-{i}")
    assert counts[Reason.UNKNOWN_PROBE] == 1000
    assert counts.of_probe("made-up-1") == {}
    assert list(counts._by_probe) == ["p1"]


def test_a_probe_registered_twice_keeps_its_counts_until_forgotten() -> None:
    counts = Counts(["p1"])
    counts.add(Reason.LATE, "p1")
    counts.register("p1")
    assert counts.of_probe("p1") == {Reason.LATE: 1}
    counts.forget("p1")
    counts.forget("p1")
    assert counts.of_probe("p1") == {}
    assert counts[Reason.LATE] == 1


def test_counts_never_go_down() -> None:
    with pytest.raises(ValueError, match="number must be at least 0, got -1"):
        Counts().add(Reason.LATE, number=-1)

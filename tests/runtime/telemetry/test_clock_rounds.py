"""Answers to pings: each counts once, and those that nobody waits for any more count as late."""

from trimtab.runtime.telemetry.clock_rounds import ClockRounds
from trimtab.runtime.telemetry.frames import Ping, Pong, decode
from trimtab.runtime.telemetry.reasons import Reason

OFFSET_S = 100.0


def answer(body: bytes) -> Pong:
    ping = decode(body)
    assert isinstance(ping, Ping)
    at_s = ping.sent_at_s + 1e-4 + OFFSET_S
    return Pong(
        probe=ping.probe,
        nonce=ping.nonce,
        ping_sent_at_s=ping.sent_at_s,
        received_at_s=at_s,
        sent_at_s=at_s,
    )


def test_an_answer_tells_the_clock_and_its_copy_counts_as_a_duplicate():
    rounds = ClockRounds(("probe",))
    [(probe, body)] = rounds.pings(1.0)
    assert probe == "probe"
    assert rounds.take(0, answer(body), 1.0002) is None
    hub_s, bound_s = rounds.to_hub_s(0, 1.0 + OFFSET_S)
    assert abs(hub_s - 1.0) <= bound_s < 1e-3
    assert rounds.take(0, answer(body), 1.0003) is Reason.DUPLICATE


def test_the_answer_of_a_ping_that_was_given_up_is_late():
    rounds = ClockRounds(("probe",))
    bodies = [body for i in range(6) for _, body in rounds.pings(1.0 + i)]
    assert len(bodies) == 6
    assert rounds.take(0, answer(bodies[0]), 6.5) is Reason.LATE
    assert rounds.take(0, answer(bodies[5]), 6.5) is None


def test_answers_from_before_a_restart_are_late():
    rounds = ClockRounds(("probe",))
    [(_, body)] = rounds.pings(1.0)
    rounds.forget(0)
    assert rounds.take(0, answer(body), 1.0002) is Reason.LATE
    assert rounds.take(0, Pong(**{**_fields(answer(body)), "nonce": 999}), 1.1) is Reason.DUPLICATE


def _fields(pong: Pong) -> dict[str, object]:
    return {name: getattr(pong, name) for name in pong.__struct_fields__}

"""Ticks that look at silence only if somebody may be silent do what ticks do that always look."""

from hypothesis import given, settings
from hypothesis import strategies as st
from test_live_control import NUM, FakeGateway, PagedHub, Stand

from trimtab.agents.shield.shield import ShieldConfig
from trimtab.runtime.live_fleet.live_control import LiveControl


class Thorough(LiveControl):
    """Looks at every tick."""

    def tick(self, now_s: float) -> None:
        super().tick(now_s)
        self._check_silence(now_s)
        self._set_limits()


def make_stand(control: type[LiveControl]) -> Stand:
    stand = Stand(gateway=FakeGateway(), hub=PagedHub())
    stand.control = control(
        stand.gateway,  # type: ignore[arg-type]
        stand.dispatcher, stand.hub, ShieldConfig(),
    )  # fmt: skip
    stand.control.begin(stand.now_s)
    return stand


STEP = st.tuples(
    st.sampled_from(["place", "byte", "pass"]),
    st.integers(0, NUM - 1),
    st.sampled_from([0.05, 0.3, 0.7, 2.0]),
    st.sets(st.integers(0, NUM - 1)),
)


def outcome(stand: Stand) -> tuple[object, ...]:
    control, gateway = stand.control, stand.gateway
    quiet = control.is_quiet.tolist()
    return stand.masks(), quiet, gateway.evicted, gateway.failed, control.shield.barred_s


@given(steps=st.lists(STEP, max_size=12))
@settings(max_examples=25)
def test_a_tick_that_looks_only_when_it_must_does_the_same(
    steps: list[tuple[str, int, float, set[int]]],
) -> None:
    stands = make_stand(LiveControl), make_stand(Thorough)
    for number, (action, replica, span_s, paged) in enumerate(steps):
        for stand in stands:
            if action == "place":
                stand.place(replica, number)
            elif action == "byte":
                stand.dispatcher.token_at_s[replica] = stand.now_s
            stand.run(span_s, tuple(sorted(paged)))
        assert outcome(stands[0]) == outcome(stands[1])

"""A live gateway within its limits: who is silent, who is away, and what was counted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from live_requests import make_dispatcher, make_facts, run_request, three_replicas

from trimtab.agents.shield.shield import ShieldConfig
from trimtab.env.emergency import Emergency, EmergencyAction
from trimtab.env.masks import Mask
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.dispatcher.request import Placement
from trimtab.runtime.live_fleet.live_control import LOST_S, QUIET_S, RETRY_S, LiveControl
from trimtab.runtime.observer.observer import layout_of
from trimtab.runtime.telemetry.hub import Hub

NUM = 3
CLUSTER = three_replicas()
UNHEALTHY = int(Mask.UNHEALTHY)


@dataclass
class FakeGateway:
    """Remembers what it was told to move and to cut."""

    pools: list[Any] = field(
        default_factory=lambda: [SimpleNamespace(refused_at_s=float("nan")) for _ in range(NUM)]
    )
    evicted: list[int] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    def evict(self, replica: int, reason: str) -> int:
        self.evicted.append(replica)
        return 2

    def fail(self, replica: int, reason: str) -> int:
        self.failed.append(replica)
        return 1


class PagedHub(Hub):
    """A hub whose pages a test writes; a page that is not written anew grows old."""

    def __init__(self) -> None:
        super().__init__(layout_of(CLUSTER))
        self.pages: dict[int, tuple[float, dict[str, float]]] = {}

    def state(self, now_s: float) -> ClusterState:
        state = super().state(now_s)
        for replica, (read_at_s, page) in self.pages.items():
            for name, value in {**page, "state_age_s": now_s - read_at_s}.items():
                place = column(Node.REPLICA, name)
                state.values[Node.REPLICA][replica, place] = value
                state.is_valid[Node.REPLICA][replica, place] = True
            state.age_s[Node.REPLICA][replica] = 0.0
        return state


@dataclass
class Stand:
    """A control with all around it, and a clock that is moved by hand."""

    gateway: FakeGateway = field(default_factory=FakeGateway)
    hub: PagedHub = field(default_factory=PagedHub)
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.dispatcher = make_dispatcher(CLUSTER)
        self.control = LiveControl(
            self.gateway,  # type: ignore[arg-type]
            self.dispatcher, self.hub, ShieldConfig(),
        )  # fmt: skip
        self.control.begin(self.now_s)

    def place(self, replica: int, number: int = 0) -> Placement:
        """Put a request on a replica."""
        views = self.dispatcher.views
        before = views["mask"].copy()
        views["mask"] |= UNHEALTHY
        views["mask"][replica] = 0
        chosen = self.dispatcher.dispatch(make_facts(number, self.now_s), self.now_s)
        views["mask"][:] = before
        assert isinstance(chosen, Placement)
        assert chosen.replica == replica
        return chosen

    def run(self, span_s: float, pages: Iterator[int] | tuple[int, ...] = range(NUM)) -> None:
        """Let time pass; the named replicas give a page every 100 ms."""
        paged = tuple(pages)
        for step in range(round(span_s / 0.01)):
            self.now_s += 0.01
            if step % 10 == 0:
                for replica in paged:
                    self.hub.pages[replica] = (self.now_s, {"running_requests": 1.0})
                self.control.look(self.now_s)
            self.control.tick(self.now_s)

    def masks(self) -> list[int]:
        return self.dispatcher.views["mask"].tolist()


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_a_frozen_replica_loses_its_requests_and_gets_no_new_ones(stand: Stand) -> None:
    stand.run(1.0)
    for number in range(3):
        stand.place(1, number)
    stand.run(QUIET_S / 2, pages=(0, 2))
    assert stand.gateway.evicted == []
    stand.run(QUIET_S, pages=(0, 2))
    assert stand.gateway.evicted == [1]
    assert stand.control.num_evicted == 2
    assert [mask & UNHEALTHY for mask in stand.masks()] == [0, UNHEALTHY, 0]
    # Answers that have begun are cut once, when it stays away.
    assert stand.gateway.failed == []
    stand.run(2 * LOST_S, pages=(0, 2))
    assert stand.gateway.failed == [1]
    assert stand.gateway.evicted == [1]
    # A page brings it back.
    stand.run(0.5)
    assert not any(mask & UNHEALTHY for mask in stand.masks())


def test_a_replica_that_computes_a_long_prompt_is_not_frozen(stand: Stand) -> None:
    stand.place(0)
    stand.run(20.0)
    assert stand.gateway.evicted == []
    assert not any(mask & UNHEALTHY for mask in stand.masks())


def test_a_replica_without_a_page_that_sends_bytes_is_not_frozen(stand: Stand) -> None:
    stand.run(1.0)
    stand.dispatcher.first_token(stand.place(1), stand.now_s)
    for _ in range(40):
        stand.run(0.1, pages=(0, 2))
        stand.dispatcher.progress(1, stand.now_s)
    assert stand.gateway.evicted == []


def test_an_idle_replica_without_a_page_is_left_alone_by_silence(stand: Stand) -> None:
    stand.run(1.0)
    stand.run(1.5, pages=(0, 2))
    assert stand.gateway.evicted == []


def test_when_most_fall_silent_at_once_the_metrics_are_out(stand: Stand) -> None:
    stand.run(1.0)
    stand.place(1)
    stand.place(2, 1)
    stand.run(5.0, pages=(0,))
    assert stand.gateway.evicted == []
    assert not any(mask & UNHEALTHY for mask in stand.masks())


def test_without_any_pages_a_silent_replica_is_tried_again(stand: Stand) -> None:
    stand.place(1)
    stand.run(4.0, pages=())
    assert stand.gateway.evicted == [1]
    for _ in range(3):
        stand.dispatcher.views["outstanding_requests"][1] = 0
        stand.run(LOST_S, pages=())
    assert not stand.masks()[1] & UNHEALTHY


def test_a_byte_brings_a_replica_back(stand: Stand) -> None:
    stand.run(1.0)
    stand.place(1)
    stand.run(1.0, pages=(0, 2))
    assert stand.control.is_quiet.tolist() == [False, True, False]
    stand.dispatcher.progress(1, stand.now_s)
    stand.run(0.02, pages=(0, 2))
    assert stand.control.is_quiet.tolist() == [False, False, False]


def test_a_replica_that_refuses_connections_is_away_for_a_while(stand: Stand) -> None:
    stand.run(1.0)
    stand.dispatcher.prefix_index.store(2, np.arange(3, dtype=np.uint64))
    stand.gateway.pools[2].refused_at_s = stand.now_s
    stand.run(0.1, pages=(0, 1))
    assert stand.dispatcher.views["is_available"].tolist() == [1, 1, 0]
    # Whatever it had cached is gone.
    assert stand.dispatcher.prefix_index.num_blocks(2) == 0
    stand.run(RETRY_S, pages=(0, 1))
    assert stand.dispatcher.views["is_available"].tolist() == [1, 1, 1]
    # A page says so at once.
    stand.gateway.pools[2].refused_at_s = stand.now_s
    stand.run(0.05, pages=(0, 1))
    assert stand.dispatcher.views["is_available"].tolist() == [1, 1, 0]
    stand.run(0.2)
    assert stand.dispatcher.views["is_available"].tolist() == [1, 1, 1]


def test_a_page_is_taken_once_and_what_it_lacks_is_absent(stand: Stand) -> None:
    page = {"running_requests": 4.0, "kv_usage_frac": 0.25}
    stand.hub.pages[0] = (stand.now_s - 0.05, page)
    stand.control.look(stand.now_s)
    view = stand.dispatcher.views[0]
    assert (view["running_requests"], view["kv_usage_frac"]) == (4.0, 0.25)
    assert view["scraped_at_s"] == pytest.approx(stand.now_s - 0.05)
    state = stand.control.state(stand.now_s)
    assert np.isnan(state.feature(Node.REPLICA, "waiting_requests")[0])
    # Requests that come after the page are counted beside it; the same page does not undo that.
    stand.dispatcher.views["running_requests"][0] = 5.0
    stand.control.look(stand.now_s + 0.1)
    assert view["running_requests"] == 5.0
    # A later page without a value keeps the old one.
    stand.hub.pages[0] = (stand.now_s + 0.2, {"running_requests": 1.0})
    stand.hub.pages[0][1]["kv_usage_frac"] = float("nan")
    stand.control.look(stand.now_s + 0.2)
    assert (view["running_requests"], view["kv_usage_frac"]) == (1.0, 0.25)


def test_pages_count_on_after_the_state_was_read(stand: Stand) -> None:
    stand.run(1.0)
    stand.control.state(stand.now_s)
    stand.place(1)
    stand.run(1.0, pages=(0, 2))
    stand.control.state(stand.now_s)
    assert stand.gateway.evicted == [1]
    ages_s = stand.control.state(stand.now_s).feature(Node.REPLICA, "state_age_s")
    assert ages_s[1] > 0.9
    assert ages_s[0] < 0.2


def test_orders_mask_a_replica_beside_the_shield(stand: Stand) -> None:
    stand.control.orders[1] = int(Mask.PLAN)
    stand.run(0.05)
    assert stand.masks() == [0, int(Mask.PLAN), 0]
    stand.control.orders[1] = 0
    stand.run(0.05)
    assert stand.masks() == [0, 0, 0]


def test_a_window_is_what_happened_since_the_last(stand: Stand) -> None:
    for number in range(4):
        run_request(stand.dispatcher, make_facts(number, stand.now_s), ttft_s=0.1)
    run_request(stand.dispatcher, make_facts(5, stand.now_s), ttft_s=100.0)
    stand.place(0, 6)
    outcome = stand.control.take_window(stand.now_s + 2.0)
    assert (outcome.start_s, outcome.end_s) == (1000.0, 1002.0)
    assert (outcome.num_arrived, outcome.num_finished) == (6, 5)
    assert (outcome.arrived_weight, outcome.credit) == (6.0, 4.0)
    assert (outcome.num_shed, outcome.num_failed) == (0, 0)
    assert np.isnan(outcome.energy_j)
    again = stand.control.take_window(stand.now_s + 4.0)
    assert (again.start_s, again.num_arrived, again.credit) == (1002.0, 0, 0.0)


@pytest.mark.parametrize("kind", list(Emergency))
def test_a_gateway_says_what_it_cannot_do(stand: Stand, kind: Emergency) -> None:
    # What happens inside an engine is beyond it; this cluster has no spill tier.
    replica = None if kind in {Emergency.SHED, Emergency.SPILL_SHORT} else 0
    assert stand.control.can(kind, replica) == (kind is Emergency.SHED)


def test_shedding_begins_and_ends(stand: Stand) -> None:
    control, dispatcher = stand.control, stand.dispatcher
    stand.dispatcher.views["pending_tokens"] = 1e7
    assert control.act(EmergencyAction(kind=Emergency.SHED, amount=2.0)) == NUM
    refused = dispatcher.dispatch(make_facts(0, stand.now_s), stand.now_s)
    assert not isinstance(refused, Placement)
    assert (refused.status, refused.code) == (429, "rejected-saturated")
    control.undo(Emergency.SHED)
    assert dispatcher._cursors["shed_limits"] == np.inf

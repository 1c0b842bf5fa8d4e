from collections.abc import Callable

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.knobs import Knobs
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults.slow_spans import SlowSpan, with_slow_spans
from trimtab.env.simulator.layout import SLOWDOWN_DTYPE
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload


def made_table() -> np.ndarray:
    """One replica that is slow by 2 from 10 to 20 s, and one that never is."""
    table = np.zeros((2, 3), SLOWDOWN_DTYPE)
    table["at_s"], table["factor"] = np.inf, 1.0
    table[0, 0], table[0, 1] = (10.0, 2.0), (20.0, 1.0)
    return table


def steps_of(row: np.ndarray) -> list[tuple[float, float]]:
    return [(float(at_s), float(factor)) for at_s, factor in row if at_s < np.inf]


def test_nothing_given_changes_nothing() -> None:
    table = made_table()
    assert with_slow_spans(table, (), np.ones(2)) is table


def test_spans_and_constants_multiply_what_is_drawn() -> None:
    span = SlowSpan(start_s=15.0, end_s=30.0, replica=0, factor=3.0)
    table = with_slow_spans(made_table(), (span,), np.array([1.0, 1.5]))
    assert steps_of(table[0]) == [(10.0, 2.0), (15.0, 6.0), (20.0, 3.0), (30.0, 1.0)]
    assert steps_of(table[1]) == [(0.0, 1.5)]
    assert (table["at_s"][:, -1] == np.inf).all()


def test_a_slow_span_lengthens_what_runs_in_it(
    make_cluster: Callable[..., ClusterSpec], make_workload: Callable[..., Workload]
) -> None:
    workload = make_workload([0.0, 10.0, 20.0], [256, 256, 256], [20, 20, 20])
    span = SlowSpan(start_s=5.0, end_s=15.0, replica=0, factor=2.0)
    fleet = SimulatedFleet(make_cluster(), workload, FleetConfig(slow_spans=(span,)))
    fleet.reset(seed=0, knobs=Knobs())
    fleet.drain()
    first, slow, last = fleet.requests["finish_s"] - fleet.requests["arrival_s"]
    assert slow == pytest.approx(2.0 * first)
    assert last == pytest.approx(first)


def test_a_span_of_no_replica_is_refused() -> None:
    span = SlowSpan(start_s=1.0, end_s=2.0, replica=2, factor=2.0)
    with pytest.raises(ValueError, match="of replica 2, but there are 2"):
        with_slow_spans(made_table(), (span,), np.ones(2))


@pytest.mark.parametrize(
    "settings",
    [{"end_s": 1.0}, {"start_s": -1.0}, {"factor": 0.0}, {"replica": -1}, {"end_s": np.inf}],
)
def test_a_span_out_of_bounds_is_refused(settings: dict[str, float]) -> None:
    values = {"start_s": 1.0, "end_s": 2.0, "replica": 0, "factor": 2.0, **settings}
    with pytest.raises(ValueError, match="a slow span must be"):
        SlowSpan(**values)  # type: ignore[arg-type]

"""Parts of the derivation: fading counters, moving averages, groups, names of products."""

import numpy as np
import pytest

from trimtab.env.hardware import GPUS
from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.telemetry.features.gpu_features import GPU_READINGS
from trimtab.runtime.telemetry.features.grouping import Grouping
from trimtab.runtime.telemetry.features.nvml_names import CATALOGUE_NAMES, catalogue_gpu
from trimtab.runtime.telemetry.features.readings import ScopeStatistics, Statistic
from trimtab.runtime.telemetry.features.recent import MovingAverage, RecentCounters, recent_ratio
from trimtab.runtime.telemetry.features.replica_features import REPLICA_READINGS
from trimtab.runtime.telemetry.features.server_features import SERVER_READINGS
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE as SIGNALS
from trimtab.runtime.telemetry.signals import Kind, Scope, signal_index

READINGS = {
    (Node.GPU, Scope.GPU): GPU_READINGS,
    (Node.REPLICA, Scope.REPLICA): REPLICA_READINGS,
    (Node.SERVER, Scope.SERVER): SERVER_READINGS,
}


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def test_a_rate_follows_a_new_pace_within_its_time_constant() -> None:
    counters, total = RecentCounters((1,), span_s=2.0), 0.0
    for k in range(100):
        pace = 10.0 if k < 50 else 20.0
        counters.add(array(total + pace * 0.1), array(total), np.array(0.1))
        total += pace * 0.1
        if k == 49:
            assert counters.rates() == pytest.approx([10.0])
    # 5 s after the change the old pace weighs exp(-2.5) of the 5 s before it, which filled up to
    # 1 - exp(-2.5): the mean of the two paces by their weights.
    old, new = np.exp(-2.5) * (1 - np.exp(-2.5)), 1 - np.exp(-2.5)
    assert counters.rates() == pytest.approx([(10 * old + 20 * new) / (old + new)], rel=1e-3)


def test_uneven_periods_give_the_same_rate() -> None:
    counters, at_s, rng = RecentCounters((1,)), 0.0, np.random.default_rng(0)
    for passed_s in rng.uniform(0.01, 0.5, 50):
        counters.add(array(7 * (at_s + passed_s)), array(7 * at_s), np.array(passed_s))
        at_s += passed_s
    assert counters.rates() == pytest.approx([7.0])


def test_no_step_no_rate_and_an_absent_reading_has_none() -> None:
    counters = RecentCounters((1,))
    counters.add(array(5.0), array(np.nan), np.array(np.nan))
    assert np.isnan(counters.rates())
    counters.add(array(6.0), array(5.0), np.array(1.0))
    assert counters.rates() == pytest.approx([1.0])
    counters.add(array(np.nan), array(6.0), np.array(1.0))
    assert np.isnan(counters.rates())


def test_a_ratio_needs_something_to_have_happened() -> None:
    ratio = recent_ratio(array(3.0, 0.0, 1.0), array(4.0, 0.0, 0.001))
    assert ratio[0] == 0.75
    assert np.isnan(ratio[1:]).all()


def test_an_average_skips_absent_values() -> None:
    average = MovingAverage((1,))
    assert average.add(array(0.5), np.array(np.nan)) == [0.0]
    assert np.isnan(average.add(array(np.nan), array(0.1)))
    assert average.before() == [0.5]
    trend = average.add(array(0.7), array(0.1))
    gain = 1 - np.exp(-0.05)
    assert average.before() == pytest.approx([0.5 + gain * 0.2])
    assert trend == pytest.approx([gain * 0.2 / 0.1])


def test_groups_leave_out_what_is_absent() -> None:
    members, groups = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2])
    grouping = Grouping(members, groups, 4)
    values = array(1.0, 3.0, np.nan)
    np.testing.assert_array_equal(grouping.means(values), [2.0, 3.0, np.nan, np.nan])
    np.testing.assert_array_equal(grouping.sums(values), [4.0, 3.0, np.nan, np.nan])


@pytest.mark.parametrize(("node", "scope"), READINGS)
def test_readings_name_features_and_signals_and_rate_only_counters(
    node: Node, scope: Scope
) -> None:
    for name, ranked in READINGS[node, scope].items():
        column(node, name)
        for reading in ranked:
            signal = SIGNALS[scope][signal_index(scope, reading.signal)]
            is_rate = reading.statistic is Statistic.RATE
            assert is_rate == (signal.kind is Kind.COUNTER), (name, reading)


def test_statistics_before_the_first_window_are_an_error() -> None:
    with pytest.raises(ValueError, match="must take a window before"):
        ScopeStatistics(Scope.GPU, (1, 1)).all_of(Statistic.LAST)


def test_product_names_lead_to_the_catalogue() -> None:
    assert set(CATALOGUE_NAMES.values()) <= set(GPUS)
    assert catalogue_gpu("NVIDIA H100 80GB HBM3") is GPUS["H100-80G"]
    assert catalogue_gpu("MI300X-192G") is GPUS["MI300X-192G"]
    assert catalogue_gpu("NVIDIA GeForce 256") is None

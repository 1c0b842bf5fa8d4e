"""Slow start of replicas that have been away."""

import numpy as np
import pytest
from breaker_fleet import BATCH_SLOTS, Fleet, kv, make_rule

from trimtab.agents.shield.slow_start import SlowStart


def test_slow_start_ramps_up_a_replica_that_has_become_available():
    fleet = Fleet(slow=SlowStart(span_s=10.0, first_requests=5.0, penalty=0.4))
    fleet.see(replica__is_available=[1, 0, None, 1])
    limits = fleet.see_for(1.0, replica__is_available=[1, 0, None, 1]).limits
    assert np.isinf(limits.max_outstanding).all()  # up from the start, or not up yet
    up = {"replica__is_available": [1, 1, 1, 1]}
    limits = fleet.see_for(0.1, **up).limits
    assert list(limits.max_outstanding) == [np.inf, 5.0, np.inf, np.inf]
    assert list(limits.penalties) == [0.0, 0.4, 0.0, 0.0]
    limits = fleet.see_for(5.0, **up).limits
    assert limits.max_outstanding[1] == pytest.approx(5.0 + 0.5 * (BATCH_SLOTS - 5.0))
    assert limits.penalties[1] == pytest.approx(0.2)
    limits = fleet.see_for(5.1, **up).limits
    assert np.isinf(limits.max_outstanding).all()
    assert not limits.penalties.any()


def test_slow_start_follows_quarantine():
    fleet = Fleet(make_rule(for_s=0.0), slow=SlowStart(span_s=10.0, first_requests=3.0))
    fleet.see_for(0.1, **kv(0.99))
    limits = fleet.see_for(7.1, **kv(0.1)).limits
    assert limits.masks[0] == 0
    assert limits.max_outstanding[0] == pytest.approx(3.0, abs=1.0)
    assert np.isinf(fleet.see_for(10.0, **kv(0.1)).limits.max_outstanding).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"span_s": -1.0}, "span_s and penalty must be at least 0, got -1.0"),
        ({"first_requests": 0.0}, "first_requests must be at least 1, got 0.0"),
    ],
)
def test_slow_start_is_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        SlowStart(**changes)

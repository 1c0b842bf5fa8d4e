"""The dispatch kernel: each term does what its name says, and gates and limits hold."""

import numpy as np
import pytest

from trimtab.env.dispatch import (
    NUM_TERMS,
    QUERY_DTYPE,
    TERM_NAMES,
    VIEW_DTYPE,
    choose_replica,
    explain,
    is_shed,
    predicted_ttft_s,
    refresh_slow_factor,
    session_score,
)
from trimtab.env.knobs import BIAS_LIMIT, Knobs
from trimtab.env.simulator.setup import replica_coefficients

FULL = Knobs.of(scorer_weight=1.0)


class Gateway:
    """What a choice is made from: a view of equal, idle replicas to be changed by a test."""

    def __init__(self, nominal: np.ndarray) -> None:
        self.nominal = nominal
        self.view = np.zeros(nominal.size, VIEW_DTYPE)
        self.view["max_outstanding"] = np.inf
        self.view["is_available"] = 1
        self.view["slow_factor"] = self.view["prefill_stretch"] = 1.0
        self.view["kv_capacity_tokens"] = 100_000
        self.view["prefill_token_s"] = 2e-5
        self.view["decode_base_s"] = 0.007
        self.query = np.zeros(1, QUERY_DTYPE)
        self.query["input_tokens"] = 1000
        self.query["expected_output_tokens"] = 200
        self.query["ttft_slo_s"], self.query["tpot_slo_s"] = 0.5, 0.05
        self.hits = np.zeros(nominal.size, np.int64)
        self.random_state = np.array([7], np.uint64)
        self.terms = np.zeros(NUM_TERMS)

    def choose(self, knobs: Knobs, *, cursor: int = 0, now_s: float = 0.0) -> int | None:
        bias = np.zeros(self.view.size)
        bias[: knobs.replica_bias.size] = knobs.replica_bias
        is_found, replica = choose_replica(
            self.view, self.nominal, self.query[0], self.hits, knobs.record()[0], bias,
            now_s, cursor, self.random_state, self.terms,
        )  # fmt: skip
        return replica if is_found else None

    def is_shed(self, knobs: Knobs, replica: int = 0, most_limits: float = np.inf) -> bool:
        return is_shed(
            self.view,
            self.nominal,
            self.query[0],
            self.hits,
            knobs.record()[0],
            0.0,
            replica,
            most_limits,
        )

    def ttft_s(self, knobs: Knobs, replica: int = 0, now_s: float = 0.0) -> float:
        uncached = int(self.query["input_tokens"][0] - self.hits[replica])
        return predicted_ttft_s(
            self.view[replica], self.nominal[replica], knobs.record()[0], uncached, now_s
        )

    def explain(self, knobs: Knobs) -> list[dict[str, float]]:
        bias = np.zeros(self.view.size)
        bias[: knobs.replica_bias.size] = knobs.replica_bias
        return explain(self.view, self.nominal, self.query, self.hits, knobs.record(), bias, 0.0)


@pytest.fixture
def make_gateway(make_cluster):
    def make(num_replicas: int = 4) -> Gateway:
        coefficients = replica_coefficients(make_cluster())
        return Gateway(np.repeat(coefficients, num_replicas))

    return make


@pytest.mark.parametrize(
    ("knob", "field", "values"),
    [
        ("outstanding_requests_weight", "outstanding_requests", [3, 2, 1, 2]),
        ("outstanding_tokens_weight", "outstanding_tokens", [300, 200, 100, 200]),
        ("pending_tokens_weight", "pending_tokens", [300, 200, 100, 200]),
        ("running_weight", "running_requests", [3, 2, 1, 2]),
        ("waiting_weight", "waiting_requests", [3, 2, 1, 2]),
        ("waiting_share_weight", "waiting_requests", [3, 2, 1, 2]),
        ("kv_usage_weight", "kv_usage_frac", [0.3, 0.2, 0.1, 0.2]),
        ("cached_tokens_weight", "cached_frac", [0.3, 0.2, 0.1, 0.2]),
        ("predicted_ttft_weight", "pending_tokens", [3000, 2000, 1000, 2000]),
        ("scorer_weight", "pending_tokens", [3000, 2000, 1000, 2000]),
        ("scorer_weight", "slow_factor", [2.0, 1.5, 0.9, 1.5]),
    ],
)
def test_least_of_a_field_wins(make_gateway, knob, field, values):
    gateway = make_gateway()
    gateway.view[field] = values
    assert gateway.choose(Knobs.of(**{knob: 1.0})) == 2
    # No other term reads along: with the field equal everywhere, ties go to the lowest index.
    gateway.view[field] = values[0]
    assert gateway.choose(Knobs.of(**{knob: 1.0})) == 0


@pytest.mark.parametrize("knobs", [Knobs(), FULL, Knobs.of(outstanding_requests_weight=1.0)])
def test_ties_go_to_the_lowest_index(make_gateway, knobs):
    gateway = make_gateway()
    assert gateway.choose(knobs) == 0
    gateway.view["is_available"][:2] = 0
    assert gateway.choose(knobs) == 2


def test_round_robin_cycles_and_passes_over_the_dead(make_gateway):
    gateway, knobs = make_gateway(5), Knobs.of(round_robin_weight=1.0)
    gateway.view["is_available"][3] = 0
    chosen, cursor = [], 0
    for _ in range(8):
        chosen.append(gateway.choose(knobs, cursor=cursor))
        cursor = (chosen[-1] + 1) % 5
    assert chosen == [0, 1, 2, 4, 0, 1, 2, 4]


def test_session_hash_sticks_and_spreads(make_gateway):
    gateway, knobs = make_gateway(4), Knobs.of(session_hash_weight=1.0)

    def choices() -> list[int]:
        chosen = []
        for session in range(2000):
            gateway.query["session_hash"] = session * 0x9E3779B97F4A7C15 % 2**64
            chosen.append(gateway.choose(knobs))
        return chosen

    before = choices()
    gateway.view["outstanding_requests"] = [50, 0, 9, 3]
    assert choices() == before
    counts = np.bincount(before, minlength=4)
    assert (np.abs(counts - 500) < 80).all()
    # When one replica goes, only its sessions move.
    gateway.view["is_available"][1] = 0
    after = choices()
    assert all(a == b for a, b in zip(after, before, strict=True) if b != 1)
    assert 1 not in after


def test_session_scores_are_uniform():
    scores = np.array([session_score(np.uint64(s * 7919 + 1), 3) for s in range(2000)])
    assert 0.0 <= scores.min() < 0.01 < 0.99 < scores.max() < 1.0
    assert scores.mean() == pytest.approx(0.5, abs=0.03)


def test_random_spreads_evenly(make_gateway):
    gateway, knobs = make_gateway(4), Knobs.of(random_weight=1.0)
    counts = np.bincount([gateway.choose(knobs) for _ in range(4000)], minlength=4)
    assert (np.abs(counts - 1000) < 120).all()


def test_two_choices_are_distinct_and_the_lower_wins(make_gateway):
    """The fullest of four is never taken; the emptiest in half of all pairs."""
    gateway = make_gateway(4)
    gateway.view["outstanding_requests"] = [1, 9, 0, 5]
    knobs = Knobs.of(outstanding_requests_weight=1.0, num_choices=2.0)
    shares = np.bincount([gateway.choose(knobs) for _ in range(6000)], minlength=4) / 6000
    np.testing.assert_allclose(shares, [2 / 6, 0.0, 3 / 6, 1 / 6], atol=0.03)


def test_draws_that_cannot_take_fall_back(make_gateway):
    gateway = make_gateway(4)
    gateway.view["is_available"] = [0, 0, 1, 0]
    knobs = Knobs.of(outstanding_requests_weight=1.0, num_choices=2.0)
    assert {gateway.choose(knobs) for _ in range(100)} == {2}
    one = make_gateway(1)
    assert {one.choose(knobs) for _ in range(10)} == {0}


def test_prefix_miss_prefers_the_holder(make_gateway):
    gateway = make_gateway()
    gateway.hits[:] = [0, 64, 0, 640]
    assert gateway.choose(Knobs.of(prefix_miss_weight=1.0)) == 3
    assert gateway.choose(FULL) == 3
    gateway.view["outstanding_requests"] = [0, 0, 0, 2]
    mixed = Knobs.of(prefix_miss_weight=1.0, outstanding_requests_weight=1.0)
    assert gateway.choose(mixed) == 1


def test_replicas_that_are_down_or_too_small_are_masked(make_gateway):
    gateway = make_gateway()
    gateway.view["is_available"][0] = 0
    gateway.view["kv_capacity_tokens"][1] = 1199  # prompt and expected output are 1200
    gateway.view["kv_capacity_tokens"][2] = 1200
    for knobs in (Knobs(), FULL, Knobs.of(outstanding_requests_weight=1.0)):
        assert gateway.choose(knobs) == 2
    gateway.view["kv_capacity_tokens"] = 1199
    assert gateway.choose(FULL) is None
    assert gateway.choose(Knobs.of(num_choices=2.0)) is None
    assert gateway.choose(Knobs.of(hit_threshold_frac=0.5)) is None


def test_waiting_share_ignores_what_is_masked(make_gateway):
    gateway = make_gateway()
    gateway.view["waiting_requests"] = [1000, 4, 2, 3]
    gateway.view["cached_frac"] = [0.0, 0.0, 0.9, 0.0]
    gateway.view["is_available"][0] = 0
    # Over candidates 4, 2, 3 the shares are 1, 0 and 0.5; 0.9 of cache outweighs half a share.
    knobs = Knobs.of(waiting_share_weight=1.0, cached_tokens_weight=1.0)
    assert gateway.choose(knobs) == 3


CACHE_AWARE = Knobs.of(hit_threshold_frac=0.5, balance_abs_requests=64.0, balance_ratio=1.5)


@pytest.mark.parametrize(
    ("outstanding", "hits", "cached", "chosen"),
    [
        # Balanced, best match above half of 1000 tokens: the best match.
        ([9, 0, 5, 0], [0, 0, 501, 500], [0.1, 0.1, 0.9, 0.1], 2),
        # Half is not above half: the emptiest cache.
        ([9, 0, 5, 0], [0, 0, 500, 500], [0.3, 0.2, 0.9, 0.1], 3),
        # Best match and emptiest cache: ties go to the shorter queue.
        ([9, 0, 5, 7], [640, 0, 640, 0], [0.0] * 4, 2),
        ([9, 8, 5, 7], [0] * 4, [0.2, 0.1, 0.1, 0.2], 2),
        # 65 apart and more than 1.5 times: the shortest queue, whatever is cached.
        ([65, 0, 30, 1], [960, 0, 0, 0], [0.0, 0.9, 0.0, 0.0], 1),
        # 64 apart is balanced.
        ([64, 0, 30, 1], [960, 0, 0, 0], [0.0, 0.9, 0.0, 0.0], 0),
        # 70 apart but not more than 1.5 times is balanced.
        ([210, 140, 140, 140], [960, 0, 0, 0], [0.0, 0.9, 0.0, 0.0], 0),
        ([211, 140, 141, 141], [960, 0, 0, 0], [0.0, 0.9, 0.0, 0.0], 1),
    ],
)
def test_cache_aware_gate(make_gateway, outstanding, hits, cached, chosen):
    gateway = make_gateway()
    gateway.view["outstanding_requests"] = outstanding
    gateway.hits[:] = hits
    gateway.view["cached_frac"] = cached
    assert gateway.choose(CACHE_AWARE) == chosen


def test_predicted_ttft_by_hand(make_gateway):
    gateway = make_gateway()
    gateway.view["pending_tokens"] = 5000.0
    gateway.view["progress_at_s"] = 9.9
    gateway.view["slow_factor"] = 1.2
    gateway.view["outstanding_tokens"] = 800.0
    gateway.hits[:] = 400
    knobs = Knobs.of(backlog=2.0, elapsed=0.5, iteration=0.25)
    decode_s = 0.007 + 800.0 * gateway.nominal["decode_context_s"][0]
    backlog_s = 2.0 * 5000 * 2e-5 - 0.5 * 0.1
    expected_s = 1.2 * (backlog_s + 600 * 2e-5 + 0.25 * decode_s)
    assert gateway.ttft_s(knobs, now_s=10.0) == pytest.approx(expected_s)
    # A backlog never becomes a credit.
    expected_s = 1.2 * (600 * 2e-5 + 0.25 * decode_s)
    assert gateway.ttft_s(knobs, now_s=99.0) == pytest.approx(expected_s)


@pytest.mark.parametrize(("priority", "knob"), [(0, "shed_interactive"), (1, "shed_batch")])
def test_refusal_threshold_of_each_class(make_gateway, priority, knob):
    gateway = make_gateway()
    gateway.view["pending_tokens"] = 50_000
    gateway.query["priority"] = priority
    ratio = gateway.ttft_s(FULL) / 0.5
    other = {"shed_interactive": "shed_batch", "shed_batch": "shed_interactive"}[knob]
    for factor, is_refused in ((0.99, True), (1.01, False)):
        values = {knob: ratio * factor, other: ratio * (2.0 - factor)}
        assert gateway.is_shed(Knobs.of(shed_enabled=1.0, **values)) is is_refused
        assert gateway.is_shed(Knobs.of(**values)) is False
        # In an emergency it is refused whatever the knobs say.
        assert gateway.is_shed(Knobs.of(**values), most_limits=ratio * factor) is is_refused
        knobs = Knobs.of(shed_enabled=1.0, **{knob: 40.0})
        assert gateway.is_shed(knobs, most_limits=ratio * factor) is is_refused


def test_scorer_hinges_and_batch_term(make_gateway):
    gateway = make_gateway(2)
    gateway.view["kv_usage_frac"] = [0.81, 0.8]
    assert gateway.choose(FULL) == 1
    gateway.view["kv_usage_frac"] = [0.8, 0.0]
    assert gateway.choose(FULL) == 0  # both at or under the hinge
    gateway.view["outstanding_requests"] = [64, 63]
    assert gateway.choose(FULL) == 1
    gateway.view["outstanding_requests"] = 0
    gateway.view["decode_base_s"] = [0.041, 0.0405]
    parts = gateway.explain(FULL)
    assert parts[0]["tpot_hinge"] > parts[1]["tpot_hinge"] > 0.0


def test_externality_weighs_own_work_by_class(make_gateway):
    gateway = make_gateway(2)
    gateway.view["prefill_token_s"] = [4e-5, 2e-5]
    knobs = Knobs.of(scorer_weight=1.0, externality_interactive=-3.0, externality_batch=3.0)
    assert gateway.choose(knobs) == 0
    gateway.query["priority"] = 1
    assert gateway.choose(knobs) == 1


def test_bias_moves_the_choice(make_gateway):
    gateway = make_gateway()
    for replica in range(4):
        bias = np.zeros(4)
        bias[replica] = -0.1
        assert gateway.choose(FULL.with_bias(bias)) == replica
    gateway.view["pending_tokens"] = [0, 0, 1e6, 0]
    assert gateway.choose(FULL.with_bias(np.array([0.0, 0.0, -BIAS_LIMIT, 0.0]))) == 0


def test_what_a_choice_left_behind_does_not_leak_into_the_next(make_gateway):
    gateway, clean = make_gateway(), make_gateway()
    everything = {name: 1.0 for name in ("random_weight", "round_robin_weight")}
    gateway.view["waiting_requests"] = clean.view["waiting_requests"] = [5, 1, 3, 2]
    gateway.choose(Knobs.of(waiting_share_weight=1.0, **everything))
    for one in (gateway, clean):
        one.choose(Knobs.of(outstanding_requests_weight=1.0))
    np.testing.assert_array_equal(gateway.terms[:12], clean.terms[:12])


def test_slow_factor_weighs_both_ratios(make_gateway):
    gateway = make_gateway(1)
    gateway.view["ttft_log_ratio"], gateway.view["iteration_log_ratio"] = 0.3, 0.2
    refresh_slow_factor(gateway.view, Knobs.of(ttft_drift=2.0, iteration_drift=0.5).record()[0], 0)
    assert gateway.view["slow_factor"][0] == pytest.approx(np.exp(0.7))


def test_explained_parts_sum_to_the_score(make_gateway):
    """The order of the sums is the order of choice, and every part has a name."""
    gateway, rng = make_gateway(8), np.random.default_rng(0)
    for name in ("outstanding_requests", "running_requests", "waiting_requests"):
        gateway.view[name] = rng.integers(0, 60, 8)
    for name in ("kv_usage_frac", "cached_frac"):
        gateway.view[name] = rng.random(8)
    gateway.view["pending_tokens"] = rng.integers(0, 9000, 8)
    gateway.hits[:] = rng.integers(0, 15, 8) * 64
    names = ("running", "waiting", "kv_usage", "cached_tokens", "prefix_miss", "predicted_ttft")
    weights = {f"{name}_weight": rng.random() for name in names}
    knobs = Knobs.of(scorer_weight=1.0, **weights).with_bias(rng.normal(0.0, 0.3, 8))
    parts = gateway.explain(knobs)
    assert all(set(part) <= set(TERM_NAMES) for part in parts)
    assert {"predicted_ttft", "kv_usage", "prefix_hit", "replica_bias"} <= set(parts[0])
    assert parts[3]["running"] == pytest.approx(
        knobs["running_weight"] * gateway.view["running_requests"][3]
    )
    for best in np.argsort([sum(part.values()) for part in parts]):
        assert gateway.choose(knobs) == best
        gateway.view["is_available"][best] = 0
    assert gateway.choose(knobs) is None


def test_explanation_leaves_out_chance_and_the_cursor(make_gateway):
    gateway = make_gateway(3)
    knobs = Knobs.of(random_weight=1.0, round_robin_weight=1.0, kv_usage_weight=2.0)
    gateway.view["kv_usage_frac"] = 0.25
    assert gateway.explain(knobs) == [{"kv_usage": 0.5}] * 3

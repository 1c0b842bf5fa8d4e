"""A few candidates stand for all: the same choice where they are all, a near one where not."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.dispatch import NUM_TERMS, QUERY_DTYPE, VIEW_DTYPE, choose_replica
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.shortlist import (
    CANDIDATE_DTYPE,
    MAX_HOLDERS,
    SHORTLIST_SIZE,
    can_use_shortlist,
    choose_candidate,
)
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.synthetic import SyntheticConfig, generate

SCORER = Knobs.of(scorer_weight=1.0)


class Gateway:
    """A gateway before many idle replicas of a few kinds, with its shortlist."""

    def __init__(self, num_replicas: int) -> None:
        kinds = replica_coefficients(load_cluster("demo-16"))
        self.nominal = np.resize(kinds, num_replicas)
        self.view = np.zeros(num_replicas, VIEW_DTYPE)
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
        self.hits = np.zeros(num_replicas, np.int64)
        self.bias = np.zeros(num_replicas)
        self.shortlist = np.zeros(SHORTLIST_SIZE + MAX_HOLDERS, CANDIDATE_DTYPE)
        self.shortlist["replica"] = -1
        self.walk = 0

    def choose(self, num_steps: int) -> int | None:
        is_found, replica, self.walk = choose_candidate(
            self.view, self.nominal, self.query[0], self.hits, np.flatnonzero(self.hits),
            SCORER.record()[0], self.bias, 0.0, self.shortlist, (self.walk, num_steps),
        )  # fmt: skip
        return replica if is_found else None

    def choose_among_all(self) -> int | None:
        is_found, replica = choose_replica(
            self.view, self.nominal, self.query[0], self.hits, SCORER.record()[0], self.bias,
            0.0, 0, np.zeros(1, np.uint64), np.zeros(NUM_TERMS),
        )  # fmt: skip
        return replica if is_found else None


@pytest.mark.parametrize("num_replicas", [1, 2, 16, 130, 256])
def test_a_walk_through_all_chooses_as_scoring_all(num_replicas):
    gateway, rng = Gateway(num_replicas), np.random.default_rng(num_replicas)
    for _ in range(30):
        gateway.view["pending_tokens"] = rng.integers(0, 5, num_replicas) * 1000
        gateway.view["is_available"] = rng.random(num_replicas) < 0.7
        gateway.hits[:] = rng.integers(0, 12, num_replicas) * 64 * (rng.random(num_replicas) < 0.5)
        gateway.bias[:] = rng.normal(0.0, 0.1, num_replicas)
        assert gateway.choose(num_replicas) == gateway.choose_among_all()


@pytest.mark.parametrize("num_replicas", [17, 100, 256, 1000])
def test_the_best_is_found_within_one_round_and_kept(num_replicas):
    gateway = Gateway(num_replicas)
    gateway.view["pending_tokens"] = 5000
    gateway.view["pending_tokens"][num_replicas // 3] = 10
    chosen = [gateway.choose(8) for _ in range(3 * -(-num_replicas // 8))]
    first = chosen.index(num_replicas // 3)
    assert first < -(-num_replicas // 8)
    assert set(chosen[first:]) == {num_replicas // 3}


def test_the_deepest_holders_are_candidates_wherever_they_are():
    gateway = Gateway(500)
    gateway.view["pending_tokens"] = 500
    gateway.hits[377] = 960
    assert gateway.choose(1) == 377
    # Half of the fleet holds a little; the one that holds most is still found.
    gateway.hits[250:] = 64
    gateway.hits[377] = 960
    assert gateway.choose(1) == 377
    # A long backlog there outweighs what it holds.
    gateway.view["pending_tokens"][377] = 50_000
    assert gateway.choose(1) != 377


def test_candidates_that_cannot_take_it_are_passed_over():
    gateway = Gateway(300)
    gateway.view["model"][::2] = 1
    gateway.view["is_available"][:150] = 0
    for _ in range(100):
        chosen = gateway.choose(16)
        assert chosen is None or (chosen % 2 == 1 and chosen >= 150)
    assert gateway.choose(300) == gateway.choose_among_all()
    gateway.view["is_available"] = 0
    assert gateway.choose(300) is None


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"scorer_weight": 1.0}, True),
        ({}, False),
        ({"scorer_weight": 1.0, "round_robin_weight": 1.0}, False),
        ({"scorer_weight": 1.0, "num_choices": 2.0}, False),
        ({"scorer_weight": 1.0, "hit_threshold_frac": 0.5}, False),
    ],
)
def test_only_the_analytic_scorer_uses_it(knobs, expected):
    assert can_use_shortlist(Knobs.of(**knobs).record()[0]) == expected


def make_copies(num_copies: int) -> ClusterSpec:
    base = load_cluster("demo-16")
    servers, replicas = [], []
    for i in range(num_copies):
        servers += [replace(server, name=f"{server.name}.{i}") for server in base.servers]
        replicas += [
            replace(replica, name=f"{replica.name}.{i}", server=f"{replica.server}.{i}")
            for replica in base.replicas
        ]
    return ClusterSpec(name="copies", servers=tuple(servers), replicas=tuple(replicas))


def goodputs(num_copies: int, span_s: float, rate_rps: float) -> tuple[float, float]:
    """Goodput with the default subset and with scoring all."""
    rate_rps *= num_copies
    config = SyntheticConfig(
        num_requests=int(rate_rps * span_s), rate_rps=rate_rps, seed=1, block_tokens=512
    )
    workload, cluster = compile_workload(generate(config), name="copies"), make_copies(num_copies)
    few, every = (
        run_workload(cluster, workload, ANALYTIC_SCORER_KNOBS, config=FleetConfig(**one))
        for one in ({}, {"num_candidates": 0})
    )
    assert not np.array_equal(few.requests["replica"], every.requests["replica"])
    return few.kpis().goodput_frac, every.kpis().goodput_frac


# Rates are requests/s for 16 replicas, at which a fleet just keeps up over the span.


def test_a_subset_of_256_loses_less_than_half_a_point():
    few, every = goodputs(16, span_s=20.0, rate_rps=155.0)
    assert 0.9 < every < 0.995
    assert few > every - 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_copies", "span_s", "rate_rps"), [(16, 120.0, 110.0), (64, 45.0, 150.0)]
)
def test_a_subset_loses_less_than_half_a_point_over_a_longer_run(num_copies, span_s, rate_rps):
    few, every = goodputs(num_copies, span_s=span_s, rate_rps=rate_rps)
    assert 0.9 < every < 0.995
    assert few > every - 0.005


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="num_candidates must be at least 0 or None, got -1"):
        FleetConfig(num_candidates=-1)

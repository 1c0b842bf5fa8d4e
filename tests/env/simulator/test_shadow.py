"""Shadow regret: it orders policies rightly, obeys the rules, and leaves the fleet as it was."""

import numpy as np
import pytest

from trimtab.agents.heuristics import ANALYTIC_SCORER, HEURISTICS, heuristic
from trimtab.env.dispatch import QUERY_DTYPE, VIEW_DTYPE
from trimtab.env.knobs import Knobs
from trimtab.env.latency import LATENCY_DTYPE
from trimtab.env.masks import Mask
from trimtab.env.regret import NO_REGRET, Regret
from trimtab.env.restrictions import Restrictions, open_groups
from trimtab.env.scenario import TROUBLED
from trimtab.env.shadow import JUDGE_KNOBS, is_expected_to_meet
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import compile_workload
from trimtab.traces.superposition import superpose
from trimtab.traces.synthetic import SyntheticConfig, generate

GOOD = ANALYTIC_SCORER.knobs
GPUS = ["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]


@pytest.fixture(scope="module")
def workload():
    """A rate at which the fleet keeps up if it is used well."""
    trace = generate(SyntheticConfig(num_requests=4000, rate_rps=10.0, seed=0, block_tokens=128))
    return compile_workload(superpose(trace, rate_rps=18.0, span_s=40.0, seed=1), name="busy")


@pytest.fixture(scope="module")
def run(make_cluster, workload):
    def run(
        knobs: Knobs, shadow: Knobs | None, *, every: int = 1, config: FleetConfig = TROUBLED
    ) -> SimulatedFleet:
        fleet = SimulatedFleet(make_cluster(GPUS), workload, config)
        fleet.reset(seed=3, knobs=knobs)
        fleet.set_shadow(shadow, every=every)
        fleet.drain()
        return fleet

    return run


BAD = {
    "all is shed": GOOD.replace({"shed_interactive": 0.1, "shed_batch": 0.1}),
    "one replica takes all": Knobs().with_bias(np.array([2.0, 2.0, 2.0, -2.0])),
    "in turn, whatever it takes": heuristic("round-robin").knobs,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_policy_has_clear_regret_and_does_worse(run, name):
    fleet = run(BAD[name], GOOD)
    regret = fleet.take_regret()
    assert regret.lower_bound(3.0) > 0.03
    assert regret.num_sampled >= fleet.requests.size
    best = run(GOOD, BAD[name])
    assert best.kpis().goodput_frac > fleet.kpis().goodput_frac + 0.03
    # Seen from the other side there is nothing to regret.
    assert best.take_regret().mean < 0.01


@pytest.mark.parametrize(
    ("ruling", "shadow"),
    [("analytic-scorer", "predicted-ttft"), ("predicted-ttft", "analytic-scorer")],
)
def test_two_good_policies_have_little_regret(run, ruling, shadow):
    regret = run(heuristic(ruling).knobs, heuristic(shadow).knobs).take_regret()
    assert abs(regret.mean) < 0.03


@pytest.mark.parametrize("name", ["analytic-scorer", "sglang-cache-aware", "llm-d-weighted"])
def test_a_policy_has_no_regret_of_itself(run, name):
    knobs = heuristic(name).knobs.with_bias(np.array([0.1, 0.0, -0.2, 0.0]))
    regret = run(knobs, knobs).take_regret()
    assert regret.num_sampled > 500
    assert (regret.mean, regret.std_error) == (0.0, 0.0)


def test_what_a_shadow_expects_is_about_what_comes_of_it(make_cluster, workload):
    for name in ("analytic-scorer", "round-robin", "least-tokens"):
        fleet = SimulatedFleet(make_cluster(GPUS), workload, TROUBLED)
        fleet.reset(seed=3, knobs=heuristic(name).knobs)
        fleet.set_shadow(GOOD, every=1)
        # A shadow that may go nowhere: what is left is minus what is expected of the others.
        fleet.arrays.shadow_bias[:] = np.inf
        fleet.drain()
        expected_frac = -fleet.take_regret().mean
        assert expected_frac == pytest.approx(fleet.kpis().goodput_frac, abs=0.1)


@pytest.mark.parametrize(
    "ruling", ["random", "power-of-two", "round-robin", "session-hash", "analytic-scorer"]
)
def test_a_shadow_changes_nothing(run, ruling):
    config = FleetConfig(faults=TROUBLED.faults, num_gateways=3)
    knobs = heuristic(ruling).knobs
    alone = run(knobs, None, config=config)
    shadows = [HEURISTICS["power-of-two"].knobs, HEURISTICS["random"].knobs, BAD["all is shed"]]
    for shadow in shadows:
        watched = run(knobs, shadow, config=config)
        for name in ("requests", "replicas", "views", "gateways", "random", "shortlists", "bias"):
            same = getattr(watched.arrays, name).tobytes() == getattr(alone.arrays, name).tobytes()
            assert same, name
    assert alone.take_regret() == NO_REGRET


def test_every_nth_request_is_sampled_and_taken_once(run, workload):
    fleet = run(GOOD, HEURISTICS["random"].knobs, every=8, config=FleetConfig())
    assert fleet.take_regret().num_sampled == workload.requests.size // 8
    assert fleet.take_regret() == NO_REGRET
    with pytest.raises(ValueError, match="every must be at least 1 request, got 0"):
        fleet.set_shadow(GOOD, every=0)


def test_a_shadow_obeys_the_rules_too(run):
    """Where rules leave one replica, there is nothing that other knobs could do better."""
    masks = np.full((1, 4), Mask.REGION, np.uint16)
    masks[0, 3] = 0
    bound = Restrictions(
        names=("all",),
        masks=masks,
        penalties=np.zeros((1, 4)),
        groups=open_groups(1),
        table=np.zeros((1, 1), np.int64),
    )
    knobs = [heuristic(name).knobs for name in ("round-robin", "random")]
    regret = run(*knobs, config=FleetConfig(restrictions=bound)).take_regret()
    assert regret.num_sampled > 500
    assert regret.mean == 0.0


def test_copies_of_a_fleet_keep_its_shadow(make_cluster, workload):
    fleet = SimulatedFleet(make_cluster(GPUS), workload, TROUBLED)
    fleet.reset(seed=0, knobs=BAD["one replica takes all"])
    fleet.set_shadow(heuristic("power-of-two").knobs, every=2)
    fleet.advance(6.0)
    copy, moment = fleet.branch(), fleet.snapshot()
    regrets = []
    for one in (fleet, copy):
        one.advance(6.0)
        regrets.append(one.take_regret())
    fleet.restore(moment)
    fleet.advance(6.0)
    regrets.append(fleet.take_regret())
    assert regrets[0] == regrets[1] == regrets[2]
    assert regrets[0].num_sampled > 50


def test_mean_and_error_are_by_weight(run):
    fleet = run(GOOD, None)
    # Weights 2, 1, 1 with differences 1, 0, -1.
    fleet.arrays.shadow[0] = (1, 3, 0, 3, 4.0, 6.0, 1.0, 3.0, 5.0)
    regret = fleet.take_regret()
    by_hand = np.sqrt((2 * 0.75) ** 2 + (1 * 0.25) ** 2 + (1 * 1.25) ** 2) / 4
    assert regret == Regret(num_sampled=3, mean=0.25, std_error=pytest.approx(by_hand))


def test_known_outcomes_of_one_request_on_one_view():
    view = np.zeros(3, VIEW_DTYPE)
    view["slow_factor"] = 7.0  # of the ruling knobs: no matter
    view["prefill_token_s"] = 1e-4
    view["decode_base_s"] = 0.02
    view["pending_tokens"] = [0, 9000, 0]  # 0.9 s of backlog on the second
    view["prefill_frac"] = [0, 0, 1.0]
    view["iteration_log_ratio"] = [0.0, 0.0, np.log(2.0)]
    query = np.zeros(1, QUERY_DTYPE)
    query["input_tokens"], query["tpot_slo_s"] = 1000, 0.05
    nominal, hits = np.zeros(3, LATENCY_DTYPE), np.array([0, 500, 0])
    judge = JUDGE_KNOBS.record()

    def met(replica: int, ttft_slo_s: float, tpot_slo_s: float = 0.05, now_s: float = 0.0) -> bool:
        query["ttft_slo_s"], query["tpot_slo_s"] = ttft_slo_s, tpot_slo_s
        before = view.tobytes()
        is_met = is_expected_to_meet(view, nominal, query[0], hits, judge[0], now_s, replica)
        assert view.tobytes() == before
        return bool(is_met)

    # 0.1 s of prefill and the iteration in progress, 0.02 s.
    assert (met(0, 0.121), met(0, 0.119)) == (True, False)
    # Half the prompt is cached; half a second of the backlog has passed.
    assert (met(1, 0.971), met(1, 0.969), met(1, 0.48, now_s=0.5)) == (True, False, True)
    # Twice as slow as nominal.
    assert (met(2, 0.241, 1.0), met(2, 0.239, 1.0)) == (True, False)
    # Each iteration carries a chunk of 512 tokens: 0.0712 s, times two.
    assert (met(2, 1.0, 0.1425), met(2, 1.0, 0.1423)) == (True, False)
    assert (met(0, 1.0, 0.0201), met(0, 1.0, 0.0199)) == (True, False)

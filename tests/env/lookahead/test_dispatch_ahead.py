"""A fleet under the lookahead: what it chooses, what it may know, and that it repeats itself."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.lookahead.settings import Judge, LookaheadSettings
from trimtab.env.placement import LOOKAHEAD_RULE
from trimtab.env.request_life import read_life
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.layout import DECODING, PREFILLING, SHED, WAITING
from trimtab.env.simulator.lookahead import candidates, run_out
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.value.labels import LabelSettings
from trimtab.env.value.network import closed_form
from trimtab.scripts.life_text import reason

AHEAD = LookaheadSettings()
MARGIN = ANALYTIC_SCORER_KNOBS["slo_margin"]
CALM = FleetConfig(faults=FaultConfig(), lookahead=AHEAD)
TROUBLE = FleetConfig(
    faults=FaultConfig(
        replica_slowdowns_per_hour=400.0, crashes_per_hour=120.0, restart_span_s=(0.5, 4.0)
    ),
    lookahead=AHEAD,
)
GPUS = ["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]


@pytest.fixture(scope="module")
def make_fleet(make_cluster, make_random_workload):
    def make_fleet(config: FleetConfig = CALM, *, num_requests: int = 600, rate_rps: float = 25.0):
        workload = make_random_workload(
            num_requests, rate_rps=rate_rps, seed=1, mean_input_tokens=1600.0, max_tokens=9000,
            mean_output_tokens=300.0, num_prompts=0,
        )  # fmt: skip
        return SimulatedFleet(make_cluster(GPUS), workload, config)

    return make_fleet


def run(fleet: SimulatedFleet, seed: int = 3) -> SimulatedFleet:
    fleet.reset(seed=seed, knobs=ANALYTIC_SCORER_KNOBS)
    fleet.drain()
    return fleet


def goodput(fleet: SimulatedFleet) -> float:
    return fleet.kpis().goodput_frac


BY_NETWORK = ANALYTIC_SCORER_KNOBS.replace({"value_weight": 1.0})


def placed_by(judge: str, config: FleetConfig) -> tuple[FleetConfig, Knobs]:
    """What lets a fleet place by rollouts, or by the value network's closed form."""
    if judge == "network":
        return replace(config, lookahead=None), BY_NETWORK
    return config, ANALYTIC_SCORER_KNOBS


@pytest.mark.parametrize("judge", ["rollouts", "network"])
def test_it_gains_on_the_scorer_where_load_is_high(make_fleet, judge):
    config, knobs = placed_by(judge, CALM)
    fleet = make_fleet(config, rate_rps=60.0)
    fleet.reset(seed=3, knobs=knobs)
    fleet.drain()
    ahead = goodput(fleet)
    plain = goodput(run(make_fleet(replace(CALM, lookahead=None), rate_rps=60.0)))
    assert ahead > plain + 0.02


@pytest.mark.parametrize("judge", ["rollouts", "network"])
def test_the_same_seed_gives_the_same_run_and_a_copy_goes_on_alike(make_fleet, judge):
    config, knobs = placed_by(judge, TROUBLE)
    one, other = make_fleet(config), make_fleet(config)
    one.reset(seed=3, knobs=knobs)
    one.drain()
    other.reset(seed=3, knobs=knobs)
    other.run_until(5.0)
    branch = other.branch()
    fresh = SimulatedFleet(other.cluster, other.workload, other.config)
    fresh.restore(other.snapshot())
    for fleet in (other, branch, fresh):
        fleet.drain()
        assert fleet.requests.tobytes() == one.requests.tobytes()


def test_mirrors_hold_what_is_open_and_nothing_else(make_fleet):
    fleet = make_fleet(TROUBLE, rate_rps=30.0)
    fleet.reset(seed=3, knobs=ANALYTIC_SCORER_KNOBS)
    while fleet.now_s < fleet.workload.span_s + 20.0:
        fleet.run_until(fleet.now_s + 0.5)
        requests, arrays = fleet.requests, fleet.arrays
        is_open = np.isin(requests["status"], [WAITING, PREFILLING, DECODING])
        for r, mirror in enumerate(arrays.mirrors):
            rows = arrays.mirror_rows[r, : mirror["num_rows"]]
            assert set(rows["key"]) == set(np.flatnonzero(is_open & (requests["replica"] == r)))
            has_token = requests["generated_tokens"][rows["key"]] > 0
            np.testing.assert_array_equal(~np.isnan(rows["first_token_s"]), has_token)
        assert arrays.mirrors["num_dropped"].sum() == 0
    assert arrays.replicas["num_crashes"].sum() > 0


def hide_the_truth(fleet: SimulatedFleet, rng: np.random.Generator) -> None:
    """Change all that is to come and no gateway knows, behind what has been seen."""
    arrays = fleet.arrays
    running = fleet.requests["status"] == DECODING
    more = rng.integers(1, 2000, size=arrays.replicas.size)
    arrays.requests["output_tokens"][np.flatnonzero(running)] += more[
        fleet.requests["replica"][running]
    ].astype(np.int32)
    arrays.sequences["end_iteration"] += more[:, None]
    others = np.flatnonzero(np.isin(arrays.requests["status"], [WAITING, PREFILLING]))
    others = np.concatenate([others, np.arange(fleet.requests.size, arrays.requests.size)])
    arrays.requests["output_tokens"][others] = arrays.requests["output_tokens"][
        rng.permutation(others)
    ]
    for name in ("gemm_token_s", "decode_context_s", "step_s"):
        arrays.actual[name] *= rng.uniform(1.1, 2.0)
    arrays.linear_s[:] = np.nan


@pytest.mark.parametrize("judge", ["rollouts", "network"])
def test_what_no_gateway_can_know_changes_no_decision(make_fleet, judge):
    config, knobs = placed_by(judge, CALM)
    fleet, other = make_fleet(config, rate_rps=60.0), None
    fleet.reset(seed=3, knobs=knobs)
    other = SimulatedFleet(fleet.cluster, fleet.workload, fleet.config)
    rng, actual = np.random.default_rng(0), fleet.arrays.actual.copy()
    replicas, worths = set(), []
    for index in range(100, 500, 10):
        arrival_s = float(fleet.workload.requests["arrival_s"][index])
        fleet.run_until(arrival_s)
        other.restore(fleet.snapshot())
        hide_the_truth(other, rng)
        other.run_until(arrival_s + 1e-9)
        fleet.arrays.actual[:] = actual
        fleet.run_until(arrival_s + 1e-9)
        own, foreign = fleet.requests[index], other.requests[index]
        assert (own["status"], own["replica"]) == (foreign["status"], foreign["replica"])
        assert candidates(fleet.arrays) == candidates(other.arrays)
        replicas.add(int(own["replica"]))
        worths += [choice["worth"] for choice in candidates(fleet.arrays)]
    assert len(replicas) >= 4
    assert len(set(worths)) > 4


def test_a_request_that_cannot_be_met_is_refused(make_fleet):
    fleet = make_fleet(rate_rps=5.0, num_requests=60)
    hopeless = np.arange(0, 60, 3)
    fleet.workload.requests["query"]["ttft_slo_s"] = 5.0
    fleet.workload.requests["query"]["ttft_slo_s"][hopeless] = 1e-3
    run(fleet)
    is_shed = fleet.requests["status"] == SHED
    np.testing.assert_array_equal(np.flatnonzero(is_shed), hopeless)


def test_it_spares_the_replica_whose_requests_are_on_the_brink(make_cluster, make_workload):
    """Both replicas run the same; only what they may still lose differs, which no score tells."""
    arrival_s = [*np.arange(40) * 0.01, 3.0]
    workload = make_workload(arrival_s, [500] * 40 + [6000], [1500] * 40 + [10])
    workload.requests["query"]["ttft_slo_s"] = 10.0
    workload.requests["query"]["tpot_slo_s"] = 10.0
    config = replace(CALM, scrape_drop_frac=0.0)
    for endangered in (0, 1):
        fleet = SimulatedFleet(make_cluster(["A100-80G"] * 2), workload, config)
        fleet.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)
        fleet.run_until(2.99)
        arrays = fleet.arrays
        for r in (0, 1):
            count = int(arrays.mirrors[r]["num_rows"])
            assert count == 20
            run_out(fleet.handle, r, 0, 0, True)
            jobs = arrays.ahead_jobs[:count]
            tpot_s = (jobs["finish_s"] - jobs["first_token_s"]) / (jobs["length"] - 1)
            spare = 1.01 if r == endangered else 3.0
            arrays.mirror_rows[r, :count]["tpot_slo_s"][jobs["row"]] = spare * tpot_s / MARGIN
        fleet.run_until(3.01)
        worth = {int(c["replica"]): c["worth"] for c in candidates(arrays)}
        assert fleet.requests[40]["replica"] == 1 - endangered
        assert worth[endangered] < 0 < worth[1 - endangered]


def test_what_is_remembered_changes_little(make_fleet):
    anew = run(make_fleet(replace(CALM, lookahead=replace(AHEAD, cache_s=0.0)), rate_rps=60.0))
    remembered = run(make_fleet(rate_rps=60.0))
    assert anew.arrays.lookahead["num_cached"][0] == 0
    assert remembered.arrays.lookahead["num_cached"][0] > 300
    assert goodput(remembered) == pytest.approx(goodput(anew), abs=0.03)


def test_a_placement_is_explained_by_what_each_candidate_was_expected_to_gain(make_fleet):
    fleet = run(make_fleet(replace(CALM, watched_request=300), rate_rps=60.0))
    placement = read_life(fleet).placements[0]
    assert placement.rule == LOOKAHEAD_RULE
    assert 1 < len(placement.candidates) <= AHEAD.num_candidates
    if placement.chosen is None:
        assert min(c.cost for c in placement.candidates) >= 0.0
    else:
        assert placement.chosen == placement.candidates[0].name
        assert placement.candidates[0].terms["own_goodput"] < 0.0
    assert reason(placement)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_candidates", 65, "num_candidates must be from 1 to 64, got 65"),
        ("num_samples", 0, "num_samples must be from 1 to 8, got 0"),
        ("cache_s", -1.0, "cache_s must be at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        replace(AHEAD, **{name: value})


def test_a_price_is_asked_for_the_own_prefill(make_fleet):
    config = replace(CALM, lookahead=AHEAD)
    free = make_fleet(config, rate_rps=30.0)
    priced = make_fleet(config, rate_rps=30.0)
    free.reset(seed=3, knobs=ANALYTIC_SCORER_KNOBS)
    price = {"price_interactive": 8.0, "price_batch": 8.0}
    priced.reset(seed=3, knobs=ANALYTIC_SCORER_KNOBS.replace(price))
    free.drain()
    priced.drain()
    num_free, num_priced = ((f.requests["status"] == SHED).sum() for f in (free, priced))
    assert num_priced > num_free
    refused = priced.requests[priced.requests["status"] == SHED]["query"]["input_tokens"]
    served = priced.requests[priced.requests["status"] != SHED]["query"]["input_tokens"]
    assert refused.mean() > served.mean()


def test_full_information_is_worth_something_and_is_only_for_those_who_ask(make_fleet):
    seen = replace(AHEAD, num_samples=1, num_candidates=4, sees_all=True)
    trouble = replace(TROUBLE, faults=replace(TROUBLE.faults, crashes_per_hour=0.0))
    knobs = ANALYTIC_SCORER_KNOBS.replace({"slo_margin": 1.0})
    fleets = [
        make_fleet(replace(trouble, lookahead=ahead), rate_rps=60.0) for ahead in (AHEAD, seen)
    ]
    for fleet in fleets:
        fleet.reset(seed=3, knobs=knobs)
        fleet.drain()
    assert goodput(fleets[1]) > goodput(fleets[0])


def test_labels_are_what_candidates_are_worth(make_fleet):
    settings = LabelSettings(every=5, num_candidates=3, num_samples=4)
    fleet = make_fleet(replace(CALM, labels=settings), rate_rps=60.0)
    fleet.reset(seed=3, knobs=ANALYTIC_SCORER_KNOBS)
    fleet.drain()
    labels = fleet.labels
    assert labels.size == pytest.approx(600 / 5 * 3, abs=3)
    assert np.isfinite(labels["features"]).all()
    assert ((labels["own"] >= 0.0) & (labels["own"] <= 1.0)).all()
    # The closed form, without any training, foretells most of it.
    foretold = closed_form().worths(labels["features"]).sum(axis=1)
    found = labels["own"] + labels["others"]
    assert np.corrcoef(foretold, found)[0, 1] > 0.8
    lacking = make_fleet(replace(CALM, labels=replace(settings, behaviour=Judge.NETWORK)))
    with pytest.raises(ValueError, match="need a value network; set value"):
        lacking.reset(seed=0, knobs=ANALYTIC_SCORER_KNOBS)

"""Novelty: ordinary states pass, gross shifts do not, in fleets of any size."""

import numpy as np
import pytest

from trimtab.agents.heuristics import HEURISTICS
from trimtab.agents.shield.novelty import (
    SUMMARY_NAMES,
    NoveltyModel,
    fit_novelty,
    observation_of,
    summarise,
)
from trimtab.env.observation import OBSERVED, Observation
from trimtab.env.repeated_cluster import repeated_cluster
from trimtab.env.scenario import Part, Scenario
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.workload import compile_workload
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.traces.superposition import superpose

NAMES = ("analytic-scorer", "predicted-ttft", "least-requests")
IS_AVAILABLE = [f.name for f in OBSERVED[Node.REPLICA]].index("is_available")


def states_of(scenario: Scenario, workload, name: str, *, copies: int = 1) -> list[ClusterState]:
    cluster = repeated_cluster(scenario.cluster, copies) if copies > 1 else scenario.cluster
    fleet = SimulatedFleet(cluster, workload, scenario.config)
    states = [fleet.reset(seed=0, knobs=HEURISTICS[name].knobs)]
    while fleet.now_s < workload.span_s:
        fleet.advance(2.0)
        states.append(fleet.state())
    return states


def observations(
    scenario: Scenario, part: Part, indices: range, load_frac: float | None = None
) -> list[Observation]:
    return [
        observation_of(state)
        for i in indices
        for state in states_of(
            scenario, scenario.workload(part, i, load_frac=load_frac), NAMES[i % len(NAMES)]
        )
    ]


@pytest.fixture(scope="module")
def model(scenario) -> NoveltyModel:
    seen = observations(scenario, Part.TRAIN, range(40))
    return fit_novelty(seen, observations(scenario, Part.VALIDATION, range(30)), quantile=0.99)


@pytest.fixture(scope="module")
def ordinary(scenario) -> list[Observation]:
    return observations(scenario, Part.TEST, range(30))


def scores(model: NoveltyModel, states: list[Observation]) -> np.ndarray:
    return np.array([model.score(state) for state in states])


def test_ordinary_workloads_that_were_never_seen_seldom_raise_an_alarm(model, ordinary):
    assert (scores(model, ordinary) > 1.0).mean() < 0.05


def test_ten_times_the_load_is_found_within_two_windows(scenario, model):
    for index in range(3):
        workload = scenario.workload(Part.TEST, index, load_frac=9.0)
        found = [model.score_state(state) for state in states_of(scenario, workload, NAMES[index])]
        assert min(found[2:]) > 1.0


def changed(observation: Observation, **arrays: np.ndarray) -> Observation:
    return {**observation, **arrays}


def test_a_fleet_without_replicas_is_found(model, ordinary):
    for observation in ordinary[:20]:
        gone = observation["replica"].reshape(observation["replica_mask"].size, -1) * 0.0
        assert model.score(changed(observation, replica=gone.ravel())) > 1.0
    furthest = model.furthest(changed(ordinary[0], replica=gone.ravel()), num=8)
    assert any("is_available" in name for name in furthest)


def test_garbage_is_found(model, ordinary):
    rng = np.random.default_rng(0)
    for observation in ordinary[:20]:
        for key in ("replica", "tenant", "fleet"):
            noise = rng.uniform(-5, 5, observation[key].shape).astype(np.float32)
            assert model.score(changed(observation, **{key: noise})) > 1.0
            for value in (np.nan, np.inf, -np.inf):
                spoilt = observation[key].copy()
                spoilt[0] = value
                assert model.score(changed(observation, **{key: spoilt})) == np.inf


def test_twice_the_fleet_with_twice_the_load_is_ordinary(scenario, model):
    found = []
    for index in range(8):
        trace = superpose(
            scenario.parts[Part.TEST], rate_rps=2 * scenario.rate_rps, span_s=16.0, seed=index
        )
        workload = compile_workload(trace, name="double", levels=scenario.levels)
        found += [
            model.score_state(state)
            for state in states_of(scenario, workload, NAMES[index % 3], copies=2)
        ]
    assert (np.array(found) > 1.0).mean() < 0.15


def test_a_summary_does_not_depend_on_order_or_padding(ordinary):
    observation = ordinary[3]
    rows = observation["replica"].reshape(observation["replica_mask"].size, -1)
    turned = changed(observation, replica=rows[::-1].ravel())
    assert summarise(turned) == pytest.approx(summarise(observation))
    padded = changed(
        observation,
        replica=np.concatenate([rows.ravel(), np.full(rows.shape[1], 4.0, np.float32)]),
        replica_mask=np.append(observation["replica_mask"], 0.0).astype(np.float32),
    )
    assert summarise(padded) == pytest.approx(summarise(observation))
    mean = summarise(observation)[SUMMARY_NAMES.index("replica.is_available.mean")]
    assert mean == pytest.approx(rows[:, IS_AVAILABLE].mean())
    assert len(set(SUMMARY_NAMES)) == len(SUMMARY_NAMES) == summarise(observation).size


def test_the_threshold_is_the_quantile_of_what_was_held_out(scenario):
    seen = observations(scenario, Part.TRAIN, range(6))
    held_out = observations(scenario, Part.VALIDATION, range(6))
    model = fit_novelty(seen, held_out, quantile=0.9)
    assert np.quantile(scores(model, held_out), 0.9) == pytest.approx(1.0)


def test_it_is_stored_as_arrays(tmp_path, model, ordinary):
    np.savez(tmp_path / "novelty.npz", **model.as_arrays())
    with np.load(tmp_path / "novelty.npz") as stored:
        again = NoveltyModel.from_arrays(dict(stored))
    assert again.score(ordinary[5]) == model.score(ordinary[5])
    arrays = model.as_arrays()
    with pytest.raises(ValueError, match=r"novelty arrays lack \['low'\]"):
        NoveltyModel.from_arrays({k: v for k, v in arrays.items() if k != "low"})
    with pytest.raises(ValueError, match=r"novelty array 'mean' must be .* got shape \(3,\)"):
        NoveltyModel.from_arrays({**arrays, "mean": np.zeros(3)})


def test_too_few_states_are_refused(ordinary):
    with pytest.raises(ValueError, match="at least 20 states seen and as many held out, got 3"):
        fit_novelty(ordinary[:3], ordinary)
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\), got 1"):
        fit_novelty(ordinary, ordinary, quantile=1.0)

from collections.abc import Callable

import numpy as np
import pytest

from trimtab.env.belief import Belief, believed_coefficients, split_reality
from trimtab.env.cluster import ClusterSpec
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients
from trimtab.env.simulator.workload import Workload

GPUS = ("H100-80G", "L40S-48G", "A100-80G")
WRONG = (
    Belief(gpu="H100-80G", compute_factor=0.7, memory_factor=1.3),
    Belief(gpu="L40S-48G", compute_factor=1.4, memory_factor=0.8),
)
BATCHES = [(512, 0, 0, 0), (0, 0, 64, 90_000), (128, 2000, 8, 4000)]


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., ClusterSpec]) -> ClusterSpec:
    return make_cluster(GPUS)


@pytest.fixture(scope="module")
def workload(make_random_workload: Callable[..., Workload]) -> Workload:
    return make_random_workload(400, rate_rps=12.0, seed=3)


def time_s(coefficients: np.ndarray, batch: tuple[int, ...]) -> float:
    record = np.array([coefficients]).view(np.recarray)[0]
    return float(iteration_time_s(record, *map(float, batch)))


def fleet_of(
    cluster: ClusterSpec, workload: Workload, knobs: Knobs, **config: object
) -> SimulatedFleet:
    fleet = SimulatedFleet(cluster, workload, FleetConfig(scrape_drop_frac=0.0, **config))
    fleet.reset(seed=0, knobs=knobs)
    return fleet


def test_beliefs_scale_computing_and_reading_of_one_kind(cluster: ClusterSpec) -> None:
    true = replica_coefficients(cluster)
    believed = believed_coefficients(cluster, true, WRONG)
    assert believed["gemm_token_s"][0] == pytest.approx(0.7 * true["gemm_token_s"][0])
    assert believed["decode_context_s"][0] == pytest.approx(1.3 * true["decode_context_s"][0])
    assert believed["step_s"][0] == true["step_s"][0]
    assert believed[2] == true[2]


def test_the_two_parts_of_reality_are_the_true_time(cluster: ClusterSpec) -> None:
    true = replica_coefficients(cluster)
    believed = believed_coefficients(cluster, true, WRONG)
    rest, factors = split_reality(true, believed)
    for i in range(len(GPUS)):
        for batch in BATCHES:
            assert factors[i] * time_s(rest[i], batch) == pytest.approx(time_s(true[i], batch))
    assert factors[2] == 1.0
    assert 1 / 1.4 < factors[0] < 1 / 0.7


def test_a_belief_that_is_off_by_one_factor_is_all_slow_down(cluster: ClusterSpec) -> None:
    true = replica_coefficients(cluster)
    believed = true.copy()
    for name in believed.dtype.names or ():
        if name.endswith("_s"):
            believed[name] *= 0.8
    rest, factors = split_reality(true, believed)
    assert factors == pytest.approx(1 / 0.8)
    assert time_s(rest[0], BATCHES[0]) == pytest.approx(time_s(believed[0], BATCHES[0]))


def test_what_happens_does_not_depend_on_what_is_believed(
    cluster: ClusterSpec, workload: Workload
) -> None:
    knobs = Knobs.of(round_robin_weight=1.0)
    true, wrong = (fleet_of(cluster, workload, knobs, beliefs=beliefs) for beliefs in ((), WRONG))
    for fleet in (true, wrong):
        fleet.drain()
    assert (true.requests["replica"] == wrong.requests["replica"]).all()
    assert wrong.requests["finish_s"] == pytest.approx(true.requests["finish_s"], abs=1e-6)


def test_a_scheduler_sees_the_believed_times_and_the_measured_error(
    cluster: ClusterSpec, workload: Workload
) -> None:
    fleet = fleet_of(cluster, workload, Knobs.of(round_robin_weight=1.0), beliefs=WRONG)
    true = fleet_of(cluster, workload, Knobs.of(round_robin_weight=1.0))
    views, true_views = fleet.arrays.views, true.arrays.views
    assert views["prefill_token_s"][1] > 1.05 * true_views["prefill_token_s"][1]
    assert views["prefill_token_s"][2] == true_views["prefill_token_s"][2]
    fleet.run_until(25.0)
    _, factors = split_reality(
        replica_coefficients(cluster),
        believed_coefficients(cluster, replica_coefficients(cluster), WRONG),
    )
    assert fleet.arrays.views["iteration_log_ratio"] == pytest.approx(np.log(factors), abs=1e-6)


def test_the_scorer_decides_otherwise_on_wrong_beliefs(
    cluster: ClusterSpec, workload: Workload
) -> None:
    placed = []
    for beliefs in ((), WRONG):
        fleet = fleet_of(cluster, workload, ANALYTIC_SCORER_KNOBS, beliefs=beliefs)
        fleet.drain()
        placed.append(fleet.requests["replica"].copy())
    assert (placed[0] != placed[1]).any()


def test_branches_and_snapshots_keep_beliefs(cluster: ClusterSpec, workload: Workload) -> None:
    fleet = fleet_of(cluster, workload, ANALYTIC_SCORER_KNOBS, beliefs=WRONG)
    fleet.run_until(10.0)
    branch = fleet.branch()
    for one in (fleet, branch):
        one.drain()
    assert (fleet.requests == branch.requests).all() or np.array_equal(
        fleet.requests["finish_s"], branch.requests["finish_s"], equal_nan=True
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gpu": "H1000"}, "unknown GPU 'H1000'"),
        ({"gpu": "H100-80G", "memory_factor": 0.0}, "memory_factor must be above 0.*got 0.0"),
        ({"gpu": "H100-80G", "compute_factor": float("inf")}, "compute_factor must be above 0"),
    ],
)
def test_a_belief_out_of_bounds_is_refused(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Belief(**settings)  # type: ignore[arg-type]

"""A small scenario for what learns: four GPUs of three kinds, synthetic traffic, some trouble."""

import pytest

from trimtab.env.scenario import TROUBLED, Scenario, scenario_from_trace
from trimtab.traces.synthetic import SyntheticConfig, generate

SPAN_S = 16.0


@pytest.fixture(scope="session")
def scenario(make_cluster) -> Scenario:
    trace = generate(SyntheticConfig(num_requests=4000, rate_rps=10.0, seed=0, block_tokens=128))
    return scenario_from_trace(
        trace,
        name="small",
        cluster=make_cluster(["A100-80G", "A100-80G", "H100-80G", "L40S-48G"]),
        config=TROUBLED,
        load_frac=0.9,
        span_s=SPAN_S,
    )

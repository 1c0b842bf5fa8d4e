"""`trimtab simulate`: tables and numbers of a run, and the life of one of its requests."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.placement import Candidate, Placement
from trimtab.env.request_life import read_life
from trimtab.env.simulated_fleet import SimulatedFleet
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients
from trimtab.scripts.cli import app
from trimtab.scripts.life_text import outcome_lines, print_life, reason

ONE_REPLICA = """\
name: one
servers:
  - {name: s0, gpu: H100-80G, num_gpus: 1, zone: z0}
replicas:
  - {server: s0, model: llama-3-8b, max_num_seqs: 1, max_batch_tokens: 512}
"""


def run(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cluster of one replica and two traces, of two requests and of many."""
    folder = tmp_path_factory.mktemp("simulate")
    (folder / "one.yaml").write_text(ONE_REPLICA)
    two = ["0.0,300,20", "0.01,100,5"]
    many = [f"{0.25 * i},{150 + 37 * i % 600},{5 + i % 40}" for i in range(480)]
    for name, lines in (("two", two), ("many", many)):
        csv = folder / f"{name}.csv"
        csv.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines, ""]))
        result = run("trace", "import", "csv", csv, "--out", folder / f"{name}.trace")
        assert result.exit_code == 0, result.stderr
    return folder


def two_args(place: Path) -> tuple[object, ...]:
    settings = ("--as-recorded", "--faults", "none", "--policy", "predicted-ttft")
    return ("simulate", "--trace", place / "two.trace", "--cluster", place / "one.yaml", *settings)


def test_tables_of_a_drawn_workload(place: Path) -> None:
    result = run(
        *("simulate", "--trace", place / "many.trace", "--span", 10, "--load", 0.3),
        *("--policy", "least-requests"),
    )
    assert result.exit_code == 0, result.stderr
    assert "on cluster demo-16 under least-requests" in result.stdout
    for name in ("goodput_frac", "ttft_p99_s", "energy_kwh", "h100-0/llama-3-8b-3"):
        assert name in result.stdout


def test_numbers_of_two_requests(place: Path) -> None:
    """One slot: the second request waits for the first; the table counts both."""
    result = run(*two_args(place), "--json")
    assert result.exit_code == 0, result.stderr
    content = json.loads(result.stdout)
    assert content["workload"]["num_requests"] == content["kpis"]["num_requests"] == 2
    assert "life" not in content
    (replica,) = content["replicas"]
    assert (replica["num_requests"], replica["prompt_tokens"]) == (2, 400)
    assert replica["output_tokens"] == 25
    assert replica["busy_frac"] == pytest.approx(1.0)
    assert (replica["num_preemptions"], replica["num_crashes"]) == (0, 0)
    # 319 tokens are held in pages of 16, of which there are many.
    assert 0 < replica["kv_peak_frac"] < 0.01


def test_explained_waiting_is_as_computed_by_hand(place: Path) -> None:
    result = run(*two_args(place), "--explain", 1, "--json")
    assert result.exit_code == 0, result.stderr
    life = json.loads(result.stdout)["life"]
    c = replica_coefficients(load_cluster(place / "one.yaml"))[0]
    first_s = iteration_time_s(c, 300, 0, 0, 0)
    first_s += sum(iteration_time_s(c, 0, 0, 1, context) for context in range(301, 320))
    assert life["ttft_split_s"]["waiting"] == pytest.approx(first_s - 0.01, abs=1e-9)
    prefill_s = iteration_time_s(c, 100, 0, 0, 0)
    assert life["ttft_split_s"]["prefill"] == pytest.approx(prefill_s, abs=1e-9)
    assert [note["moment"] for note in life["notes"]] == [
        *("dispatched", "admitted", "prefill", "first_token", "finished")
    ]
    (placement,) = life["placements"]
    assert placement["chosen"] == "s0/llama-3-8b-0"
    assert placement["advantages"] == {}


def test_explained_in_words(place: Path) -> None:
    result = run(*two_args(place), "--explain", 1)
    assert result.exit_code == 0, result.stderr
    for text in (
        "request 1 arrived at 0.0100 s: priority 0 (interactive), request 1 of its session",
        "100 prompt tokens, 5 output tokens (not known to the gateway), limits: TTFT 0.5 s",
        "admitted; 0 tokens of it cached",
        "first chunk starts; 100 tokens to compute",
        "finished with 5 tokens",
        "placement at 0.0100 s by lowest cost: 1 candidates",
        "s0/llama-3-8b-0 was the only candidate",
        "outcome: finished, met its limits",
        "within its limit of 0.5 s",
    ):
        assert text in result.stdout


def test_explaining_leaves_the_run_as_it_is(place: Path, two_kinds: Path) -> None:
    args = (
        *("simulate", "--trace", place / "many.trace", "--span", 10, "--load", 0.5),
        *("--cluster", two_kinds, "--seed", 3, "--json"),
    )
    plain, explained = (json.loads(run(*args, *more).stdout) for more in ((), ("--explain", 40)))
    assert plain["kpis"] == explained["kpis"]
    assert plain["replicas"] == explained["replicas"]
    (placement,) = explained["life"]["placements"]
    assert len(placement["candidates"]) + placement["num_unable"] == 3
    assert placement["candidates"][0]["name"] == placement["chosen"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("--explain", 2),
            "--explain 2 is no request of this workload; expected a row from 0 to 1",
        ),
        (("--explain", -1), "--explain -1 is no request of this workload"),
        (("--policy", "rnd"), "unknown policy 'rnd'; known: random, round-robin"),
        (("--faults", "some"), "unknown fault 'some'; did you mean 'spot'?"),
    ],
)
def test_errors(place: Path, args: tuple[object, ...], message: str) -> None:
    result = run(*two_args(place), *args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_errors_of_traces(place: Path) -> None:
    result = run("simulate", "--as-recorded")
    assert "--as-recorded needs a trace; name one with --trace" in result.stderr
    result = run("simulate", "--trace", place / "two.trace")
    assert result.exit_code == 2
    assert "has 2 requests over 0.0 s" in result.stderr
    assert "or pass --as-recorded to run it as it is" in result.stderr


def test_a_request_that_is_not_finished(make_cluster, make_workload) -> None:
    """Looked at after half a second of a run."""
    fleet = SimulatedFleet(
        make_cluster(), make_workload([0.0], [100], [400]), FleetConfig(watched_request=0)
    )
    fleet.reset(seed=0, knobs=Knobs.of(predicted_ttft_weight=1.0))
    fleet.advance(0.5)
    life = read_life(fleet)
    assert outcome_lines(life)[0] == (
        "outcome: not finished: still decoding when the run ended, a miss"
    )
    assert "  TPOT none" in outcome_lines(life)
    console = Console(width=100, record=True, quiet=True)
    print_life(console, life)


def make_placement(costs: dict[str, dict[str, float]], chosen: str | None) -> Placement:
    candidates = [
        Candidate(
            replica=i,
            name=name,
            cost=sum(terms.values()),
            terms=terms,
            cached_tokens=0,
            predicted_ttft_s=3.0,
        )
        for i, (name, terms) in enumerate(costs.items())
    ]
    return Placement(
        at_s=1.0,
        rule="lowest cost",
        chosen=chosen,
        num_unable=0,
        candidates=tuple(sorted(candidates, key=lambda c: c.cost)),
    )


@pytest.mark.parametrize(
    ("costs", "chosen", "text"),
    [
        (
            {"a": {"x": 1.0, "y": 2.0}, "b": {"x": 1.5, "y": 1.75}},
            "a",
            "a costs 0.25 less than b: x lower by 0.5, y higher by 0.25",
        ),
        ({"a": {}, "b": {}}, "a", "a and b cost the same; the gateway took the first"),
        ({"a": {"x": 1.0}, "b": {"x": 3.0}}, "b", "b was chosen though a costs 2 less"),
        ({"a": {}}, "a", "a was the only candidate"),
        ({}, None, "refused: no replica was up that could hold it"),
        ({"a": {}}, None, "refused: even on a its first token was predicted in 3.0000 s"),
    ],
)
def test_reasons(costs: dict[str, dict[str, float]], chosen: str | None, text: str) -> None:
    assert text in reason(make_placement(costs, chosen))

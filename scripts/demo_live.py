"""Command `trimtab demo-live`: a policy on real engines, first in shadow, then serving.

Three llama.cpp servers on this machine, two of them slowed without the gateway's knowledge; a
policy tuned and trained in their simulation; a minute of recorded traffic through the gateway; a
report.

Does not know: anything that the other commands do not; it runs their steps in a row.
"""

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from ..agents.bundle import load_bundle
from ..agents.heuristics import ANALYTIC_SCORER, heuristic
from ..agents.policy import LearnedPolicy, constant_policy
from ..agents.training import TrainingConfig
from ..agents.training_log import WandbMode
from ..agents.tuning import TuningConfig
from ..env.scenario import Scenario, azure_trace, scenario_from_trace
from ..env.simulator.setup import replica_coefficients
from ..runtime.fidelity.engine_times import MeasurePlan, measure_engine
from ..runtime.launcher.fleet_plan import LocalReplica, free_ports, set_measured
from ..runtime.launcher.live_fleet_file import LiveFleetSpec
from ..runtime.launcher.supervisor import local_fleet
from ..runtime.load.player import LoadConfig, play
from ..runtime.load.results import figures
from ..runtime.recorder.recorder import TRACE_DIR, read_outcomes
from ..runtime.shadow.redecisions import read_candidates, redecide
from ..runtime.shadow.report import ShadowReport, make_report, read_windows
from ..runtime.shadow.resimulation import gain_of, simulate, simulator_error, workload_of
from ..traces.errors import TrimtabError
from ..traces.schema import RequestTrace
from ..traces.store import read_store
from ..traces.superposition import superpose
from ..traces.transform import shortened, with_service
from .shadow import fitted_cluster
from .shadow_page import write_shadow_page
from .shadow_text import print_report
from .steps import train_with_progress, tune_with_progress, write_bundle

# Two of three replicas are so many times slower than the gateway believes.
SLOWDOWNS = (1.0, 2.0, 2.0)
MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS = 320, 24
TTFT_S, TPOT_S = 0.35, 0.06
_SLOTS, _SLOT_TOKENS = 4, 1024
_BASE = "round-robin"


class DemoError(TrimtabError):
    """A part of the demo did not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """Sizes of the demo."""

    rate_rps: float
    span_s: float
    shadow_s: float
    generations: int
    windows: int


def demo_live(
    *,
    rate_rps: Annotated[float, typer.Option(min=0.1, help="Requests a second.")] = 9.0,
    span_s: Annotated[float, typer.Option(min=10, help="Length of the load, s.")] = 60.0,
    shadow_s: Annotated[float, typer.Option(min=1, help="Time in shadow, s.")] = 28.0,
    generations: Annotated[int, typer.Option(min=1, help="Generations of tuning.")] = 12,
    windows: Annotated[int, typer.Option(min=1, help="Windows of training.")] = 2880,
    out: Annotated[Path, typer.Option(help="Directory of all results.")] = Path("runs/demo-live"),
) -> None:
    """See a policy on real engines: trained in simulation, in shadow first, then serving."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    plan = DemoPlan(
        rate_rps=rate_rps, span_s=span_s, shadow_s=shadow_s, generations=generations,
        windows=windows,
    )  # fmt: skip
    console.print("1. three llama.cpp servers with a tiny random model, two slowed twofold")
    replicas = [
        LocalReplica(slots=_SLOTS, slot_tokens=_SLOT_TOKENS, slowdown=times) for times in SLOWDOWNS
    ]
    with local_fleet(replicas, out / "fleet") as fleet:
        fleet.start()
        times = asyncio.run(measure_engine(fleet.spec.replicas[0], MeasurePlan(batch=_SLOTS)))
        spec = set_measured(out / "fleet", times)
        console.print(
            f"   the first one: {1e3 * times.step_s:.2f} ms an iteration, "
            f"{1e6 * times.token_s:.0f} us a prompt token"
        )
        scenario = local_scenario(spec)
        console.print("2. tune the scorer and train a policy in their simulation")
        train_bundle(scenario, plan, out, console)
        console.print(
            f"3. {span_s:.0f} s of recorded traffic at {rate_rps:g} requests a second: {_BASE} "
            f"serves, the policy decides beside it for {shadow_s:.0f} s, then may serve"
        )
        serve_load(spec, plan, out, console)
    console.print("4. the report")
    made = shadow_report(spec, out)
    print_report(console, made)
    write_shadow_page(made, out / "shadow.html")
    console.print(f"wrote {out / 'shadow.html'}", soft_wrap=True, markup=False)


def local_scenario(spec: LiveFleetSpec) -> Scenario:
    """Return traffic as small engines can bear it, on the fleet's cluster."""
    trace = shortened(azure_trace(0), MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS)
    limits = with_service(trace, ttft_slo_s=TTFT_S, tpot_slo_s=TPOT_S)
    return scenario_from_trace(limits, name="azure-short", cluster=spec.cluster, span_s=60.0)


def train_bundle(scenario: Scenario, plan: DemoPlan, out: Path, console: Console) -> None:
    """Tune, train and write a bundle."""
    tuning = TuningConfig(
        num_generations=plan.generations, population=8, num_workloads=8,
        workloads_per_generation=4, num_validation_workloads=6,
    )  # fmt: skip
    tuned = tune_with_progress(scenario, ANALYTIC_SCORER.knobs, tuning)
    config = TrainingConfig(
        num_windows=plan.windows, num_workloads=16, num_checks=1, num_validation_workloads=6
    )
    trained = train_with_progress(
        scenario, tuned.knobs, out / "training", config, WandbMode.DISABLED
    )
    write_bundle(out / "bundle", scenario, config, trained)
    gain = trained.validation[-1][1] if trained.validation else 0.0
    console.print(
        f"   simulated goodput: scorer {100 * tuned.base_goodput:.1f} %, tuned "
        f"{100 * tuned.tuned_goodput:.1f} %, policy {100 * gain:+.2f} points over it"
    )


@contextmanager
def _serving(spec_path: Path, plan: DemoPlan, out: Path) -> Iterator[int]:
    """Run `trimtab serve` as long as the block lasts; give its port."""
    (port,) = free_ports(1)
    command = [
        *(sys.executable, "-m", "trimtab", "serve", "--fleet", str(spec_path)),
        *("--port", str(port), "--admin-port", "0", "--scheduler", _BASE),
        *("--bundle", str(out / "bundle"), "--record", str(out / "record")),
        *("--decisions", str(out / "decisions"), "--decision-every", "1"),
        *("--shadow-first", f"{plan.shadow_s:g}s", "--promote-if", "gain > 0 and doubts < 0.3"),
        *("--dir", str(out / "state"), "--ttft-s", str(TTFT_S), "--tpot-s", str(TPOT_S)),
    ]
    with (out / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _wait_until_ready(port, process, out / "serve.log")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until_s = time.monotonic() + 120.0
    while time.monotonic() < until_s and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    msg = f"the gateway did not become ready; its last words:\n{log.read_text()[-2000:]}"
    raise DemoError(msg)


def live_trace(scenario_trace: RequestTrace, plan: DemoPlan) -> RequestTrace:
    """Return the traffic that is played."""
    return superpose(scenario_trace, rate_rps=plan.rate_rps, span_s=plan.span_s, seed=11)


def serve_load(spec: LiveFleetSpec, plan: DemoPlan, out: Path, console: Console) -> None:
    """Serve a load, in shadow first, and print what its clients saw."""
    for name in ("record", "decisions"):
        _empty(out / name)
    trace = shortened(azure_trace(0), MAX_INPUT_TOKENS, MAX_OUTPUT_TOKENS)
    played = live_trace(with_service(trace, ttft_slo_s=TTFT_S, tpot_slo_s=TPOT_S), plan)
    with _serving(out / "fleet" / "fleet.yaml", plan, out) as port:
        time.sleep(2.0)
        with console.status(f"{len(played)} requests"):
            results = asyncio.run(play(played, LoadConfig(port=port, model=spec.replicas[0].model)))
        status = _status(out)
    table = Table("clients saw", "requests", "TTFT p50 ms", "p99 ms", "TPOT p50 ms", "goodput %",
                  "failed", box=None)  # fmt: skip
    moment_s = plan.shadow_s
    for label, part in (
        (f"{_BASE}, policy in shadow", results[results["due_s"] < moment_s - 2.0]),
        (f"after: {status.get('ruler', '?')}", results[results["due_s"] >= moment_s + 2.0]),
    ):
        seen = figures(part)
        table.add_row(
            label, str(seen.num_requests), f"{1e3 * seen.ttft_p50_s:.0f}",
            f"{1e3 * seen.ttft_p99_s:.0f}", f"{1e3 * seen.tpot_p50_s:.1f}",
            f"{100 * seen.goodput_frac:.1f}", str(seen.num_failed),
        )  # fmt: skip
    console.print(table)
    promotion = status.get("promotion") or status.get("rollout") or {}
    if promotion:
        console.print(f"   {json.dumps(promotion)}", soft_wrap=True, markup=False)


def _empty(directory: Path) -> None:
    """Delete what an earlier demo wrote."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


def _status(out: Path) -> dict[str, object]:
    """Return how the gateway stands; empty if it does not say."""
    lines = (out / "serve.log").read_text().splitlines()
    url = next((w for line in lines for w in line.split() if "/admin/status" in w), "")
    token = (out / "state" / "admin-token").read_text().strip()
    host = url.removeprefix("http://").partition("/")[0]
    if not host:
        return {}
    connection = http.client.HTTPConnection(host, timeout=5.0)
    try:
        connection.request("GET", "/admin/status", headers={"authorization": f"Bearer {token}"})
        found: dict[str, object] = json.loads(connection.getresponse().read())
        return found
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()


def shadow_report(spec: LiveFleetSpec, out: Path) -> ShadowReport:
    """Compare the scheduler that began with the policy, from what was logged."""
    policy = LearnedPolicy(load_bundle(out / "bundle"), name="policy")
    base = constant_policy(heuristic(_BASE))
    candidates = read_candidates(out / "decisions")
    in_shadow = np.array([version == _BASE for version in candidates["policy_version"].to_pylist()])
    if in_shadow.any():
        candidates = candidates.filter(in_shadow)
    knobs = policy.begin()
    remade = redecide(candidates, replica_coefficients(spec.cluster), lambda _: knobs)
    workload = workload_of(read_store(out / "record" / TRACE_DIR), spec.cluster)
    cluster = fitted_cluster(spec, out / "record")
    runs = simulate(cluster, workload, base), simulate(cluster, workload, policy)
    measured = read_outcomes(out / "record")["ttft_s"].to_numpy(zero_copy_only=False)
    return make_report(
        base.name, policy.name, remade, runs=(*runs, gain_of(runs[1], runs[0])),
        error=simulator_error(runs[0], measured[: runs[0].ttft_s.size].astype(np.float64)),
        windows=read_windows(out / "record"),
    )  # fmt: skip

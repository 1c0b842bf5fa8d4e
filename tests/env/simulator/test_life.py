"""The life of a watched request: moments as computed by hand, and a run that watching leaves."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.agents.heuristics import HEURISTICS, heuristic
from trimtab.env.cluster import Preemption, Role
from trimtab.env.knobs import Knobs
from trimtab.env.latency import iteration_time_s
from trimtab.env.placement import COST_RULE, GATE_RULES, LOOKAHEAD_RULE
from trimtab.env.request_life import RequestLife, read_life
from trimtab.env.simulated_fleet import SimulatedFleet, run_workload
from trimtab.env.simulator.faults import FaultConfig
from trimtab.env.simulator.fleet_loop import run_until
from trimtab.env.simulator.layout import CRASH, EVENT_DTYPE, NONE, RESTART
from trimtab.env.simulator.life import MAX_NOTES, Moment, Phase
from trimtab.env.simulator.memory import handle
from trimtab.env.simulator.setup import FleetConfig, replica_coefficients

FIRST = Knobs.of()  # no term is on: ties go to the first replica
ROUND_ROBIN = Knobs.of(round_robin_weight=1.0)


def live(cluster, workload, knobs, request: int, **config) -> RequestLife:
    settings = FleetConfig(watched_request=request, scrape_drop_frac=0.0, **config)
    return read_life(run_workload(cluster, workload, knobs, config=settings))


def moments(life: RequestLife) -> list[str]:
    return [note.moment for note in life.notes]


def at(life: RequestLife, moment: str) -> float:
    return next(note.at_s for note in life.notes if note.moment == moment)


def test_a_request_alone(make_cluster, make_workload):
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    life = live(cluster, make_workload([2.0], [600], [3]), FIRST, 0)
    names = ["dispatched", "admitted", "prefill", "first_token", "finished"]
    assert moments(life) == names
    ttft_s = iteration_time_s(c, 512, 0, 0, 0) + iteration_time_s(c, 88, 512, 0, 0)
    decode_s = iteration_time_s(c, 0, 0, 1, 601) + iteration_time_s(c, 0, 0, 1, 602)
    expected_s = [2.0, 2.0, 2.0, 2.0 + ttft_s, 2.0 + ttft_s + decode_s]
    assert [note.at_s for note in life.notes] == pytest.approx(expected_s, abs=1e-12)
    assert life.notes[-1].since_arrival_s == pytest.approx(ttft_s + decode_s)
    assert life.ttft_split_s == pytest.approx({"waiting": 0.0, "prefill": ttft_s, "rest": 0.0})
    assert life.phases_s == pytest.approx({"prefill": ttft_s, "decode": decode_s})
    assert (life.status, life.is_met, life.num_dispatches) == ("finished", True, 1)
    assert life.tpot_s == pytest.approx(decode_s / 2)
    assert life.notes[1].text == "admitted; 0 tokens of it cached"
    assert {note.replica for note in life.notes} == {"r0"}


def test_waits_behind_another(make_cluster, make_workload):
    """One slot: the second waits from its arrival until the first has finished."""
    cluster = make_cluster(max_num_seqs=1)
    c = replica_coefficients(cluster)[0]
    life = live(cluster, make_workload([0.0, 0.001], [100, 100], [50, 5]), FIRST, 1)
    first_s = iteration_time_s(c, 100, 0, 0, 0)
    first_s += sum(iteration_time_s(c, 0, 0, 1, context) for context in range(101, 150))
    assert at(life, "admitted") == pytest.approx(first_s, abs=1e-9)
    prefill_s = iteration_time_s(c, 100, 0, 0, 0)
    expected_s = {"waiting": first_s - 0.001, "prefill": prefill_s, "rest": 0.0}
    assert life.ttft_split_s == pytest.approx(expected_s, abs=1e-9)
    assert sum(life.ttft_split_s.values()) == pytest.approx(life.ttft_s)


def test_admitted_before_its_first_chunk(make_cluster, make_workload):
    """The budget of 512 goes to the first prompt; the second is admitted beside its last part."""
    cluster = make_cluster(max_batch_tokens=512)
    c = replica_coefficients(cluster)[0]
    life = live(cluster, make_workload([0.0, 1e-4], [1000, 300], [2, 3]), FIRST, 1)
    first_s = iteration_time_s(c, 512, 0, 0, 0)
    assert at(life, "admitted") == pytest.approx(first_s, abs=1e-12)
    assert at(life, "prefill") == pytest.approx(first_s, abs=1e-12)
    assert life.ttft_split_s["waiting"] == pytest.approx(first_s - 1e-4, abs=1e-12)


def test_a_refused_request(make_cluster, make_workload):
    """Each of two replicas works on 50,000 tokens: the third cannot have its token in 0.5 s."""
    cluster = make_cluster(("H100-80G", "H100-80G"))
    workload = make_workload(
        [0.0, 0.0, 0.01], [50_000, 50_000, 500], [5, 5, 5], ttft_slo_s=[90.0, 90.0, 0.5]
    )
    knobs = Knobs.of(predicted_ttft_weight=1.0, shed_enabled=1.0, shed_interactive=2.0)
    life = live(cluster, workload, knobs, 2)
    assert life.status == "shed"
    assert moments(life) == ["shed"]
    assert (life.ttft_s, life.e2e_s, life.tpot_s, life.ttft_split_s) == (None, None, None, {})
    (placement,) = life.placements
    assert placement.chosen is None
    assert placement.winner is None
    assert placement.advantages == {}
    assert [c.predicted_ttft_s > 2.0 * 0.5 for c in placement.candidates] == [True, True]
    assert not life.is_met


def make_crash(make_cluster, make_workload, at_s: float, request: int = 0) -> RequestLife:
    """A crash of the first of two replicas, 2 s of it, while it computes a request's prompt."""
    cluster = make_cluster(("H100-80G", "H100-80G"))
    workload = make_workload([0.0, 5.0], [4000, 10], [400, 1])
    config = FleetConfig(watched_request=request, scrape_drop_frac=0.0)
    fleet = SimulatedFleet(cluster, workload, config)
    fleet.reset(seed=0, knobs=FIRST)
    events = np.array([(at_s, CRASH, 0, 0.0), (at_s + 2.0, RESTART, 0, 0.0)], dtype=EVENT_DTYPE)
    arrays = fleet.arrays._replace(events=events)
    run_until(handle(arrays), 60.0)
    fleet._arrays = arrays
    return read_life(fleet)


def test_a_crash_before_the_first_token_is_retried(make_cluster, make_workload):
    life = make_crash(make_cluster, make_workload, 0.05)
    assert moments(life) == [
        *("dispatched", "admitted", "prefill", "lost"),
        *("dispatched", "admitted", "prefill", "first_token", "finished"),
    ]
    assert [note.replica for note in life.notes[:5]] == ["r0"] * 4 + ["r1"]
    assert life.notes[3].at_s == life.notes[4].at_s == 0.05
    assert life.num_dispatches == 2
    first, second = life.placements
    assert (first.chosen, second.chosen) == ("r0", "r1")
    assert (len(first.candidates), len(second.candidates), second.num_unable) == (2, 1, 1)
    assert second.at_s == 0.05
    assert life.notes[3].text == "the replica crashed; it had streamed 0 tokens"
    prefill_s = life.ttft_s - 0.05
    assert life.ttft_split_s["prefill"] == pytest.approx(0.05 + prefill_s, abs=1e-9)


def test_a_crash_while_streaming_fails(make_cluster, make_workload):
    life = make_crash(make_cluster, make_workload, 1.0)
    assert moments(life)[-2:] == ["lost", "failed"]
    assert life.status == "failed"
    assert life.ttft_s is not None
    assert life.e2e_s is None
    assert life.phases_s["decode"] == pytest.approx(1.0 - life.ttft_s)


def test_a_preempted_request(make_cluster, make_workload):
    """Two requests outgrow the KV cache; the later one gives way and is computed anew."""
    cluster = make_cluster(kv_pages=60)
    workload = make_workload([0.0, 0.001], [300, 300], [300, 300])
    life = live(cluster, workload, FIRST, 1)
    names = moments(life)
    place = names.index("preempted")
    assert names[place : place + 4] == ["preempted", "admitted", "prefill", "resumed"]
    assert life.num_preemptions == names.count("preempted") == 1
    assert names[-1] == "finished"
    assert life.notes[place].text.startswith("preempted after ")
    assert life.phases_s["waiting"] > 0
    total_s = sum(life.phases_s.values())
    assert total_s == pytest.approx(life.e2e_s)


@pytest.mark.parametrize("policy", sorted(HEURISTICS))
def test_the_cheapest_candidate_was_chosen(make_cluster, make_random_workload, policy):
    """Costs over the kept view tell the gateway's own choice, random ones included."""
    cluster = make_cluster(("H100-80G", "A100-80G", "L40S-48G", "A100-80G", "H100-80G"))
    workload = make_random_workload(60, rate_rps=40.0, seed=3)
    for request in (0, 17, 58, 59):
        life = live(cluster, workload, HEURISTICS[policy].knobs, request)
        (placement,) = life.placements
        assert placement.candidates[0].name == placement.chosen
        assert placement.winner.cost <= placement.runner_up.cost
        expected = {
            "sglang-cache-aware": {rule for rule, _ in GATE_RULES},
            "marginal-value": {LOOKAHEAD_RULE},
        }
        assert placement.rule in expected.get(policy, {COST_RULE})
        gap = placement.runner_up.cost - placement.winner.cost
        assert sum(placement.advantages.values()) == pytest.approx(gap, abs=1e-9)


def test_terms_say_why(make_cluster, make_workload):
    """Nine requests in turn leave the third of three replicas one short: it wins by its queue."""
    cluster = make_cluster(("H100-80G",) * 3)
    arrivals = np.arange(9) * 1e-3
    workload = make_workload(arrivals, [100] * 9, [100] * 9)
    life = live(cluster, workload, heuristic("least-requests").knobs, 8)
    (placement,) = life.placements
    assert [c.terms for c in placement.candidates] == [
        {"outstanding_requests": 2.0},
        {"outstanding_requests": 3.0},
        {"outstanding_requests": 3.0},
    ]
    assert placement.chosen == "r2"
    assert placement.advantages == {"outstanding_requests": 1.0}


def test_prefix_hits_are_those_of_the_moment(make_cluster, make_workload):
    """The second of a conversation finds its 256 tokens on the replica of the first."""
    cluster = make_cluster(("H100-80G",) * 2)
    workload = make_workload(
        [0.0, 5.0], [256, 400], [5, 5], prompts=[range(4), range(6)], session=[1, 1]
    )
    life = live(cluster, workload, Knobs.of(prefix_miss_weight=1.0), 1)
    (placement,) = life.placements
    assert {c.name: c.cached_tokens for c in placement.candidates} == {"r0": 256, "r1": 0}
    assert placement.winner.terms == pytest.approx({"prefix_miss": 144 / 400})
    assert life.hit_tokens == 256
    assert life.session_place == 2
    assert life.notes[1].text == "admitted; 256 tokens of it cached"
    assert life.notes[2].text == "first chunk starts; 144 tokens to compute"


@pytest.mark.parametrize("policy", ["analytic-scorer", "random", "power-of-two"])
def test_watching_changes_nothing(make_cluster, make_random_workload, policy):
    cluster = make_cluster(("H100-80G", "L40S-48G", "L40S-48G"), kv_pages=150)
    workload = make_random_workload(300, rate_rps=30.0, seed=1)
    faults = FaultConfig(
        replica_slowdowns_per_hour=400.0, crashes_per_hour=200.0, restart_span_s=(1.0, 3.0)
    )
    config = FleetConfig(faults=faults)
    knobs = HEURISTICS[policy].knobs
    plain = run_workload(cluster, workload, knobs, config=config, seed=5)
    for request in (0, 150, 299):
        watched = replace(config, watched_request=request)
        fleet = run_workload(cluster, workload, knobs, config=watched, seed=5)
        assert plain.requests.tobytes() == fleet.requests.tobytes()
        assert plain.arrays.replicas.tobytes() == fleet.arrays.replicas.tobytes()
        life = read_life(fleet)
        stamps = [note.at_s for note in life.notes]
        assert stamps == sorted(stamps)
        assert moments(life).count("preempted") == life.num_preemptions
        assert moments(life).count("dispatched") == life.num_dispatches
        assert life.notes[-1].phase == Phase.ENDED


def test_a_branch_keeps_its_notes(make_cluster, make_workload):
    fleet = SimulatedFleet(
        make_cluster(), make_workload([0.0], [100], [400]), FleetConfig(watched_request=0)
    )
    fleet.reset(seed=0)
    fleet.advance(0.5)
    branch = fleet.branch()
    fleet.drain()
    assert moments(read_life(branch))[-1] == "first_token"
    assert read_life(branch).status == "decoding"
    assert moments(read_life(fleet))[-1] == "finished"


def test_nobody_is_watched(make_cluster, make_workload):
    fleet = run_workload(make_cluster(), make_workload([0.0], [10], [2]), FIRST)
    assert fleet.arrays.fleet["watched_request"][0] == NONE
    assert fleet.arrays.life.size == 0
    with pytest.raises(ValueError, match=r"no request is watched; set FleetConfig\(watched_req"):
        read_life(fleet)


@pytest.mark.parametrize("request_row", [-1, 1])
def test_an_unknown_request(make_cluster, make_workload, request_row):
    config = FleetConfig(watched_request=request_row)
    fleet = SimulatedFleet(make_cluster(), make_workload([0.0], [10], [2]), config)
    with pytest.raises(ValueError, match=f"must be a row from 0 to 0, got {request_row}"):
        fleet.reset(seed=0)


def test_every_moment_has_words():
    assert [moment.value for moment in Moment] == list(range(len(Moment)))
    for moment in Moment:
        assert moment.text.format(replica="r", value=1.0)
    assert len(Moment) < MAX_NOTES


def test_a_handoff_and_what_it_waits_for(make_cluster, make_workload):
    """Prefill on one replica, decode on another: the KV of 600 tokens leaves and comes."""
    cluster = make_cluster(("H100-80G",) * 2)
    roles = (Role.PREFILL, Role.DECODE)
    replicas = tuple(replace(r, role=role) for r, role in zip(cluster.replicas, roles, strict=True))
    life = live(replace(cluster, replicas=replicas), make_workload([0.0], [600], [9]), FIRST, 0)
    names = ["dispatched", "admitted", "prefill", "first_token", "departed", "landed", "finished"]
    assert moments(life) == names
    assert at(life, "departed") == at(life, "first_token")
    assert at(life, "landed") > at(life, "departed")
    assert life.notes[4].text == "leaves with 600 tokens of KV"
    assert [note.replica for note in life.notes[-3:]] == ["r0", "r1", "r1"]


def test_a_swap_and_the_way_back(make_cluster, make_workload):
    """Two grow out of 130 pages: the later one's KV goes to the host, and comes back."""
    swap = {"preemption": Preemption.SWAP, "host_kv_bytes": 1e9, "kv_blocks": 130}
    cluster = make_cluster(**swap)
    life = live(cluster, make_workload([0.0, 1e-4], [900, 900], [400, 400]), FIRST, 1)
    names = moments(life)
    first = names.index("preempted")
    assert names[first : first + 3] == ["preempted", "swapped_out", "swapped_in"]
    assert at(life, "preempted") == at(life, "swapped_out") < at(life, "swapped_in")
    assert "resumed" not in names
    assert names[-1] == "finished"

"""A whole server under load: policies come, go, fall and freeze, and no request is lost."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from server_stand import Setter, Stand, standing, write_bundle

from trimtab.agents.policy import Policy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, KNOB_NAMES, Knobs
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.feature import Node
from trimtab.runtime.live_fleet.state_codec import decode_state
from trimtab.runtime.recorder.recorder import read_outcomes
from trimtab.runtime.serving.promotion_rule import parse_promotion_rule

BACKLOGS = {"one": 1.2, "two": 0.8}


def policy_of(path: str) -> Policy:
    name = Path(path).name
    return Setter(ANALYTIC_SCORER_KNOBS.replace({"backlog": BACKLOGS.get(name, 1.0)}), name)


def nothing_is_lost(stand: Stand) -> None:
    """Every request that was sent came back whole, by both ends' count."""
    totals = stand.server.dispatcher.totals
    assert set(stand.statuses) == {200}
    assert totals.num_arrived == totals.num_finished == len(stand.statuses)
    assert totals.num_open == totals.num_failed == totals.num_shed == 0


def test_a_bundle_is_swapped_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    one, two = write_bundle(tmp_path, "one"), write_bundle(tmp_path, "two")

    async def run() -> None:
        async with standing(tmp_path, policies=policy_of, bundle_path=one) as stand:
            server = stand.server
            async with stand.loaded():
                await stand.until(lambda: server.dispatcher.policy_version == str(one))
                before = len(stand.statuses)
                answer = await stand.ask(lambda client: client.swap(two))
                assert answer["policy"] == str(two)
                assert server.dispatcher.policy_version == str(two)
                await stand.until(lambda: server.steering.knobs["backlog"] == 0.8)
                # From 1.2 to 0.8 by steps: half a unit of the logarithm a second.
                records = [r for r in server.steering.records if r.policy_version == str(two)]
                steps = [record.knobs["backlog"] for record in records]
                assert any(0.8 < step < 1.2 for step in steps)
                await stand.until(lambda: len(stand.statuses) > before + 50)
            nothing_is_lost(stand)
            first, second = stand.processes
            await stand.until(lambda: first.code == -15)
            assert second.code is None
            assert server.status()["swaps"] == 2

    asyncio.run(run())


class Misbehaving(Setter):
    """Behaves until told not to."""

    def __init__(self, kind: str) -> None:
        super().__init__(ANALYTIC_SCORER_KNOBS)
        self.kind = kind
        self.is_bad = False

    def act(self, state: ClusterState) -> Any:
        if not self.is_bad:
            return self.knobs
        if self.kind == "raises":
            msg = "division of labour by zero"
            raise ZeroDivisionError(msg)
        if self.kind == "slow":
            time.sleep(0.6)
            return self.knobs
        if self.kind == "frozen":
            time.sleep(3.0)
        bad = Setter(self.knobs)
        values = {"nan": np.full(len(KNOB_NAMES), np.nan), "short": np.ones(3)}.get(self.kind)
        return self.knobs if values is None else _Anything(values, bad)


class _Anything:
    """Knobs that no `Knobs` would hold."""

    def __init__(self, values: np.ndarray, like: Setter) -> None:
        self.values, self.replica_bias = values, like.knobs.replica_bias


@pytest.mark.parametrize(
    ("kind", "doubt"),
    [("raises", "error"), ("nan", "not_finite"), ("short", "wrong_shape"), ("slow", "absent")],
)
def test_a_policy_that_goes_wrong_costs_no_request(tmp_path: Path, kind: str, doubt: str) -> None:
    policy = Misbehaving(kind)
    bundle = write_bundle(tmp_path)

    async def run() -> None:
        make = lambda path: policy  # noqa: E731
        async with standing(tmp_path, policies=make, bundle_path=bundle) as stand:
            status = stand.server.status
            async with stand.loaded(2):
                await stand.until(lambda: status()["ruler"] == "policy")
                policy.is_bad = True
                # A busy machine may make it late besides.
                await stand.until(
                    lambda: (status()["ruler"], status()["doubt"]) == ("fallback", doubt)
                )
                assert status()["policy_version"] == "analytic-scorer"
                policy.is_bad = False
                before = len(stand.statuses)
                await stand.until(lambda: len(stand.statuses) > before + 10)
            nothing_is_lost(stand)

    asyncio.run(run())


def test_a_policy_that_is_killed_is_started_anew_and_rules_again(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    rules = tmp_path / "rules.yaml"
    rules.write_text("fallback: {recovery_windows: 2}\n")

    async def run() -> None:
        async with standing(
            tmp_path, policies=policy_of, bundle_path=bundle, rules_path=rules, window_s=0.3
        ) as stand:
            status = stand.server.status
            async with stand.loaded(2):
                await stand.until(lambda: status()["ruler"] == "policy")
                stand.processes[0].kill()
                await stand.until(lambda: status()["ruler"] == "fallback")
                await stand.until(lambda: status()["ruler"] == "policy")
            assert len(stand.processes) == 2
            assert status()["children"]["policy"]["restarts"] == 1
            nothing_is_lost(stand)

    asyncio.run(run())


def test_a_frozen_policy_is_killed_and_started_anew(tmp_path: Path) -> None:
    policy = Misbehaving("frozen")
    bundle = write_bundle(tmp_path)

    async def run() -> None:
        made: list[Policy] = []

        def make(path: str) -> Policy:
            made.append(policy if not made else Setter(ANALYTIC_SCORER_KNOBS))
            return made[-1]

        async with standing(tmp_path, policies=make, bundle_path=bundle, window_s=0.3) as stand:
            status = stand.server.status
            await stand.until(lambda: status()["ruler"] == "policy")
            policy.is_bad = True
            await stand.until(lambda: len(stand.processes) == 2)
            assert status()["children"]["policy"]["frozen"] == 1
            assert (await stand.post())[0] == 200

    asyncio.run(run())


def test_a_new_policy_that_is_wrong_leaves_the_old_one_in_its_seat(tmp_path: Path) -> None:
    one, two = write_bundle(tmp_path, "one"), write_bundle(tmp_path, "two")
    wrong = Misbehaving("nan")
    wrong.is_bad = True

    async def run() -> None:
        make = lambda path: wrong if Path(path).name == "two" else policy_of(path)  # noqa: E731
        # Windows so long that the old policy is never late.
        async with standing(tmp_path, policies=make, bundle_path=one, window_s=0.5) as stand:
            status = stand.server.status
            await stand.until(lambda: status()["ruler"] == "policy")
            with pytest.raises(Exception, match=r"its proposals are not_finite within 1\.5 s"):
                await stand.ask(lambda client: client.swap(two, deadline_s=1.5))
            assert (status()["policy"], status()["ruler"]) == (str(one), "policy")
            assert status()["doubts"] == {}
            assert status()["candidate"] is None

    asyncio.run(run())


def test_a_bundle_that_does_not_fit_is_refused_before_anything_changes(tmp_path: Path) -> None:
    one = write_bundle(tmp_path, "one")
    strange = write_bundle(tmp_path, "strange", registry_hash="0123abcd")
    small = write_bundle(
        tmp_path, "small",
        layout={"max_replicas": 1, "max_gpus": 4, "max_servers": 2, "max_tenants": 2},
    )  # fmt: skip

    async def run() -> None:
        async with standing(tmp_path, policies=policy_of, bundle_path=one) as stand:
            await stand.until(lambda: stand.server.status()["ruler"] == "policy")
            for bundle, fault in (
                (strange, "feature registry is 0123abcd, this code has [0-9a-f]+"),
                (small, "its layout has room for 1 replicas, the fleet has 2"),
                (tmp_path / "none", "cannot read config.json"),
            ):
                with pytest.raises(Exception, match=f"answered 422.*{fault}"):
                    await stand.ask(lambda client, path=bundle: client.swap(path))
            assert len(stand.processes) == 1

    asyncio.run(run())


def test_a_bundle_that_does_not_fit_is_refused_at_the_start(tmp_path: Path) -> None:
    strange = write_bundle(tmp_path, "strange", registry_hash="0123abcd")

    async def run() -> None:
        async with standing(tmp_path, policies=policy_of, bundle_path=strange):
            pass

    with pytest.raises(Exception, match="feature registry is 0123abcd, this code has"):
        asyncio.run(run())


def test_a_drained_gateway_finishes_what_has_begun_and_takes_nothing_new(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            port = stand.server.gateway.port
            begun = asyncio.create_task(stand.post(60, is_stream=True))
            await stand.until(lambda: stand.server.dispatcher.num_open == 1)
            assert await stand.ask(lambda client: client.drain(deadline_s=5.0)) is True
            status, answer = await begun
            assert status == 200
            assert b"data: [DONE]" in answer
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(run())


def test_shadow_first_promotes_a_policy_by_itself(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)

    async def run() -> None:
        async with standing(
            tmp_path, policies=policy_of, bundle_path=bundle, shadow_first_s=0.5,
            promote=parse_promotion_rule("doubts < 0.5"),
        ) as stand:  # fmt: skip
            status = stand.server.status
            await stand.until(lambda: status()["ruler"] == "shadowed")
            assert status()["rollout"]["phase"] == "shadow"
            assert status()["policy_version"] == "analytic-scorer"
            await stand.until(lambda: status()["ruler"] == "policy")
            assert status()["rollout"]["phase"] == "promoted"

    asyncio.run(run())


def test_pages_that_no_longer_come_stop_no_request(tmp_path: Path) -> None:
    """Metrics stale for 30 s: what is known grows old, and the gateway goes by its own counts."""

    async def run() -> None:
        async with standing(tmp_path) as stand:
            server = stand.server
            offset_s = 0.0
            real = server.clock
            server.control.page_at_s[:] = real()
            server.control.is_quiet[:] = False
            for pacer in server.pacers:
                pacer.stop()
            for _ in range(30):
                offset_s += 1.0
                now_s = real() + offset_s
                server._tick(now_s)
                server._look(now_s)
            assert (await stand.post())[0] == 200
            states = [replica["may_take"] for replica in server.status()["replicas"]]
            assert states == ["may take it"] * 2

    asyncio.run(run())


def test_knobs_of_an_operator_rule_and_are_withdrawn(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            turns = Knobs.of(round_robin_weight=1.0)
            made = await stand.ask(lambda client: client.apply(turns))
            assert made.as_dict() == turns.as_dict()
            assert stand.server.dispatcher.knobs["round_robin_weight"] == 1.0
            assert stand.server.status()["ruler"] == "order"
            await stand.ask(lambda client: client.withdraw())
            assert stand.server.dispatcher.knobs["round_robin_weight"] == 0.0

    asyncio.run(run())


def test_what_is_served_is_written_down_with_the_windows_and_their_states(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(
            tmp_path, record_dir=tmp_path / "record", decisions_dir=tmp_path / "decisions",
            decision_every=1,
        ) as stand:  # fmt: skip
            for _ in range(5):
                assert (await stand.post())[0] == 200
            window = next(pacer for pacer in stand.server.pacers if pacer.name == "window")
            await stand.until(lambda: window.lag.num_calls > 2)

    asyncio.run(run())
    assert read_outcomes(tmp_path / "record").column("ending").to_pylist() == ["finished"] * 5
    windows = pq.read_table(tmp_path / "record" / "windows")
    assert set(windows.column("ruler").to_pylist()) == {"scheduler"}
    state = decode_state(windows.column("state")[0].as_py())
    assert state.feature(Node.REPLICA, "outstanding_requests").shape == (2,)
    rows = pq.read_table(tmp_path / "decisions" / "candidates")
    assert rows.num_rows == 10

"""A whole server as a fleet: the short-term environment and `evaluate --live` play on it."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from server_stand import TOKEN, Stand, standing
from typer.testing import CliRunner, Result

from trimtab.env.knobs import Knobs
from trimtab.env.short_term_env import EpisodeConfig, ShortTermEnv
from trimtab.runtime.admin.client import AdminClient
from trimtab.runtime.live_fleet.live_fleet import LiveFleet, LiveFleetConfig
from trimtab.runtime.live_fleet.live_tasks import LiveTasks
from trimtab.scripts.cli import app


def evaluate(*args: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *(str(arg) for arg in args)])


def play_an_episode(client: AdminClient) -> list[float]:
    """Play three windows of 0.2 s and return the rewards."""
    fleet = LiveFleet(client, LiveFleetConfig(drain_s=0.1))
    env = ShortTermEnv(
        tasks=LiveTasks(fleet, num_base_windows=2),
        episode=EpisodeConfig(window_s=0.2, num_windows=3),
    )
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    rewards, is_last = [], False
    while not is_last:
        action = np.full(env.action_space.shape, 0.1, np.float32)
        observation, reward, _, is_last, _ = env.step(action)
        assert env.observation_space.contains(observation)
        rewards.append(reward)
    return rewards


def test_the_environment_plays_on_a_whole_server(tmp_path: Path) -> None:
    async def check(stand: Stand) -> None:
        async with stand.loaded():
            rewards = await stand.ask(play_an_episode)
            version = stand.server.dispatcher.knob_version
            status = stand.server.status()
        assert len(rewards) == 3
        assert np.isfinite(rewards).all()
        assert status["ruler"] == "order"
        # The base to be measured, the base of the episode, and the knobs of its windows.
        assert version >= 2
        assert set(stand.statuses) == {200}
        await stand.ask(AdminClient.withdraw)
        assert stand.server.status()["ruler"] == "scheduler"

    async def main() -> None:
        async with standing(tmp_path) as stand:
            await check(stand)

    asyncio.run(main())


def test_knobs_from_outside_rule_no_longer_than_their_lease(tmp_path: Path) -> None:
    def apply(client: AdminClient) -> Knobs:
        client.lease_s = 0.2
        return LiveFleet(client).apply(Knobs.of(round_robin_weight=1.0))

    async def main() -> None:
        async with standing(tmp_path) as stand:
            knobs = await stand.ask(apply)
            assert knobs.as_dict()["round_robin_weight"] == 1.0
            assert stand.server.status()["ruler"] == "order"
            await stand.until(lambda: stand.server.status()["ruler"] == "scheduler")

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.parametrize("has_load", [True, False])
def test_policies_take_turns_on_a_whole_server(tmp_path: Path, has_load: bool) -> None:
    async def check(stand: Stand) -> None:
        server, out = stand.server, tmp_path / "report"
        arguments: list[object] = [
            *("--live", f"http://127.0.0.1:{server.admin_port}"),
            *("--live-token", tmp_path / "state" / "admin-token"),
            *("--policies", "round-robin,least-requests", "--workloads", 2, "--span", 2),
            *("--live-rate", 20, "--live-model", "simulated", "--live-tokens", 256, 16),
            *("--out", out),
        ]
        if has_load:
            arguments += ["--gateway", f"http://127.0.0.1:{server.gateway.port}"]
            result = await asyncio.to_thread(evaluate, *arguments)
        else:
            async with stand.loaded():
                result = await asyncio.to_thread(evaluate, *arguments)
        assert result.exit_code == 0, result.output
        assert "(live)" in result.output
        content = json.loads((out / "evaluation.json").read_text())
        assert content["is_live"]
        assert content["num_workloads"] == 2
        for policy in content["policies"].values():
            assert policy["mean"]["failed_frac"] == 0.0
            assert (policy["mean"]["ttft_p99_s"] is not None) == has_load
            assert policy["mean"]["energy_kwh"] is None
        assert server.status()["ruler"] == "scheduler"

    async def main() -> None:
        async with standing(tmp_path) as stand:
            await check(stand)

    asyncio.run(main())


def test_a_live_fleet_that_is_not_there_is_told(tmp_path: Path) -> None:
    token = tmp_path / "token"
    result = evaluate("--live", "http://127.0.0.1:1", "--live-token", token, "--out", tmp_path)
    assert result.exit_code != 0
    assert "admin token file" in result.output
    assert "cannot be read" in result.output
    token.write_text(TOKEN)
    result = evaluate("--live", "http://127.0.0.1:1", "--live-token", token, "--out", tmp_path)
    assert result.exit_code != 0
    assert "admin port http://127.0.0.1:1/admin" in result.output
    result = evaluate("--live", "nowhere", "--live-token", token, "--out", tmp_path)
    assert result.exit_code != 0
    assert "admin URL must be http://HOST:PORT, got 'nowhere'" in result.output


def test_a_gateways_address_is_checked(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as stand:
            result = await asyncio.to_thread(
                evaluate,
                *("--live", f"http://127.0.0.1:{stand.server.admin_port}"),
                *("--live-token", tmp_path / "state" / "admin-token", "--gateway", "here"),
                *("--out", tmp_path / "report"),
            )
            assert result.exit_code != 0
            assert "--gateway must be http://HOST:PORT, got 'here'" in result.output

    asyncio.run(main())

"""A server with the processes that it really starts: an observer, and a policy that torch computes.

Slow: each start of a policy's process loads torch.
"""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from server_stand import Stand, standing

from trimtab.agents.bundle import save_bundle
from trimtab.agents.policy_network import EquivariantPolicy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.observation import ObservationLayout, observation_space
from trimtab.runtime.serving.child_process import spawn_process

pytestmark = pytest.mark.slow

LAYOUT = ObservationLayout(max_replicas=4, max_gpus=4, max_servers=2, max_tenants=2)
# Windows in which a policy beside two busy cores is not late.
WINDOW_S = 1.0
# A process that loads torch, on a machine that does much else.
START_S = 90.0


def trained_bundle(folder: Path, name: str) -> Path:
    """Write a bundle with weights, of a policy that was never trained."""
    torch.manual_seed(0)
    box = spaces.Box(-1.0, 1.0, (LAYOUT.action_size,), np.float32)
    save_bundle(
        folder / name,
        policy=EquivariantPolicy(observation_space(LAYOUT), box, lambda _: 3e-4),
        base_knobs=ANALYTIC_SCORER_KNOBS,
        layout=LAYOUT,
        evaluation={},
        description="untrained",
    )
    return folder / name


def pid_of(stand: Stand, child: str) -> int:
    """Return the process id of a child that is alive."""
    pid = stand.server.status()["children"][child]["pid"]
    assert isinstance(pid, int)
    return pid


async def metrics_of(stand: Stand) -> str:
    """Return the gateway's metrics page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.server.gateway.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    page = await asyncio.wait_for(reader.read(), 60.0)
    writer.close()
    return page.decode()


def test_processes_that_die_freeze_and_are_swapped_cost_no_request(tmp_path: Path) -> None:
    one, two = trained_bundle(tmp_path, "one"), trained_bundle(tmp_path, "two")
    rules = tmp_path / "rules.yaml"
    rules.write_text("fallback: {recovery_windows: 2}\n")

    async def run() -> None:
        async with standing(
            tmp_path, bundle_path=one, rules_path=rules, has_observer=True, window_s=WINDOW_S,
            spawn=spawn_process,
        ) as stand:  # fmt: skip
            status = stand.server.status

            def rules_now(ruler: str) -> bool:
                return bool(status()["ruler"] == ruler)

            async with stand.loaded():
                await stand.until(lambda: rules_now("policy"), START_S)
                await stand.until(lambda: bool(np.isfinite(stand.server.control.page_at_s).all()))

                # The observer dies: the gateway's own counts go on, and it comes back.
                dead = pid_of(stand, "observer")
                os.kill(dead, signal.SIGKILL)
                await stand.until(lambda: status()["children"]["observer"]["restarts"] == 1, 30.0)
                at_s = stand.server.clock()
                await stand.until(lambda: stand.server.last_frame_at_s > at_s, START_S)
                assert pid_of(stand, "observer") != dead

                # The policy stands still: the fallback rules until another is there.
                frozen = pid_of(stand, "policy")
                os.kill(frozen, signal.SIGSTOP)
                await stand.until(lambda: rules_now("fallback"), 30.0)
                assert status()["doubt"] == "absent"
                assert 'trimtab_ruler{ruler="fallback"} 1' in await metrics_of(stand)
                await stand.until(lambda: rules_now("policy"), START_S)
                assert status()["children"]["policy"]["frozen"] == 1

                # The policy dies.
                os.kill(pid_of(stand, "policy"), signal.SIGKILL)
                await stand.until(lambda: rules_now("fallback"), 30.0)
                await stand.until(lambda: rules_now("policy"), START_S)
                assert status()["children"]["policy"]["restarts"] == 2

                # Another bundle takes the seat.
                answer: Any = await stand.ask(lambda client: client.swap(two, deadline_s=START_S))
                assert answer["policy"] == status()["policy"] == str(two)
            totals = stand.server.dispatcher.totals
            assert set(stand.statuses) == {200}
            assert totals.num_arrived == totals.num_finished == len(stand.statuses)
            assert totals.num_failed == totals.num_shed == totals.num_open == 0
            observer, policy = pid_of(stand, "observer"), pid_of(stand, "policy")
        for pid in (observer, policy, frozen):
            assert not Path(f"/proc/{pid}").exists(), "a process was left behind"

    asyncio.run(run())

"""An observer reads engines' pages and a gateway's hub has them: up, down, restarted, broken."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from trimtab.env.state.feature import Node
from trimtab.env.state.registry import column
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.launcher.live_fleet_file import LiveFleetSpec
from trimtab.runtime.launcher.simulated_fleet import SimulatedReplica, simulated_fleet
from trimtab.runtime.observer.observer import SHARED, layout_of, observe, page_period_s
from trimtab.runtime.observer.unseen_gpus import UnseenGpus
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.runtime.telemetry.hub import Hub
from trimtab.runtime.telemetry.service import HubService
from trimtab.runtime.telemetry.signals import Scope
from trimtab.runtime.telemetry.socket_transport import SocketTransport


@dataclass
class Watched:
    """Two engines, the observer that watches them, and the hub that hears of it."""

    engines: list[SimulatedEngine]
    hub: Hub
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def feature(self, name: str) -> np.ndarray:
        state = self.hub.state(time.monotonic())
        is_valid = state.is_valid[Node.REPLICA][:, column(Node.REPLICA, name)]
        return np.where(is_valid, state.feature(Node.REPLICA, name), np.nan)

    def shows(self, name: str, *expected: float) -> bool:
        """Whether a feature has these values, as exactly as they travel."""
        return bool(np.allclose(self.feature(name), expected, rtol=0.02))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)


def watch(tmp_path: Path, check: Callable[[Watched], Awaitable[None]]) -> None:
    """Run a check on an observer of two engines."""

    async def main() -> None:
        planned = simulated_fleet([SimulatedReplica(), SimulatedReplica()], tmp_path)
        engines = [SimulatedEngine(EngineSpeed()), SimulatedEngine(EngineSpeed())]
        addresses = [
            LiveReplica(
                name=replica.name, engine=EngineKind.SIMULATED, host="127.0.0.1",
                port=await engine.start(), model="simulated",
            )
            for replica, engine in zip(planned.spec.replicas, engines, strict=True)
        ]  # fmt: skip
        spec = LiveFleetSpec(cluster=planned.spec.cluster, replicas=tuple(addresses))
        watched = Watched(engines, Hub(layout_of(spec.cluster)))
        path = tmp_path / "hub.sock"
        transport = await SocketTransport.listen(path, SHARED)
        service = HubService(watched.hub, transport)
        hub_task = asyncio.create_task(service.run())
        observing = asyncio.create_task(observe(spec, path, watched.stop))
        try:
            await check(watched)
        finally:
            watched.stop.set()
            await observing
            service.stop()
            await hub_task
            await transport.close()
            for engine in engines:
                await engine.close()

    asyncio.run(main())


def test_what_a_page_says_is_in_the_hub_and_what_it_does_not_is_absent(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        watched.engines[1].page = lambda: (  # type: ignore[method-assign]
            b"vllm:num_requests_running 3\nvllm:kv_cache_usage_perc 0.25\n"
        )
        await watched.until(lambda: watched.shows("running_requests", 0.0, 3.0))
        assert watched.feature("waiting_requests")[0] == 0.0
        assert np.isnan(watched.feature("waiting_requests")[1])
        assert watched.shows("kv_usage_frac", 0.0, 0.25)
        await watched.until(lambda: bool((watched.feature("state_age_s") < 1.0).all()))

    watch(tmp_path, check)


def test_an_engine_that_is_down_grows_old_and_comes_back(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        await watched.until(lambda: bool(np.isfinite(watched.feature("running_requests")).all()))
        engine = watched.engines[1]
        assert engine._server is not None
        port = engine._server.sockets[0].getsockname()[1]
        await engine.close()

        def only_one_is_old() -> bool:
            first_s, second_s = watched.feature("state_age_s")
            return bool(first_s < 0.4 < second_s)

        await watched.until(only_one_is_old)
        # The page's last word stays, with its age; it does not turn into 0 or a fault.
        assert watched.shows("running_requests", 0.0, 0.0)
        again = SimulatedEngine(EngineSpeed())
        again.page = lambda: b"vllm:num_requests_running 7\n"  # type: ignore[method-assign]
        await again.start(port=port)
        watched.engines.append(again)
        await watched.until(lambda: watched.shows("running_requests", 0.0, 7.0))
        await watched.until(lambda: watched.feature("state_age_s")[1] < 0.4)

    watch(tmp_path, check)


def test_a_page_that_is_cut_in_half_loses_only_what_is_cut(tmp_path: Path) -> None:
    async def check(watched: Watched) -> None:
        half = b"vllm:num_requests_running 5\nvllm:num_requests_wait"
        watched.engines[0].page = lambda: half  # type: ignore[method-assign]
        await watched.until(lambda: watched.shows("running_requests", 5.0, 0.0))

    watch(tmp_path, check)


@pytest.mark.parametrize(("num_replicas", "period_s"), [(1, 0.1), (16, 0.1), (64, 0.4)])
def test_many_replicas_are_read_less_often(num_replicas: int, period_s: float) -> None:
    assert page_period_s(num_replicas) == pytest.approx(period_s)


def test_gpus_that_nobody_can_ask_are_absent() -> None:
    readings = UnseenGpus(3).sample()
    assert readings[Scope.GPU].shape[0] == 3
    assert np.isnan(readings[Scope.GPU]).all()

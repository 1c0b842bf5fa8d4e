"""The simulated engine through the same protocol as real ones."""

import asyncio

import aiohttp
import numpy as np
import pytest

from trimtab.runtime.engines.capability import Capability
from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import Health, HealthState
from trimtab.runtime.engines.engine_error import EngineError
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.runtime.telemetry.probes.engine_page import EnginePage
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope


def test_it_says_what_it_is_and_its_page_is_read() -> None:
    async def scenario() -> None:
        server = SimulatedEngine(EngineSpeed(), model="tiny")
        port = await server.start(port=0)
        replica = LiveReplica(
            name="s0", engine=EngineKind.SIMULATED, host="127.0.0.1", port=port, model="tiny"
        )
        try:
            async with aiohttp.ClientSession() as session:
                engine = connect(replica, session)
                assert await engine.health() == Health(HealthState.READY)
                facts = await engine.facts()
                assert facts.models == ("tiny",)
                assert Capability.PRIORITY in facts.capabilities  # a request with one was taken
                assert engine.request_fields(priority=1) == {"priority": 1}
                with pytest.raises(EngineError, match="'load lora'"):
                    await engine.load_lora("a", "p")
                async with session.get(f"{replica.url}/metrics") as response:
                    row = EnginePage().read(await response.text(), 0.0)
            names = [signal.name for signal in SIGNALS_BY_SCOPE[Scope.REPLICA]]
            page = dict(zip(names, row, strict=True))
            assert (page["running_requests"], page["waiting_requests"]) == (0.0, 0.0)
            assert page["output_tokens"] == 1.0  # of the request that was tried
            assert not np.isnan(page["kv_usage_frac"])
        finally:
            await server.close()

    asyncio.run(scenario())

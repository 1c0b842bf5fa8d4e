"""The whole gateway over three simulated engines, for clients that nobody here wrote."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from live_requests import three_replicas

from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica
from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.gateway.gateway import Gateway
from trimtab.runtime.gateway.tenants import KeyedTenants, Tenant
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.runtime.understanding.openai_reader import OpenAiReader
from trimtab.runtime.understanding.served_models import ServedModel

KEY = "sk-test"


@dataclass
class Stand:
    url: str
    engines: list[SimulatedEngine]
    dispatcher: LiveDispatcher


@asynccontextmanager
async def standing(*, step_s: float = 0.002) -> AsyncIterator[Stand]:
    cluster = three_replicas()
    engines = [SimulatedEngine(EngineSpeed(step_s=step_s), model="m") for _ in range(3)]
    replicas = [
        LiveReplica(
            name=spec.name, engine=EngineKind.SIMULATED, host="127.0.0.1",
            port=await engine.start(), model="m",
        )
        for spec, engine in zip(cluster.replicas, engines, strict=True)
    ]  # fmt: skip
    dispatcher = LiveDispatcher(cluster, knobs=ANALYTIC_SCORER_KNOBS, served=["m"] * 3)
    for replica in range(3):
        dispatcher.set_available(replica, True, 0.0)
    reader = OpenAiReader([ServedModel(name="m", model_index=0, engine_name="m")])
    tenant = Tenant(name="shop", ttft_slo_s=100.0, tpot_slo_s=10.0)
    keys = KeyedTenants([(hashlib.sha256(KEY.encode()).hexdigest(), tenant)])
    gateway = Gateway(
        GatewayConfig(sweep_s=0.01), dispatcher, reader, replicas, tenants=keys, model_names=["m"]
    )
    dispatcher.listeners.append(reader)
    await gateway.start()
    try:
        yield Stand(f"http://127.0.0.1:{gateway.port}/v1", engines, dispatcher)
    finally:
        await gateway.close()
        for engine in engines:
            await engine.close()


@contextmanager
def in_a_thread() -> Iterator[Stand]:
    """Run the gateway in a thread of its own, for clients that block."""
    ready, done = threading.Event(), threading.Event()
    stands: list[Stand] = []

    async def serve() -> None:
        async with standing() as stand:
            stands.append(stand)
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield stands[0]
    finally:
        done.set()
        thread.join()

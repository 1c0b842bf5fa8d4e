"""A whole server in this process: simulated engines behind it, policies as threads beside it."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trimtab.agents.bundle_config import FORMAT_VERSION, BundleConfig, knob_bounds
from trimtab.agents.policy import Policy
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, BIAS_SCALE, Knobs
from trimtab.env.observation import ObservationLayout
from trimtab.env.state.cluster_state import ClusterState
from trimtab.env.state.registry import registry_hash
from trimtab.runtime.admin.client import AdminClient
from trimtab.runtime.gateway.config import GatewayConfig
from trimtab.runtime.policy_process.policy_loop import PolicyLoop
from trimtab.runtime.serving.child_process import Process, Spawn
from trimtab.runtime.serving.config import ServeConfig
from trimtab.runtime.serving.server import Server
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine

TOKEN = "a-token-for-tests-only"
MODEL = {
    "name": "tiny", "source": "made up", "num_layers": 4, "hidden_size": 256, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 64, "vocab_size": 478, "total_params": 2999552,
    "has_tied_embeddings": False,
}  # fmt: skip


def write_fleet(folder: Path, ports: Sequence[int]) -> Path:
    """Write the files of a fleet of simulated engines."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(MODEL))
    replica = {
        "server": "local", "model": "tiny", "max_num_seqs": 64, "max_batch_tokens": 512,
        "page_tokens": 16, "kv_blocks": 4096,
    }  # fmt: skip
    cluster = {
        "name": "local", "models": ["tiny.yaml"],
        "servers": [
            {"name": "local", "gpu": "A100-80G", "num_gpus": len(ports), "zone": "local"}
        ],
        "replicas": [replica | {"gpus": [i]} for i in range(len(ports))],
    }  # fmt: skip
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    replicas = [
        {"name": f"local/tiny-{i}", "engine": "simulated", "url": f"http://127.0.0.1:{port}",
         "model": "simulated"}
        for i, port in enumerate(ports)
    ]  # fmt: skip
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump({"cluster": "cluster.yaml", "replicas": replicas}))
    return path


def write_bundle(
    folder: Path, name: str = "bundle", *, base: Knobs = ANALYTIC_SCORER_KNOBS, **changes: Any
) -> Path:
    """Write what a gateway reads of a bundle: its configuration, not the weights."""
    config = BundleConfig(
        format_version=FORMAT_VERSION,
        registry_hash=registry_hash(),
        knobs=knob_bounds(),
        bias_scale=BIAS_SCALE,
        base_knobs=base.as_dict(),
        layout=ObservationLayout(max_replicas=4, max_gpus=4, max_servers=2, max_tenants=2),
        hidden_size=8,
        weights_sha256="",
        trained_on="nothing",
        versions={},
    )
    root = folder / name
    root.mkdir()
    (root / "config.json").write_text(json.dumps(asdict(config) | changes))
    return root


@dataclass
class Setter:
    """A policy that sets the same knobs always."""

    knobs: Knobs
    name: str = "setter"
    is_constant: bool = False

    def begin(self) -> Knobs:
        return self.knobs

    def act(self, state: ClusterState) -> Knobs:
        return self.knobs


class ThreadProcess:
    """A policy's process that is a thread of this one."""

    def __init__(self, command: Sequence[str], policy: Policy) -> None:
        options = dict(zip(command[3::2], command[4::2], strict=True))
        self.pid = 1
        self.client = AdminClient(options["--admin"], Path(options["--token-file"]).read_text())
        self.loop = PolicyLoop(policy, self.client, source=options["--source"])
        self.code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self.client:
            self.loop.run()

    def poll(self) -> int | None:
        return self.code

    def _end(self, code: int) -> None:
        self.loop.stop()
        if self.code is None:
            self.code = code

    def terminate(self) -> None:
        self._end(-15)

    def kill(self) -> None:
        self._end(-9)

    def send_signal(self, sig: int, /) -> None:
        """Nothing is halted here."""

    def wait(self, timeout: float | None = None) -> int:
        # Whoever waits holds the event loop that the thread may be asking.
        return self.code or 0


@dataclass
class Stand:
    """A server with its engines, and the processes that it started."""

    server: Server
    engines: list[SimulatedEngine]
    processes: list[ThreadProcess] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """Of all answers that `load` got."""

    def client(self, token: str = TOKEN) -> AdminClient:
        return AdminClient(f"http://127.0.0.1:{self.server.admin_port}", token)

    async def ask(self, call: Callable[[AdminClient], Any], token: str = TOKEN) -> Any:
        """Ask the admin port from another thread."""

        def asked() -> Any:
            with self.client(token) as client:
                return call(client)

        return await asyncio.to_thread(asked)

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(timeout_s):
            while not is_so():
                await asyncio.sleep(0.01)

    async def post(self, max_tokens: int = 3, *, is_stream: bool = False) -> tuple[int, bytes]:
        """Send one request; return status and all that came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.gateway.port)
        body = json.dumps(
            {"model": "simulated", "prompt": "x" * 64, "max_tokens": max_tokens,
             "stream": is_stream}
        ).encode()  # fmt: skip
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = await asyncio.wait_for(reader.read(), 60.0)
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer

    @contextlib.asynccontextmanager
    async def loaded(self, num_clients: int = 8) -> AsyncIterator[None]:
        """Send requests, one after another from each client, as long as the block lasts."""
        is_over = False

        async def client() -> None:
            while not is_over:
                self.statuses.append((await self.post())[0])

        clients = [asyncio.create_task(client()) for _ in range(num_clients)]
        try:
            yield
        finally:
            is_over = True
            await asyncio.gather(*clients)


@contextlib.asynccontextmanager
async def standing(
    folder: Path,
    *,
    policies: Callable[[str], Policy] | None = None,
    num_engines: int = 2,
    spawn: Spawn | None = None,
    **changes: Any,
) -> AsyncIterator[Stand]:
    """Run a server. `policies` makes the policy of a bundle by its path, `spawn` its processes."""
    engines = [SimulatedEngine(EngineSpeed()) for _ in range(num_engines)]
    ports = [await engine.start() for engine in engines]
    processes: list[ThreadProcess] = []

    def spawn_thread(command: Sequence[str]) -> Process:
        assert policies is not None, command
        processes.append(ThreadProcess(command, policies(command[-1])))
        return processes[-1]

    values: dict[str, Any] = {
        "fleet_path": write_fleet(folder, ports), "gateway": GatewayConfig(), "token": TOKEN,
        "has_observer": False, "window_s": 0.1, "drain_s": 5.0, "state_dir": folder / "state",
    }  # fmt: skip
    try:
        server = Server(ServeConfig(**(values | changes)), spawn=spawn or spawn_thread)
        running = asyncio.create_task(server.run())
        serving = asyncio.create_task(server.is_serving.wait())
        await asyncio.wait([running, serving], return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        if running.done():
            running.result()
        try:
            yield Stand(server, engines, processes)
        finally:
            server.stop()
            await running
    finally:
        for process in processes:
            process.terminate()
        for engine in engines:
            await engine.close()
        await asyncio.sleep(0.02)

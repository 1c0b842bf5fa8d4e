"""The gateway's process: everything that must live for requests to be served, put together.

One event loop runs the data port, the dispatcher, the shield every 10 ms and the hub. Pages are
read and policies decide in processes beside, and logs are written in a thread: if any of them is
gone, late or frozen, requests go on.

Does not know: how a request is placed, what a policy is, or the admin API's routes.
"""

import asyncio
import contextlib
import gc
import logging
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from ...agents.bundle import load_bundle
from ...agents.constraints.compilation import CompiledPolicy, compile_policy
from ...agents.constraints.policy_file import Policy, read_policy
from ...agents.heuristics import heuristic
from ...agents.shield.fallback import Fallback
from ...agents.shield.projection import KnobLimits
from ...agents.shield.shield import ShieldConfig
from ...env.masks import mask_text
from ..admin.app import admin_app
from ..dispatcher.live_dispatcher import LiveDispatcher, ReplicaPage
from ..dispatcher.request import Ending, Placement, RequestEnd
from ..gateway.gateway import Gateway
from ..gateway.tenants import OpenAccess, Tenant
from ..launcher.live_fleet_file import LiveFleetSpec, read_live_fleet
from ..live_fleet.live_control import LiveControl
from ..observer.observer import SHARED, layout_of
from ..telemetry.hub import Hub
from ..telemetry.service import HubService, Pace
from ..telemetry.socket_transport import SocketTransport
from ..understanding.openai_reader import OpenAiReader
from ..understanding.reader import Call
from ..understanding.served_models import ServedModel
from .children import Child
from .config import ServeConfig
from .metrics import metrics_text
from .rollout import Rollout
from .steering import Steering

_LOG = logging.getLogger(__name__)
# A tick that comes so much later than it should is counted: requests waited for that long, s.
_LATE_TICK_S = 0.02


class Server:
    """One gateway with all that belongs to it; `run` serves until `stop`."""

    def __init__(self, config: ServeConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read all files that are named.

        Raises:
            ConfigError: a file has a fault.
            BundleError: the bundle cannot be read, or was made for other features or knobs.
        """
        self.config, self.clock = config, clock
        self.spec: LiveFleetSpec = read_live_fleet(config.fleet_path)
        self.rules: Policy | None = None
        self.compiled_rules: CompiledPolicy | None = None
        cluster = self.spec.cluster
        scheduler = heuristic(config.scheduler)
        served = [replica.model for replica in self.spec.replicas]
        self.dispatcher = LiveDispatcher(
            cluster,
            knobs=scheduler.knobs,
            served=served,
            keep_every=config.decision_every if config.decisions_dir is not None else 0,
        )
        shield = ShieldConfig()
        if config.rules_path is not None:
            self.rules = read_policy(config.rules_path)
            self.compiled_rules = compile_policy(self.rules, cluster)
            self.dispatcher.set_restrictions(self.compiled_rules.restrictions)
            shield = ShieldConfig(
                emergencies=self.rules.emergencies,
                staleness=self.rules.staleness,
                breakers=self.rules.breakers,
            )
        self.reader = OpenAiReader(self._served_models(served))
        self.gateway = Gateway(
            config.gateway,
            self.dispatcher,
            self.reader,
            self.spec.replicas,
            tenants=self._tenants(),
            model_names=self.dispatcher.model_names,
            metrics_text=lambda: metrics_text(self),
            clock=clock,
        )
        self.hub = Hub(layout_of(cluster))
        self.control = LiveControl(self.gateway, self.dispatcher, self.hub, shield)
        self.steering = self._steering()
        self.token = config.token or secrets.token_urlsafe(24)
        self.children: list[Child] = []
        self.num_ticks = self.num_late_ticks = 0
        self.worst_tick_s = 0.0
        self.admin_port = 0
        self.is_serving = asyncio.Event()
        self._stop = asyncio.Event()
        self.dispatcher.listeners.append(self.reader)

    def _served_models(self, served: Sequence[str]) -> list[ServedModel]:
        """Return the names that clients may ask for, with the longest context of each."""
        room = self.dispatcher.views["kv_capacity_tokens"]
        return [
            ServedModel(
                name=name,
                model_index=index,
                engine_name=name,
                context_tokens=int(max(room[r] for r, n in enumerate(served) if n == name)),
            )
            for index, name in enumerate(self.dispatcher.model_names)
        ]

    def _tenants(self) -> Any:
        config = self.config
        everybody = Tenant(
            name="default",
            ttft_slo_s=config.default_ttft_s,
            tpot_slo_s=config.default_tpot_s,
            may_name_flow=True,
        )
        if config.keys_path is None:
            return OpenAccess(everybody)
        from ..gateway.key_file import read_keys

        return read_keys(config.keys_path, everybody)

    def _steering(self) -> Steering:
        config, dispatcher = self.config, self.dispatcher
        knobs = heuristic(config.scheduler).knobs
        if config.bundle_path is None:
            return Steering(dispatcher, knobs, scheduler_name=config.scheduler)
        bundle = load_bundle(config.bundle_path)
        rules = self.rules
        named = replace(
            rules.fallback if rules is not None else _default_fallback(config),
            window_s=config.window_s,
        )
        fallback = Fallback(
            named,
            base=bundle.base_knobs,
            num_replicas=dispatcher.views.size,
            limits=KnobLimits.of(rules.limits) if rules is not None and rules.limits else None,
        )
        rollout = None
        if config.shadow_first_s is not None:
            rollout = Rollout(
                rule=config.promote, shadow_s=config.shadow_first_s, begun_at_s=self.clock()
            )
        return Steering(
            dispatcher, knobs, scheduler_name=config.scheduler, fallback=fallback, rollout=rollout
        )

    def stop(self) -> None:
        """Let `run` drain the gateway and return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop; then finish what is open."""
        with contextlib.ExitStack() as stack:
            directory = self.config.state_dir
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            directory.mkdir(parents=True, exist_ok=True)
            await self._run(directory)

    async def _run(self, directory: Path) -> None:
        config = self.config
        warm_up(self)
        transport = await SocketTransport.listen(directory / "hub.sock", SHARED)
        hub_service = HubService(self.hub, transport, pace=Pace(clock=self.clock))
        admin = await self._start_admin()
        token_path = directory / "admin-token"
        token_path.touch(mode=0o600)
        token_path.write_text(self.token)
        self.children = self._children(directory / "hub.sock", token_path)
        now_s = self.clock()
        self.control.begin(now_s)
        self.steering.begin(now_s)
        await self.gateway.start()
        for child in self.children:
            child.start()
        gc.collect()
        gc.freeze()
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("hub", hub_service.run()), ("tick", self._tick()), ("look", self._look()),
                ("window", self._window()),
            )
        ]  # fmt: skip
        stopping = asyncio.create_task(self._stop.wait())
        self.is_serving.set()
        try:
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            await self.gateway.drain(config.drain_s)
            hub_service.stop()
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            await asyncio.gather(*(child.stop() for child in self.children))
            await self.gateway.close()
            await admin.cleanup()
            await transport.close()

    async def _start_admin(self) -> web.AppRunner:
        runner = web.AppRunner(admin_app(self), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, self.config.admin_host, self.config.admin_port).start()
        self.admin_port = int(runner.addresses[0][1])
        return runner

    def _children(self, socket_path: Path, token_path: Path) -> list[Child]:
        config, children = self.config, []
        if config.has_observer:
            arguments = ["--fleet", str(config.fleet_path), "--socket", str(socket_path)]
            children.append(Child("observer", "trimtab.runtime.observer", arguments))
        if config.bundle_path is not None:
            url = f"http://{config.admin_host}:{self.admin_port}"
            arguments = ["--admin", url, "--token-file", str(token_path)]
            arguments += ["--bundle", str(config.bundle_path)]
            arguments += ["--window-s", str(config.window_s)]
            children.append(Child("policy", "trimtab.runtime.policy_process", arguments))
        return children

    async def _tick(self) -> None:
        """Look at the signals every 10 ms; ticks that were missed are left out, and counted."""
        period_s = self.config.tick_s
        due_s = self.clock()
        while True:
            due_s += period_s
            await asyncio.sleep(max(0.0, due_s - self.clock()))
            now_s = self.clock()
            late_s = now_s - due_s
            self.num_ticks += 1
            if late_s > _LATE_TICK_S:
                self.num_late_ticks += 1
                due_s = now_s
            self.worst_tick_s = max(self.worst_tick_s, late_s)
            self.control.tick(now_s)
            self.steering.tick(now_s)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self.config.look_s)
            for alarm in self.control.look(self.clock()):
                _LOG.warning("%s", alarm)

    async def _window(self) -> None:
        while True:
            await asyncio.sleep(self.config.window_s)
            self.control.take_window(self.clock())

    def status(self) -> dict[str, Any]:
        """Return how things stand, for people and for tests."""
        dispatcher, totals, steering = self.dispatcher, self.dispatcher.totals, self.steering
        fallback, rollout = steering.fallback, steering.rollout
        views = dispatcher.views
        return {
            "ruler": steering.ruler,
            "knob_version": dispatcher.knob_version,
            "policy_version": dispatcher.policy_version,
            "doubts": {} if fallback is None else dict(fallback.counts_by_name()),
            "rollout": None if rollout is None else {
                "phase": str(rollout.phase), "windows": rollout.num_windows,
                "verdict": rollout.verdict,
            },
            "replicas": [
                {
                    "name": spec.name,
                    "is_available": bool(view["is_available"]),
                    "outstanding": int(view["outstanding_requests"]),
                    "may_take": mask_text(int(view["mask"])),
                }
                for spec, view in zip(dispatcher.cluster.replicas, views, strict=True)
            ],
            "requests": {
                "arrived": totals.num_arrived, "placed": totals.num_placed,
                "finished": totals.num_finished, "failed": totals.num_failed,
                "aborted": totals.num_aborted, "refused": totals.num_refused,
                "shed": totals.num_shed, "open": totals.num_open,
                "retried": totals.num_retried, "credit": totals.credit,
                "arrived_weight": totals.arrived_weight,
            },
            "children": {
                child.name: {"pid": child.pid, "restarts": child.num_restarts}
                for child in self.children
            },
            "late_ticks": self.num_late_ticks,
            "is_draining": self.gateway.is_draining,
        }  # fmt: skip


def warm_up(server: Server) -> None:
    """Compile, or load what was compiled, before the first request comes.

    One request runs through a reader, a dispatcher and a control that are then thrown away.
    """
    cluster, gateway = server.spec.cluster, server.gateway
    served = [replica.model for replica in server.spec.replicas]
    reader = OpenAiReader(server.reader.models)
    dispatcher = LiveDispatcher(cluster, knobs=server.dispatcher.knobs, served=served, keep_every=1)
    dispatcher.listeners.append(reader)
    dispatcher.set_shadow(server.dispatcher.knobs, every=1)
    control = LiveControl(
        gateway, dispatcher, Hub(layout_of(cluster)), server.control.shield.config
    )
    now_s = server.clock()
    control.begin(now_s)
    for kind in ("prompt", "messages"):
        prompt = "warm" if kind == "prompt" else [{"role": "user", "content": "warm " * 200}]
        body = msgspec.json.encode({"model": served[0], "stream": True, kind: prompt})
        path = "/v1/completions" if kind == "prompt" else "/v1/chat/completions"
        tenant = Tenant(name="warm", ttft_slo_s=1e6, tpot_slo_s=1e6)
        call = Call(
            path=path, headers={}, body=body, tenant=tenant, request_id="warm",
            arrived_at_s=now_s,
        )  # fmt: skip
        placement = dispatcher.dispatch(reader.read(call).facts, now_s)
        if isinstance(placement, Placement):
            dispatcher.first_token(placement, now_s)
            end = RequestEnd(
                ending=Ending.FINISHED, status=200, ended_at_s=now_s, output_tokens=3,
                input_tokens=5,
            )  # fmt: skip
            dispatcher.finish(placement, end)
    dispatcher.put_page(0, ReplicaPage(running_requests=1.0), now_s)
    control.tick(now_s)
    control.look(now_s)
    control.take_window(now_s + 1.0)
    control.state(now_s + 1.0)
    dispatcher.take_regret()
    dispatcher.decisions.take()


def _default_fallback(config: ServeConfig) -> Any:
    from ...agents.shield.fallback import FallbackConfig

    return FallbackConfig(heuristic=config.scheduler)

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
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...env.model_store import ModelStore
from ...traces.errors import ConfigError
from ..admin.server import AdminServer, make_admin_app
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..engines.kv_subscriber import KvSubscriber
from ..gateway.gateway import Gateway
from ..launcher.live_fleet_file import LiveFleetSpec, read_live_fleet
from ..live_fleet.live_control import LiveControl
from ..observer.observer import SHARED, layout_of
from ..telemetry.hub import Hub
from ..telemetry.service import HubService, Pace
from ..telemetry.socket_transport import SocketTransport
from ..understanding.openai_reader import OpenAiReader, ReaderConfig
from .admin_host import ServerHost
from .assembly import (
    can_place_by_worth,
    names_of,
    rules_of,
    shield_of,
    steering_of,
    tenants_of,
)
from .bundle_fit import policy_of_bundle
from .child_process import Child, ChildConfig, Spawn, spawn_process
from .config import ServeConfig
from .journal import Journal
from .kv_index import OBJECTIVES, kv_subscriber, prompt_tokens
from .latency_histograms import LatencyHistograms
from .loop_lag import Pacer
from .metrics import metrics_text
from .plan_loop import PlanLoop
from .planner import PLANNERS
from .policy_children import PolicyChildren
from .recent_placements import RecentPlacements
from .replica_orders import ReplicaOrders
from .seat import PolicyFacts
from .state_dir import HUB_SOCKET, LEARNED_FILE, TOKEN_FILE, owned
from .status import status_of
from .steering import Steering
from .warm_up import warm_up

_LOG = logging.getLogger(__name__)

# An observer of which nothing came for so long is killed and started anew, s.
_OBSERVER_SILENT_S = 10.0
# Windows without a word after which a policy's process is killed and started anew.
_POLICY_SILENT_WINDOWS = 5.0
# Rows, one a replica, of the decisions that are kept between two looks.
_KEPT_ROWS = 20_000
# Objects of the first two ages before a collection; the third age is collected when nobody waits.
_GC_THRESHOLDS = (20_000, 50, 1_000_000)


class Server:
    """One gateway with all that belongs to it; `run` serves until `stop`."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        spawn: Spawn = spawn_process,
    ) -> None:
        """Read all files that are named.

        Raises:
            ConfigError: a file has a fault.
            BundleError: the bundle was made for other features or knobs, or for smaller fleets.
        """
        self.config, self.clock, self._spawn = config, clock, spawn
        self.spec: LiveFleetSpec = read_live_fleet(config.fleet_path)
        cluster = self.spec.cluster
        self.rules = rules_of(config, cluster)
        self._first_policy = self._read_first_policy()
        steering = steering_of(config, self.rules, self._first_policy)
        served = [replica.model for replica in self.spec.replicas]
        self.dispatcher = LiveDispatcher(
            cluster,
            knobs=steering.limits.bounded(steering.scheduler),
            served=served,
            keep_every=config.decision_every if config.decisions_dir is not None else 0,
            num_kept=max(64, min(512, _KEPT_ROWS // len(cluster.replicas))),
            can_place_by_worth=can_place_by_worth(steering),
        )
        if self.rules is not None:
            self.dispatcher.set_restrictions(self.rules.compiled.restrictions)
        tokens = None if config.tokenizer_path is None else prompt_tokens(config.tokenizer_path)
        self.reader = OpenAiReader(
            names_of(self.dispatcher, served),
            ReaderConfig(objectives=OBJECTIVES, isolates_tenants=tokens is None),
            tokenizers={i: tokens for i in range(len(self.dispatcher.model_names)) if tokens},
        )
        self.kv_events: KvSubscriber | None = None
        if tokens is not None:
            self.kv_events = kv_subscriber(self.spec.replicas, self.dispatcher.prefix_index)
        self.gateway = Gateway(
            config.gateway,
            self.dispatcher,
            self.reader,
            self.spec.replicas,
            tenants=tenants_of(config),
            model_names=self.dispatcher.model_names,
            metrics_text=lambda: metrics_text(self),
            clock=clock,
        )
        self.hub = Hub(layout_of(cluster))
        self.control = LiveControl(self.gateway, self.dispatcher, self.hub, shield_of(self.rules))
        self.steering = Steering(
            steering,
            self.dispatcher,
            num_replicas=len(cluster.replicas),
            on_seated=lambda policy: self.policies.on_seated(policy, self.clock()),
        )
        self.policies = PolicyChildren(self.steering, self._policy_child)
        self.orders = ReplicaOrders(
            self.spec.replicas,
            self.control,
            lambda replica: int(self.dispatcher.views["outstanding_requests"][replica]),
        )
        self.plan = PlanLoop(
            PLANNERS[config.planner](cluster), cluster, self.orders, self.replica_states,
            limits=config.move_limits,
        )  # fmt: skip
        self.latencies = LatencyHistograms()
        self.placements = RecentPlacements(tuple(r.name for r in cluster.replicas))
        self.dispatcher.listeners += [self.reader, self.latencies, self.placements]
        self.journal = Journal(
            self.dispatcher, self.steering,
            record_dir=config.record_dir, decisions_dir=config.decisions_dir,
            spans_url=config.spans_url, replicas=self.spec.replicas,
        )  # fmt: skip
        if self.journal.spans is not None:
            self.gateway.trace_header = self.journal.spans.context.header
        self.token = config.token or secrets.token_urlsafe(24)
        self.observer: Child | None = None
        self.pacers = self._make_pacers()
        self.admin_port = 0
        self.is_serving = asyncio.Event()
        self._stop = asyncio.Event()
        self._token_path = Path()
        self._num_sources = 0

    # What it is made of.

    def _read_first_policy(self) -> PolicyFacts | None:
        path = self.config.bundle_path
        if path is None:
            return None
        return policy_of_bundle(path, self.spec.cluster, source="policy-0")

    def new_source(self) -> str:
        """Return a name for the proposals of a new policy's process."""
        self._num_sources += 1
        return f"policy-{self._num_sources}"

    def _policy_child(self, policy: PolicyFacts) -> Child:
        url = f"http://{self.config.admin_host}:{self.admin_port}"
        command = (
            *(sys.executable, "-m", "trimtab.runtime.policy_process", "--admin", url),
            *("--token-file", str(self._token_path), "--source", policy.source),
            *("--bundle", policy.name),
        )
        silent_s = _POLICY_SILENT_WINDOWS * self.config.window_s
        config = ChildConfig(name=policy.source, command=command, silent_s=silent_s)
        return Child(config, self._spawn)

    def _observer_child(self, socket_path: Path) -> Child:
        command = (
            *(sys.executable, "-m", "trimtab.runtime.observer"),
            *("--fleet", str(self.config.fleet_path), "--socket", str(socket_path)),
        )
        config = ChildConfig(name="observer", command=command, silent_s=_OBSERVER_SILENT_S)
        return Child(config, self._spawn)

    @property
    def children(self) -> dict[str, Child]:
        """The processes beside, by name."""
        found = {"observer": self.observer, "policy": self.policies.seated}
        if self.policies.swap is not None and self.policies.is_waiting:
            found["candidate"] = self.policies.swap.child
        return {name: child for name, child in found.items() if child is not None}

    def replica_states(self) -> list[str]:
        """Return how each replica is, as `env.fleet_orders.STATE_NAMES` has it."""
        return [
            self.orders.state(replica, is_available=bool(is_available))
            for replica, is_available in enumerate(self.dispatcher.views["is_available"])
        ]

    # What it does all the time.

    def _make_pacers(self) -> list[Pacer]:
        config = self.config
        return [
            Pacer("tick", config.tick_s, self._tick, self.clock),
            Pacer("look", config.look_s, self._look, self.clock),
            Pacer("window", config.window_s, self._window, self.clock),
            Pacer("plan", config.plan_s, self._plan, self.clock),
        ]

    @property
    def num_late_ticks(self) -> int:
        """Ticks that came more than 20 ms late."""
        return self.pacers[0].lag.num_late

    @property
    def worst_tick_s(self) -> float:
        """How late a tick came at most."""
        return self.pacers[0].lag.longest_s

    def _tick(self, now_s: float) -> None:
        self.control.tick(now_s)
        self.steering.tick(now_s)

    def _look(self, now_s: float) -> None:
        for alarm in self.control.look(now_s):
            _LOG.warning("%s", alarm)
        self.policies.tick(now_s)
        self.journal.look()
        if self.observer is not None:
            if now_s - self.last_frame_at_s < _OBSERVER_SILENT_S:
                self.observer.heard(now_s)
            self.observer.tick(now_s)

    @property
    def last_frame_at_s(self) -> float:
        """Moment of the newest sample of any server; minus infinity before the first."""
        sampled_at_s = self.hub.sampled_at_s
        known = sampled_at_s[sampled_at_s == sampled_at_s]
        return float(known.max()) if known.size else -float("inf")

    def _window(self, now_s: float) -> None:
        self.plan.note(self.control.take_window(now_s))
        self.journal.window(now_s, lambda: self.control.state(now_s))

    def _plan(self, now_s: float) -> None:
        self.plan.step(self.control.state(now_s), now_s)
        asyncio.get_running_loop().run_in_executor(None, self._remember)
        if self.dispatcher.num_open == 0:
            gc.collect()

    def status(self) -> dict[str, Any]:
        """Return how things stand, for people and for tests."""
        return status_of(self)

    # Its life.

    def stop(self) -> None:
        """Let `run` drain the gateway and return."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until told to stop; then finish what is open."""
        async with contextlib.AsyncExitStack() as stack:
            directory = self.config.state_dir
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(owned(directory))
            self._recall(directory / LEARNED_FILE)
            warm_up(
                self.gateway, self.dispatcher, self.reader.models, self.control.shield.config,
                self.clock(),
            )  # fmt: skip
            tasks = await self._start(directory, stack)
            stopping = asyncio.create_task(self._stop.wait())
            self.is_serving.set()
            try:
                done, _ = await asyncio.wait(
                    [*tasks, stopping], return_when=asyncio.FIRST_COMPLETED
                )
                for task in done - {stopping}:
                    task.result()
            finally:
                stopping.cancel()
                await self.gateway.drain(self.config.drain_s)
                self._remember()

    def _recall(self, path: Path) -> None:
        """Go on with what was learned before, if it is there and fits."""
        if not path.exists():
            return
        try:
            self.reader.recall(path)
        except ConfigError as error:
            _LOG.warning("%s", error)

    def _remember(self) -> None:
        """Write what was learned, if there is a place for it."""
        if self.config.state_dir is None:
            return
        try:
            self.reader.state.save(self.config.state_dir / LEARNED_FILE)
        except OSError as error:
            _LOG.warning("what was learned cannot be kept: %s", error)

    async def _start(
        self, directory: Path, stack: contextlib.AsyncExitStack
    ) -> list[asyncio.Task[None]]:
        """Start everything, in the order of need; the stack ends it in the opposite one."""
        self._token_path = directory / TOKEN_FILE
        self._token_path.touch(mode=0o600)
        self._token_path.write_text(self.token)
        transport = await SocketTransport.listen(directory / HUB_SOCKET, SHARED)
        stack.push_async_callback(transport.close)
        hub_service = HubService(self.hub, transport, pace=Pace(clock=self.clock))
        models = self.config.models_dir
        store = None if models is None else ModelStore(models)
        admin = AdminServer(
            make_admin_app(ServerHost(self), token=self.token, store=store),
            host=self.config.admin_host,
            port=self.config.admin_port,
        )
        stack.push_async_callback(admin.close)
        await admin.start()
        self.admin_port = admin.port
        self.journal.start()
        stack.callback(self.journal.close)
        now_s = self.clock()
        self.control.begin(now_s)
        self.steering.begin(now_s)
        await self.gateway.start()
        stack.push_async_callback(self.gateway.close)
        if self.kv_events is not None:
            self.kv_events.start()
            stack.callback(self.kv_events.close)
        self._start_children(directory / HUB_SOCKET, now_s)
        stack.callback(self._close_children)
        stack.push_async_callback(self.plan.close)
        hub_task = asyncio.create_task(hub_service.run())
        stack.push_async_callback(_ended, hub_task)
        stack.callback(hub_service.stop)
        gc.collect()
        gc.freeze()
        # At the end all is collected again: modules of compiled code complain of what is left.
        stack.callback(gc.unfreeze)
        gc.set_threshold(*_GC_THRESHOLDS)
        for pacer in self.pacers:
            pacer.start()
            stack.callback(pacer.stop)
        return [hub_task]

    def _start_children(self, socket_path: Path, now_s: float) -> None:
        if self.config.has_observer:
            self.observer = self._observer_child(socket_path)
            self.observer.tick(now_s)
        if self._first_policy is not None:
            self.policies.start(self._first_policy, now_s)

    def _close_children(self) -> None:
        if self.observer is not None:
            self.observer.stop()
        self.policies.close()
        if self.observer is not None:
            self.observer.close()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""What operators and planners order replicas to do: drain, undrain, sleep, wake.

A replica that is to sleep is drained first. One whose engine cannot sleep may rest instead: it is
drained and counts as asleep.

Does not know: who orders, or HTTP of engines (`runtime/engines`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import aiohttp
import numpy as np

from ...env.masks import Mask
from ..engines.connect import connect
from ..engines.engine import Engine, HealthState
from ..engines.live_replica import LiveReplica

# Time between two looks at a replica that drains or wakes, s.
_LOOK_S = 0.05
# Longest time that a sleep or a wake of an engine may take, s: weights are read from disk.
_ENGINE_S = 120.0


class Drained(Protocol):
    """What is needed of a control: masks by which operators take replicas out of service."""

    orders: np.ndarray


Connect = Callable[[LiveReplica], contextlib.AbstractAsyncContextManager[Engine]]


@contextlib.asynccontextmanager
async def engine_of(replica: LiveReplica) -> AsyncIterator[Engine]:
    """Connect to a replica's engine for some calls."""
    async with aiohttp.ClientSession() as session:
        yield connect(replica, session, timeout_s=_ENGINE_S)


class ReplicaOrders:
    """Carries out orders on the replicas of one gateway."""

    def __init__(
        self,
        replicas: Sequence[LiveReplica],
        control: Drained,
        outstanding: Callable[[int], int],
        *,
        connect_engine: Connect = engine_of,
    ) -> None:
        """`outstanding` says how many requests a replica has."""
        self.replicas = replicas
        self._control, self._outstanding, self._connect = control, outstanding, connect_engine
        self._is_asleep = [False] * len(replicas)
        self._is_moving = [False] * len(replicas)
        self._is_resting = [False] * len(replicas)

    def state(self, replica: int, *, is_available: bool) -> str:
        """Return how a replica is, as `env.fleet_orders.STATE_NAMES` has it."""
        if self._is_moving[replica]:
            return "waking" if self._is_asleep[replica] else "draining"
        if self._is_asleep[replica] or self._is_resting[replica]:
            return "asleep"
        if int(self._control.orders[replica]) & Mask.PLAN:
            return "draining"
        return "ready" if is_available else "down"

    def drain(self, replica: int) -> None:
        """Send nothing new to a replica."""
        self._control.orders[replica] |= np.uint16(Mask.PLAN)

    def rest(self, replica: int) -> None:
        """Let a replica idle that cannot sleep: it counts as asleep, and is back at once."""
        self.drain(replica)
        self._is_resting[replica] = True

    def is_resting(self, replica: int) -> bool:
        """Whether a replica idles in place of sleeping."""
        return self._is_resting[replica]

    def undrain(self, replica: int) -> None:
        """Send to a replica again."""
        self._is_resting[replica] = False
        self._control.orders[replica] &= ~np.uint16(Mask.PLAN)

    async def sleep(self, replica: int, *, deadline_s: float = 60.0) -> None:
        """Drain a replica, and let its engine sleep.

        Raises:
            EngineError: it cannot or will not; the replica serves again.
            TimeoutError: it still has requests when the time is over; likewise.
        """
        was_drained = bool(int(self._control.orders[replica]) & Mask.PLAN)
        self.drain(replica)
        self._is_moving[replica] = True
        try:
            async with self._connect(self.replicas[replica]) as engine:
                # Asked first, so that one which cannot sleep is not drained for nothing.
                await engine.facts()
                async with asyncio.timeout(deadline_s):
                    while self._outstanding(replica) > 0:
                        await asyncio.sleep(_LOOK_S)
                await engine.sleep()
            self._is_asleep[replica] = True
        except BaseException:
            if not was_drained:
                self.undrain(replica)
            raise
        finally:
            self._is_moving[replica] = False

    async def wake(self, replica: int, *, deadline_s: float = _ENGINE_S) -> None:
        """Wake a replica's engine, and send to it again once it is ready.

        Raises:
            EngineError: it cannot or will not.
            TimeoutError: it is not ready in time.
        """
        self._is_moving[replica] = True
        try:
            async with self._connect(self.replicas[replica]) as engine:
                await engine.facts()
                await engine.wake()
                async with asyncio.timeout(deadline_s):
                    while (await engine.health()).state is not HealthState.READY:
                        await asyncio.sleep(_LOOK_S)
            self._is_asleep[replica] = False
            self.undrain(replica)
        finally:
            self._is_moving[replica] = False

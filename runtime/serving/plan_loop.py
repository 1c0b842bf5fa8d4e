"""The long-term loop: a planner's moves, bounded, carried out one after the other, and counted.

A move that an engine cannot make is made at the gateway where that is possible: a replica that
cannot sleep is drained, so that it idles.

Does not know: why a planner wants a move.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from ...agents.shield.move_projection import (
    MadeMove,
    MoveLimits,
    capacities,
    project_moves,
)
from ...env.capacity import CapacityMove, MoveKind
from ...env.cluster import ClusterSpec
from ...env.fleet import WindowOutcome
from ...env.state.cluster_state import ClusterState
from ..engines.engine_error import EngineError
from .planner import Planner
from .replica_orders import ReplicaOrders

_LOG = logging.getLogger(__name__)


class PlanLoop:
    """Asks one planner, and does what it may."""

    def __init__(
        self,
        planner: Planner,
        cluster: ClusterSpec,
        orders: ReplicaOrders,
        states: Callable[[], Sequence[str]],
        *,
        limits: MoveLimits,
    ) -> None:
        """`states` says how each replica is."""
        self.num_made: Counter[MoveKind] = Counter()
        """Moves by kind."""
        self.num_refused: Counter[str] = Counter()
        """Moves that were not made, by reason."""
        self._planner, self._cluster, self._orders = planner, cluster, orders
        self._states, self._limits = states, limits
        self._history: tuple[MadeMove, ...] = ()
        self._windows: list[WindowOutcome] = []
        self._work: set[asyncio.Task[None]] = set()

    def note(self, window: WindowOutcome) -> None:
        """Take in what happened in a window."""
        self._windows.append(window)
        # Two hours of windows of 2 s, should nobody plan.
        del self._windows[:-3600]

    def step(self, state: ClusterState, now_s: float) -> tuple[CapacityMove, ...]:
        """Plan once; start what is allowed, and return it."""
        states = self._states()
        windows, self._windows = self._windows, []
        projected = project_moves(
            self._planner.plan(state, windows, states),
            capacities(self._cluster, states),
            self._history,
            now_s=now_s,
            limits=self._limits,
        )
        self._history = projected.history
        for refused in projected.refused:
            self._refuse(refused.move, str(refused.reason))
        for move in projected.allowed:
            task = asyncio.get_running_loop().create_task(self._make(move))
            self._work.add(task)
            task.add_done_callback(self._work.discard)
        return projected.allowed

    async def settle(self) -> None:
        """Wait until the moves under way are made or given up."""
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)

    async def close(self) -> None:
        """Give up the moves under way."""
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    async def _make(self, move: CapacityMove) -> None:
        name = self._cluster.replicas[move.replica].name
        try:
            if move.kind is MoveKind.SLEEP:
                await self._sleep(move)
            elif move.kind is MoveKind.WAKE:
                await self._wake(move)
            else:
                self._refuse(move, "not_possible")
                return
        except (EngineError, TimeoutError) as error:
            _LOG.warning("%s of replica '%s' failed: %s", move.kind, name, error)
            self._refuse(move, "failed")
            return
        self.num_made[move.kind] += 1
        _LOG.info("%s of replica '%s' is done", move.kind, name)

    async def _sleep(self, move: CapacityMove) -> None:
        try:
            await self._orders.sleep(move.replica)
        except EngineError as error:
            if not error.missing:
                raise
            self._orders.rest(move.replica)

    async def _wake(self, move: CapacityMove) -> None:
        if self._orders.is_resting(move.replica):
            self._orders.undrain(move.replica)
        else:
            await self._orders.wake(move.replica)

    def _refuse(self, move: CapacityMove, reason: str) -> None:
        self.num_refused[reason] += 1
        _LOG.info("%s of replica %d is not made: %s", move.kind, move.replica, reason)

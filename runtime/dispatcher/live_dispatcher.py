"""Places live requests with the simulator's own dispatch kernel, and keeps a gateway's counts.

One thread owns it: the gateway's. A call takes some microseconds and waits for nothing.

Does not know: HTTP, where the rules and knobs come from, or how metrics pages are fetched.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from ...env.cluster import ClusterSpec
from ...env.knobs import Knobs
from ...env.masks import Mask
from ...env.regret import Regret, regret_of
from ...env.restrictions import ReplicaLimits, Restrictions, no_limits, unrestricted
from ...env.shed_reason import ShedReason
from ...env.simulator.setup import SUBSET_CANDIDATES, SUBSET_REPLICAS
from .decision_ring import DecisionRing
from .dispatcher import DispatchListener
from .live_arrays import allocate, group_arrays, handle
from .live_kernel import (
    PLACED,
    note_end,
    note_first_token,
    note_page,
    note_prefilled,
    place,
    refresh,
)
from .live_worth import connect, forget_mirror
from .prefix_index import PrefixIndex
from .refusals import RETRY_AFTER_S, refusal_for
from .replica_page import ReplicaPage
from .request import Ending, Placement, Refusal, RequestEnd, RequestFacts, is_met
from .totals import DispatchTotals

# Prompt tokens that a block of the prefix index is taken to stand for when its room is set.
NOMINAL_BLOCK_TOKENS = 64


def cannot_place_by(knobs: Knobs) -> str:
    """Return why knobs that place by worth are refused by a dispatcher that cannot."""
    return (
        f"these knobs place by worth (value_weight {knobs['value_weight']:g}), and this gateway "
        "does not remember what that takes; start it with a scheduler or a bundle that places by "
        "worth, such as --scheduler marginal-value"
    )


class LiveDispatcher:
    """A `Dispatcher` over the replicas of a cluster, in the cluster's order."""

    def __init__(
        self,
        cluster: ClusterSpec,
        *,
        knobs: Knobs,
        listeners: Sequence[DispatchListener] = (),
        served: Sequence[str] = (),
        seed: int = 0,
        keep_every: int = 0,
        num_kept: int = 64,
        can_place_by_worth: bool | None = None,
    ) -> None:
        """Every `keep_every`-th decision is kept in full, the newest `num_kept` of them.

        `served` is what each replica's engine calls its model: replicas of one name take the same
        requests, whatever the cluster calls their models. Without it, those of one model do.

        Knobs that place by worth need memory of what each replica has, which is kept from the start
        or not at all: `can_place_by_worth` says so, by default if these knobs do.

        Raises:
            ValueError: `keep_every` is below 0, `served` is of another number of replicas, or the
                knobs place by worth where that was ruled out.
        """
        if keep_every < 0:
            msg = f"keep_every must be at least 1, or 0 for none, got {keep_every}"
            raise ValueError(msg)
        num_replicas = len(cluster.replicas)
        names = list(served) or [replica.model for replica in cluster.replicas]
        if len(names) != num_replicas:
            msg = f"served must name the model of {num_replicas} replicas, got {len(names)}"
            raise ValueError(msg)
        self.cluster = cluster
        places_by_worth = knobs["value_weight"] > 0.0
        self.can_place_by_worth = (
            places_by_worth if can_place_by_worth is None else can_place_by_worth
        )
        """Whether knobs may place by worth."""
        self.model_names: tuple[str, ...] = tuple(dict.fromkeys(names))
        """What is served, in the order of `RequestFacts.model_index`."""
        self._arrays = allocate(
            cluster,
            models=np.array([self.model_names.index(name) for name in names], np.int64),
            knobs=knobs,
            seed=seed,
            num_candidates=SUBSET_CANDIDATES if num_replicas >= SUBSET_REPLICAS else 0,
            num_kept=num_kept if keep_every else 1,
            can_place_by_worth=self.can_place_by_worth,
        )
        self._cursors = self._arrays.cursors
        self._cursors["keep_every"] = keep_every
        self._keep_every = keep_every
        self._handle = self._new_handle()
        capacity = self._arrays.views["kv_capacity_tokens"] // NOMINAL_BLOCK_TOKENS
        self.prefix_index = PrefixIndex([int(blocks) for blocks in capacity])
        """What each replica is believed to hold; engines' events may tell it better."""
        self.decisions = DecisionRing(self._arrays)
        self.totals = DispatchTotals()
        self.listeners = list(listeners)
        """Who is told of every request."""
        self.token_at_s = self._arrays.token_at_s
        """When something last came from each replica; [R]."""
        self.restrictions = unrestricted(num_replicas)
        self.limits = no_limits(cluster)
        self.tightest_ttft_s = np.inf
        """Shortest limit on TTFT that anybody has asked for."""
        self.policy_version = ""
        self.knob_version = 0
        self._num_decided = 0
        self._unseen: list[tuple[float, int, Placement]] = []
        self.knobs = knobs
        self.set_limits(self.limits)
        self.set_knobs(knobs)

    def _new_handle(self) -> np.ndarray:
        found = handle(self._arrays)
        # What nobody calls is not compiled.
        return connect(found) if self.can_place_by_worth else found

    @property
    def views(self) -> np.ndarray:
        """What the gateway knows of each replica, VIEW_DTYPE [R]; not to be changed."""
        return self._arrays.views

    @property
    def nominal(self) -> np.ndarray:
        """Latency coefficients that predictions are made with, LATENCY_DTYPE [R]."""
        return self._arrays.nominal

    def warm_up(self) -> None:
        """Compile, or load what was compiled, by placing one request on nobody."""
        place(
            self._handle, self.prefix_index.handle, np.zeros(1, np.uint64), 1, -1, 0, 0,
            (1, 1.0), (1.0, 1.0), 0, (0, 0.0, 0.0), False, 0.0,
        )  # fmt: skip
        self._cursors["next_slot"] = 0

    # What the control side sets.

    def set_knobs(self, knobs: Knobs, policy_version: str | None = None) -> None:
        """Dispatch by these knobs from the next request on.

        Raises:
            ValueError: they place by worth, which this dispatcher cannot.
        """
        self._check(knobs)
        self.knobs = knobs
        self.knob_version += 1
        if policy_version is not None:
            self.policy_version = policy_version
        arrays = self._arrays
        arrays.knobs[:] = knobs.record()
        arrays.knob_bias[:] = 0.0
        arrays.knob_bias[: knobs.replica_bias.size] = knobs.replica_bias
        self._set_bias()

    def _check(self, knobs: Knobs) -> None:
        """Raises: ValueError for knobs that this dispatcher cannot place by."""
        if knobs["value_weight"] > 0.0 and not self.can_place_by_worth:
            raise ValueError(cannot_place_by(knobs))

    def set_limits(self, limits: ReplicaLimits) -> None:
        """Let each replica have no more than this from the next request on.

        Raises:
            ValueError: the limits are of another number of replicas.
        """
        if limits.masks.shape != self.views.shape:
            msg = f"limits must be of {self.views.size} replicas, got {limits.masks.size}"
            raise ValueError(msg)
        self.limits = limits
        self.views["mask"] = limits.masks
        self.views["max_outstanding"] = limits.max_outstanding
        self._arrays.penalties[:] = limits.penalties
        self._set_bias()

    def set_restrictions(self, restrictions: Restrictions) -> None:
        """Obey other rules from the next request on; budgets begin full.

        Raises:
            ValueError: the restrictions are of another number of replicas.
        """
        if restrictions.num_replicas != self.views.size:
            msg = (
                f"restrictions are for {restrictions.num_replicas} replicas, but the cluster has "
                f"{self.views.size}; compile them for this cluster"
            )
            raise ValueError(msg)
        self.restrictions = restrictions
        self._arrays = self._arrays._replace(**group_arrays(restrictions))
        # Between two requests nobody reads the old addresses.
        self._handle = self._new_handle()
        self._set_bias()

    def _set_bias(self) -> None:
        arrays = self._arrays
        np.add(arrays.group_costs, arrays.knob_bias + arrays.penalties, out=arrays.bias)
        refresh(self._handle)

    def set_shadow(self, knobs: Knobs | None, *, every: int = 8) -> None:
        """Place every n-th request on paper by other knobs too; None: no more.

        Raises:
            ValueError: `every` is below 1, or the knobs place by worth, which it cannot.
        """
        if knobs is not None:
            self._check(knobs)
        if every < 1:
            msg = f"every must be at least 1 request, got {every}"
            raise ValueError(msg)
        arrays = self._arrays
        arrays.shadow["every"] = 0 if knobs is None else every
        if knobs is not None:
            arrays.shadow_knobs[:] = knobs.record()
            arrays.shadow_bias[:] = 0.0
            arrays.shadow_bias[: knobs.replica_bias.size] = knobs.replica_bias

    def take_regret(self) -> Regret:
        """Return how much better the shadow is estimated to do, since it was last taken."""
        return regret_of(self._arrays.shadow)

    def set_emergency(
        self,
        *,
        shed_limits: float | None = None,
        spill_tokens: float | None = None,
        most_output_tokens: float | None = None,
    ) -> None:
        """Set what an emergency changes; what is not named stays.

        A request whose predicted TTFT is beyond `shed_limits` of its limits is refused; requests
        of at most `spill_tokens` may go to the spill tier; batch requests are expected to give at
        most `most_output_tokens`.
        """
        if shed_limits is not None:
            self._cursors["shed_limits"] = shed_limits
        if spill_tokens is not None:
            self._cursors["spill_tokens"] = spill_tokens
        if most_output_tokens is not None:
            self._cursors["most_output_tokens"] = most_output_tokens

    def set_available(self, replica: int, is_available: bool, now_s: float) -> None:
        """Send to a replica, or not. One that goes down is forgotten: nothing runs there."""
        view = self.views[replica]
        if bool(view["is_available"]) == is_available:
            return
        view["is_available"] = is_available
        if is_available:
            view["scraped_at_s"] = view["progress_at_s"] = now_s
            self.token_at_s[replica] = now_s
            return
        for name in (
            *("outstanding_requests", "outstanding_tokens", "pending_tokens", "ttft_log_ratio"),
            *("iteration_log_ratio", "prefill_frac", "running_requests", "waiting_requests"),
            *("kv_usage_frac", "cached_frac"),
        ):
            view[name] = 0
        self.prefix_index.clear(replica)
        forget_mirror(self._handle, replica)
        refresh(self._handle)

    @property
    def num_unmirrored(self) -> int:
        """Open requests that worth knows nothing of, as their replica's memory was full."""
        return int(self._arrays.mirrors["num_dropped"].sum())

    def put_page(self, replica: int, page: ReplicaPage, now_s: float) -> None:
        """Take what a replica's metrics page said at a moment."""
        note_page(self._handle, replica, page.numbers(), now_s)

    # What the gateway asks and tells.

    def dispatch(self, facts: RequestFacts, now_s: float) -> Placement | Refusal:
        """Choose a replica for a request, and count it there."""
        totals = self.totals
        totals.num_arrived += 1
        totals.arrived_weight += facts.weight
        totals.arrived[facts.priority] += 1
        totals.input_tokens[facts.priority] += facts.input_tokens
        totals.ttft_limit_s[facts.priority] += facts.ttft_slo_s
        totals.tpot_limit_s[facts.priority] += facts.tpot_slo_s
        if facts.ttft_slo_s < self.tightest_ttft_s:
            self.tightest_ttft_s = facts.ttft_slo_s
        chosen = self._place(facts, now_s, is_first=True)
        if isinstance(chosen, Placement):
            totals.num_placed += 1
            for listener in self.listeners:
                listener.on_placed(chosen)
        else:
            for listener in self.listeners:
                listener.on_refused(facts, chosen, now_s)
        return chosen

    def redispatch(self, placement: Placement, now_s: float, reason: str) -> Placement | Refusal:
        """Choose another replica, as this one broke off or fell silent before its first byte."""
        facts = placement.facts
        self._leave(placement, now_s)
        tried = (*placement.tried, placement.replica)
        masks = self.views["mask"]
        before = masks[list(tried)]
        masks[list(tried)] |= int(Mask.UNHEALTHY)
        try:
            chosen = self._place(facts, now_s, is_first=False)
        finally:
            masks[list(tried)] = before
        if isinstance(chosen, Placement):
            self.totals.num_retried += 1
            chosen.num_attempts = placement.num_attempts + 1
            chosen.tried = tried
            for listener in self.listeners:
                listener.on_placed(chosen)
            return chosen
        self.totals.num_failed += 1
        lost = Refusal(
            status=503,
            code=chosen.code,
            message=f"{reason}, and no other replica can take the request",
            retry_after_s=RETRY_AFTER_S,
        )
        for listener in self.listeners:
            listener.on_refused(facts, lost, now_s)
        return lost

    def _place(self, facts: RequestFacts, now_s: float, *, is_first: bool) -> Placement | Refusal:
        group = 0
        if self.restrictions.tenants or self.restrictions.adapters:
            group = self.restrictions.group_of(facts.tenant, facts.adapter)
        self._num_decided = number = self._num_decided + 1
        # Engines' events may change the index from another thread.
        with self.prefix_index.lock:
            status, replica, hit_tokens, ttft_s, nominal_s, expected_tokens, priority = place(
                self._handle, self.prefix_index.handle, facts.blocks, facts.block_tokens,
                facts.model_index, group, facts.priority,
                (facts.input_tokens, facts.expected_output_tokens),
                (facts.ttft_slo_s, facts.tpot_slo_s), facts.session_hash,
                (number, facts.weight, facts.arrived_at_s), is_first, now_s,
            )  # fmt: skip
        # What was not paid for is refused before anything is looked at.
        if self._keep_every and number % self._keep_every == 0 and status != ShedReason.BUDGET:
            self.decisions.own(facts.request_id, self.knobs, self.knob_version, self.policy_version)
        if status != PLACED:
            return self._refusal(facts, ShedReason(status))
        placement = Placement(
            facts=facts,
            replica=replica,
            number=number,
            hit_tokens=hit_tokens,
            predicted_ttft_s=ttft_s,
            nominal_ttft_s=nominal_s,
            counted_output_tokens=expected_tokens,
            priority=priority,
            placed_at_s=now_s,
            group=group,
        )
        if not facts.is_stream:
            heapq.heappush(self._unseen, (now_s + ttft_s, number, placement))
        return placement

    def settle(self, now_s: float) -> None:
        """Take the prompts of answers that do not stream off the backlog, when it is their time.

        Nothing is seen of such an answer before its end, so its prediction stands for its first
        token.
        """
        unseen = self._unseen
        while unseen and unseen[0][0] <= now_s:
            placement = heapq.heappop(unseen)[2]
            if not placement.is_ended:
                placement.is_prefilled = True
                uncached_tokens = placement.facts.input_tokens - placement.hit_tokens
                note_prefilled(
                    self._handle, placement.replica, placement.number, uncached_tokens, now_s
                )

    def _refusal(self, facts: RequestFacts, reason: ShedReason) -> Refusal:
        totals = self.totals
        totals.num_shed += 1
        totals.shed_by_reason[reason] += 1
        totals.shed[facts.priority] += 1
        return refusal_for(reason)

    def first_token(self, placement: Placement, now_s: float) -> None:
        """Note the first byte of an answer's body."""
        totals, facts = self.totals, placement.facts
        if facts.is_stream and facts.arrived_at_s >= totals.window_at_s:
            totals.first_tokens[facts.priority] += 1
            if now_s - facts.arrived_at_s > facts.ttft_slo_s:
                totals.late_first_tokens[facts.priority] += 1
        placement.first_token_at_s = now_s
        placement.is_prefilled = True
        self.token_at_s[placement.replica] = now_s
        note_first_token(
            self._handle, placement.replica, placement.number,
            placement.facts.input_tokens - placement.hit_tokens,
            now_s - placement.placed_at_s, placement.nominal_ttft_s, now_s,
        )  # fmt: skip

    def progress(self, replica: int, now_s: float) -> None:
        """Note that something came from a replica."""
        self.token_at_s[replica] = now_s

    def _leave(self, placement: Placement, now_s: float, whole_tokens: int = 0) -> None:
        """Take a request off its replica; answers that are whole tell their length."""
        placement.is_ended = True
        note_end(
            self._handle, placement.replica, placement.facts.input_tokens,
            placement.counted_output_tokens,
            placement.facts.input_tokens - placement.hit_tokens, placement.is_prefilled,
            (placement.number, placement.priority, whole_tokens, now_s),
        )  # fmt: skip

    def finish(self, placement: Placement, end: RequestEnd) -> None:
        """Note that a request has left its replica."""
        is_whole = end.ending is Ending.FINISHED
        self._leave(placement, end.ended_at_s, end.output_tokens if is_whole else 0)
        placement.end = end
        totals, priority = self.totals, placement.facts.priority
        totals.output_tokens += end.output_tokens
        if is_whole:
            totals.num_finished += 1
            totals.finished[priority] += 1
            if is_met(placement, end):
                totals.credit += placement.facts.weight
                totals.met[priority] += 1
            else:
                totals.late[priority] += 1
        elif end.ending is Ending.ABORTED:
            totals.num_aborted += 1
        elif end.ending is Ending.REFUSED:
            totals.num_refused += 1
        else:
            totals.num_failed += 1
        for listener in self.listeners:
            listener.on_ended(placement, end)

    @property
    def num_open(self) -> int:
        """Requests that are at a replica."""
        return self.totals.num_open

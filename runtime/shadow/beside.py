"""Shadow beside a router that is not ours: its access log played through our dispatcher, on paper.

Every request is first placed by our knobs, which nothing obeys, and then counted where the router
sent it, until the moment at which the log says that it ended. So our choices are made on the load
that the router's own choices made.

Does not know: what the router went by.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from ...env.knobs import Knobs
from ...env.masks import Mask
from ...env.restrictions import ReplicaLimits
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..dispatcher.request import Ending, Placement, RequestEnd, RequestFacts
from ..launcher.live_fleet_file import LiveFleetSpec
from .access_log import LoggedRequest
from .redecisions import NOBODY, Redecision

# Bytes of a request for a token, headers and JSON taken along: English in chat requests.
BYTES_PER_TOKEN = 4.5


def facts_of(request: LoggedRequest, limits: tuple[float, float]) -> RequestFacts:
    """Return what our gateway would have known of a logged request; limits in s."""
    tokens = max(1, round(request.bytes_in / BYTES_PER_TOKEN))
    return RequestFacts(
        request_id=request.request_id, model="", model_index=0, tenant="", input_tokens=tokens,
        max_output_tokens=256, expected_output_tokens=128.0, output_tokens_p90=256.0,
        ttft_slo_s=limits[0], tpot_slo_s=limits[1], is_stream=True,
        arrived_at_s=request.arrived_s,
    )  # fmt: skip


def decide_beside(
    requests: Sequence[LoggedRequest],
    spec: LiveFleetSpec,
    knobs: Knobs,
    *,
    limits: tuple[float, float],
) -> list[Redecision]:
    """Return our choice for each logged request beside the router's; limits on TTFT and TPOT."""
    served = [replica.model for replica in spec.replicas]
    names = [replica.name for replica in spec.replicas]
    paper = LiveDispatcher(spec.cluster, knobs=knobs, served=served)
    for replica in range(len(names)):
        paper.set_available(replica, True, 0.0)
    events: list[tuple[float, int, Placement, float]] = []
    found = []
    for number, request in enumerate(requests):
        _settle(paper, events, request.arrived_s)
        facts = facts_of(request, limits)
        ours = paper.dispatch(facts, request.arrived_s)
        if isinstance(ours, Placement):
            paper.finish(ours, _end(request.arrived_s))
        place = names.index(request.replica)
        _only(paper, place)
        counted = paper.dispatch(facts, request.arrived_s)
        _only(paper, None)
        if isinstance(counted, Placement):
            end_s = request.arrived_s + request.span_s
            heapq.heappush(events, (end_s, number, counted, request.first_s))
        other = names[ours.replica] if isinstance(ours, Placement) else NOBODY
        is_met = request.status < 400 and not request.first_s > limits[0]
        found.append(
            Redecision(
                request_id=request.request_id, at_s=request.arrived_s, taken=request.replica,
                other=other, reason="" if other == request.replica else "load and prediction",
                margin=0.0, is_taken_met=is_met, is_other_met=is_met, decision_s=float("nan"),
            )
        )  # fmt: skip
    return found


def _end(at_s: float) -> RequestEnd:
    return RequestEnd(ending=Ending.ABORTED, status=0, ended_at_s=at_s, output_tokens=0)


def _settle(
    paper: LiveDispatcher, events: list[tuple[float, int, Placement, float]], now_s: float
) -> None:
    """Let what has ended by now leave its replica."""
    while events and events[0][0] <= now_s:
        end_s, _, placement, first_s = heapq.heappop(events)
        if first_s == first_s:
            paper.first_token(placement, placement.placed_at_s + first_s)
        paper.finish(placement, _end(end_s))


def _only(paper: LiveDispatcher, replica: int | None) -> None:
    """Let all requests go to one replica, or to any."""
    num = paper.views.size
    masks = np.zeros(num, np.uint16)
    if replica is not None:
        masks[:] = int(Mask.PLAN)
        masks[replica] = 0
    paper.set_limits(
        ReplicaLimits(
            masks=masks, max_outstanding=np.full(num, np.inf), penalties=np.zeros(num)
        )
    )  # fmt: skip

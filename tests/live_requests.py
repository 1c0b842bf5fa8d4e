"""Requests of a live gateway without a gateway: placed by a real dispatcher, ended as told."""

from dataclasses import replace

import numpy as np

from trimtab.env.cluster import ClusterSpec
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS, Knobs
from trimtab.runtime.dispatcher.live_dispatcher import LiveDispatcher
from trimtab.runtime.dispatcher.request import (
    Ending,
    Placement,
    Refusal,
    RequestEnd,
    RequestFacts,
)


def three_replicas() -> ClusterSpec:
    """Return the first three replicas of the demo cluster."""
    cluster = load_cluster("demo-16")
    return replace(cluster, replicas=cluster.replicas[:3])


def make_dispatcher(
    cluster: ClusterSpec, *, knobs: Knobs = ANALYTIC_SCORER_KNOBS, keep_every: int = 0
) -> LiveDispatcher:
    """Return a dispatcher whose replicas are all up."""
    dispatcher = LiveDispatcher(cluster, knobs=knobs, keep_every=keep_every, num_kept=256)
    for replica in range(len(cluster.replicas)):
        dispatcher.set_available(replica, True, 0.0)
    return dispatcher


def make_facts(number: int, at_s: float, **changes: object) -> RequestFacts:
    """Return facts of a request; those of one session share its prefix blocks."""
    session = number % 4
    values: dict[str, object] = {
        "request_id": f"req-{number}", "model": "m", "model_index": 0, "tenant": "shop",
        "input_tokens": 300 + number, "max_output_tokens": 64, "expected_output_tokens": 40.0,
        "output_tokens_p90": 60.0, "ttft_slo_s": 5.0, "tpot_slo_s": 0.5, "arrived_at_s": at_s,
        "is_stream": True, "session_hash": 1000 + session,
        "blocks": np.arange(session * 100, session * 100 + 4, dtype=np.uint64),
        "block_tokens": 60,
    }  # fmt: skip
    return RequestFacts(**(values | changes))  # type: ignore[arg-type]


def run_request(
    dispatcher: LiveDispatcher, facts: RequestFacts, *, ttft_s: float = 0.1, tokens: int = 20
) -> Placement | Refusal:
    """Place a request and let it finish."""
    chosen = dispatcher.dispatch(facts, facts.arrived_at_s)
    if isinstance(chosen, Placement):
        dispatcher.first_token(chosen, facts.arrived_at_s + ttft_s)
        end = RequestEnd(
            ending=Ending.FINISHED, status=200, ended_at_s=facts.arrived_at_s + ttft_s + 1.0,
            output_tokens=tokens, input_tokens=facts.input_tokens + 1, cached_tokens=16,
        )  # fmt: skip
        dispatcher.finish(chosen, end)
    return chosen

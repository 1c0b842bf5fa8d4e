"""Everything that a request runs through, run once before the first: compiled, or loaded.

Does not know: the gateway that serves; what runs here is thrown away.
"""

from collections.abc import Sequence

import msgspec

from ...agents.shield.shield import ShieldConfig
from ..dispatcher.live_dispatcher import LiveDispatcher
from ..dispatcher.replica_page import ReplicaPage
from ..dispatcher.request import Ending, Placement, RequestEnd
from ..gateway.gateway import Gateway
from ..gateway.tenants import Tenant
from ..live_fleet.live_control import LiveControl
from ..observer.observer import layout_of
from ..telemetry.hub import Hub
from ..understanding.openai_reader import OpenAiReader
from ..understanding.reader import Call
from ..understanding.served_models import ServedModel

_BODIES = (
    ("/v1/completions", {"prompt": "warm"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "warm " * 200}]}),
)


def warm_up(
    gateway: Gateway,
    like: LiveDispatcher,
    models: Sequence[ServedModel],
    shield: ShieldConfig,
    now_s: float,
) -> None:
    """Run a request of each kind through a reader, a dispatcher like `like`, and a control."""
    cluster = like.cluster
    served = [pool.replica.model for pool in gateway.pools]
    reader = OpenAiReader(models)
    dispatcher = LiveDispatcher(
        cluster, knobs=like.knobs, served=served, keep_every=1,
        can_place_by_worth=like.can_place_by_worth,
    )  # fmt: skip
    dispatcher.listeners.append(reader)
    dispatcher.set_shadow(like.knobs, every=1)
    control = LiveControl(gateway, dispatcher, Hub(layout_of(cluster)), shield)
    control.begin(now_s)
    tenant = Tenant(name="warm", ttft_slo_s=1e6, tpot_slo_s=1e6)
    for path, content in _BODIES:
        body = msgspec.json.encode({"model": served[0], "stream": True, **content})
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
    dispatcher.set_available(0, False, now_s + 1.0)
    dispatcher.take_regret()
    dispatcher.decisions.take()

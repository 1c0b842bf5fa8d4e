"""Makes the engine of a replica: which class speaks to which kind.

The simulated engine speaks vLLM's HTTP, and like any vLLM it is asked which routes it has.

Does not know: what an engine can do.
"""

from typing import Final

import aiohttp

from .engine import Engine
from .engine_http import EngineHttp
from .live_replica import EngineKind, LiveReplica
from .llamacpp import LlamaCppEngine
from .sglang import SglangEngine
from .simulated import SimulatedVllm
from .vllm import VllmEngine

ENGINES: Final[
    dict[EngineKind, type[LlamaCppEngine | VllmEngine | SglangEngine | SimulatedVllm]]
] = {
    EngineKind.LLAMACPP: LlamaCppEngine,
    EngineKind.VLLM: VllmEngine,
    EngineKind.SGLANG: SglangEngine,
    EngineKind.SIMULATED: SimulatedVllm,
}


def connect(
    replica: LiveReplica, session: aiohttp.ClientSession, *, timeout_s: float = 5.0
) -> Engine:
    """Return the engine of a replica; nothing is asked yet."""
    return ENGINES[replica.engine](EngineHttp(replica, session, timeout_s=timeout_s))

"""What a feature is: one signal of the four dimensions, with its scale and its sources.

Does not know: which features there are (`registry.py`), or how their values are gathered.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Dimension(StrEnum):
    """The four dimensions of the state."""

    COMPUTE = "compute"
    MEMORY = "memory"
    COMMUNICATION = "communication"
    SERVICE = "service"


class Node(StrEnum):
    """Kinds of nodes in the state graph; `FLEET` is the graph as a whole."""

    REPLICA = "replica"
    GPU = "gpu"
    SERVER = "server"
    LINK = "link"
    ZONE = "zone"
    TENANT = "tenant"
    FLEET = "fleet"


class Live(StrEnum):
    """Who can be asked for a value in a live fleet."""

    NVML = "nvml"  # functions, fields and GPM metrics of nvidia-ml-py
    DCGM = "dcgm"  # fields of dcgm-exporter
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMACPP = "llamacpp"
    KV_EVENTS = "kv_events"
    GATEWAY = "gateway"  # what passes through the gateway is counted there
    HOST = "host"  # /proc, /sys and round trips between hosts
    CONFIG = "config"  # cluster file and catalogues


NORMALISERS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "identity": lambda x: x,
    "log1p": np.log1p,
    "log10": lambda x: np.log10(np.maximum(x, 1e-9)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Range of a feature, and how it is brought near [-1, 1]: (normaliser(x) - offset) / scale."""

    low: float
    high: float
    normaliser: str = "identity"
    offset: float = 0.0
    scale: float = 1.0


SHARE = Scale(low=0, high=1)
"""A share of a whole."""
COUNT = Scale(low=0, high=4096, normaliser="log1p", scale=4.0)
"""How many."""
SECONDS = Scale(low=0, high=60, normaliser="log1p")
"""A span that is seldom above a minute."""
LOG_RATIO = Scale(low=-3, high=3)
"""Natural logarithm of measured over expected."""
PER_S = Scale(low=0, high=1e5, normaliser="log1p", scale=4.0)
"""Events a second."""
TREND = Scale(low=-1, high=1, scale=0.2)
"""Change of a share in a second."""
TOKENS = Scale(low=0, high=1e6, normaliser="log1p", offset=6.5, scale=2.0)
"""Tokens of a request."""
BYTES_PER_S = Scale(low=1e8, high=1e14, normaliser="log10", offset=11.0, scale=1.0)
"""A bandwidth."""
TRAFFIC = Scale(low=0, high=1e12, normaliser="log1p", offset=14.0, scale=7.0)
"""Bytes or messages a second that may be none."""
FLOPS = Scale(low=1e12, high=1e16, normaliser="log10", offset=14.5, scale=0.5)
"""Arithmetic a second."""
LATENCY = Scale(low=0, high=1, normaliser="log10", offset=-4.0, scale=1.5)
"""Seconds on a network."""
HOPS = Scale(low=0, high=4, scale=2.0)
"""Links in a row."""
CELSIUS = Scale(low=0, high=120, offset=60, scale=30)
"""A temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One signal: what it is, how it is scaled, and where it comes from."""

    name: str
    node: Node
    dimension: Dimension
    unit: str
    meaning: str
    """What it says, where the name does not."""
    scale: Scale
    live: Mapping[Live, str] = field(hash=False)
    """Who can be asked in a live fleet, and what for; empty: nobody can."""
    simulator: str | None
    """Where the simulator has it from; None: it does not model it."""


FeatureMaker = Callable[..., Feature]


def feature_maker(dimension: Dimension) -> FeatureMaker:
    """Return what makes the features of one dimension, as the tables of the registry write them."""

    def make(
        node: Node,
        name: str,
        unit: str,
        scale: Scale,
        meaning: str,
        *,
        live: Mapping[Live, str],
        simulator: str | None,
    ) -> Feature:
        return Feature(
            name=name,
            node=node,
            dimension=dimension,
            unit=unit,
            meaning=meaning,
            scale=scale,
            live=live,
            simulator=simulator,
        )

    return make

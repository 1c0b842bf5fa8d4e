"""The feature registry as Markdown: `docs/state.md`; and as plain records.

Does not know: which features there are, or their values.

Run: `trimtab schema state --markdown > docs/state.md`.
"""

from collections.abc import Iterator
from typing import Any

from ..env.state.edges import EDGE_TYPES
from ..env.state.feature import Dimension, Feature, Live, Node, Scale
from ..env.state.memory_features import INDICES
from ..env.state.registry import FEATURES

_INTRODUCTION = """\
# State

What a scheduler can see of a fleet at one moment: {num_features} features of four dimensions on a \
graph of {num_nodes} kinds of nodes and {num_edges} kinds of edges. This page is made by \
`trimtab schema state --markdown` from `env/state/registry.py`, the one table that probes, \
simulator, encoder and this page go by.

A `ClusterState` holds raw values in the units below, a mask, and for each node the time since it \
was last heard of. What nobody can know at a moment is absent (not a number, mask false), never a \
silent 0: the queue of a replica that is off, a percentile of no requests, a trend before the \
second window. For a network a value is clipped to its range and scaled as its row says.

*Window* is the time between two decisions of the short-term policy. A *live* source is who can be \
asked in a running fleet: NVML (functions, fields and GPM metrics of nvidia-ml-py), DCGM, \
metrics pages of vLLM, SGLang and llama.cpp, KV events, the gateway's own counts, the host, or \
configuration. {num_live} features have one, and the *simulator* fills {num_simulated}; *none* \
means that nobody offers the value.
"""

_LIVE_NAMES = {
    Live.NVML: "NVML",
    Live.DCGM: "DCGM",
    Live.VLLM: "vLLM",
    Live.SGLANG: "SGLang",
    Live.LLAMACPP: "llama.cpp",
    Live.KV_EVENTS: "KV events",
    Live.GATEWAY: "gateway",
    Live.HOST: "host",
    Live.CONFIG: "configuration",
}

_EDGES_TITLE = """\
## Edges

Each kind is read both ways; *serves* is `waits_on` read from replica to tenant.
"""


def state_page() -> str:
    """Return the page about the state."""
    introduction = _INTRODUCTION.format(
        num_features=len(FEATURES),
        num_nodes=len(Node),
        num_edges=len(EDGE_TYPES),
        num_simulated=sum(feature.simulator is not None for feature in FEATURES),
        num_live=sum(bool(feature.live) for feature in FEATURES),
    )
    sections = [
        "\n".join((f"## {dimension.capitalize()}\n", *_tables(dimension)))
        for dimension in Dimension
    ]
    edges = "\n".join((_EDGES_TITLE, *_edge_rows(), ""))
    indices = "\n".join(("## Indices\n", *(f"- `{k}`. {text}" for k, text in INDICES.items()), ""))
    return "\n".join((introduction, *sections, edges, indices))


def state_records() -> list[dict[str, Any]]:
    """Return the features as plain records, in the order of the registry."""
    return [
        {
            "node": feature.node.value,
            "name": feature.name,
            "dimension": feature.dimension.value,
            "unit": feature.unit,
            "meaning": feature.meaning,
            "low": feature.scale.low,
            "high": feature.scale.high,
            "scaled": _scaled_text(feature.scale),
            "live": {source.value: text for source, text in feature.live.items()},
            "simulator": feature.simulator,
        }
        for feature in FEATURES
    ]


def _tables(dimension: Dimension) -> Iterator[str]:
    for node in Node:
        features = [f for f in FEATURES if f.dimension is dimension and f.node is node]
        if features:
            yield f"### {'GPU' if node is Node.GPU else node.capitalize()}\n"
            yield "| feature | unit | range | scaled | meaning | live | simulator |"
            yield "|---|---|---|---|---|---|---|"
            yield from map(_row, features)
            yield ""


def _row(feature: Feature) -> str:
    scale = feature.scale
    live = "; ".join(f"{_LIVE_NAMES[source]}: {text}" for source, text in feature.live.items())
    cells = (
        f"`{feature.name}`",
        feature.unit,
        f"{scale.low:g} to {scale.high:g}",
        f"`{_scaled_text(scale)}`",
        feature.meaning,
        live or "none",
        feature.simulator or "none",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _scaled_text(scale: Scale) -> str:
    text = "x" if scale.normaliser == "identity" else f"{scale.normaliser}(x)"
    if scale.offset:
        sign = "+" if scale.offset < 0 else "-"
        text = f"{text} {sign} {abs(scale.offset):g}"
        text = f"({text})" if scale.scale != 1 else text
    return text if scale.scale == 1 else f"{text} / {scale.scale:g}"


def _edge_rows() -> Iterator[str]:
    yield "| edge | from | to | meaning | attributes |"
    yield "|---|---|---|---|---|"
    for edge, kind in EDGE_TYPES.items():
        attributes = ", ".join(f"`{f.name}` ({f.unit})" for f in kind.features) or "none"
        yield f"| `{edge}` | {kind.source} | {kind.target} | {kind.meaning} | {attributes} |"

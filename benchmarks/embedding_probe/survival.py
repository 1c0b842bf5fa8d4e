"""Which features can still be read off an embedding: linear maps from it to summaries of the state.

Does not know: what is foretold.
"""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from embedding_probe.vectors import Recorded
from trimtab.env.state.registry import FEATURES
from trimtab.graph_encoder.linear_probe import LinearProbe, r2_score
from trimtab.graph_encoder.raw_vectors import summary_names

STATISTICS = ("mean", "spread", "most")
# Spread of a scaled summary over the tested states below which there is nothing to keep.
_LEAST_SPREAD = 0.005
_COLOURS = {"compute": "#0072B2", "memory": "#D55E00", "communication": "#009E73",
            "service": "#CC79A7"}  # fmt: skip


def survival(recorded: Recorded) -> dict[str, dict[str, float]]:
    """Return, by embedding and summary, the R2 with which unseen runs' summaries are read off."""
    names = summary_names()
    tested = recorded.summaries[recorded.is_unseen]
    fitted = recorded.summaries[recorded.is_fit]
    kept = [
        i
        for i, name in enumerate(names)
        if name.rsplit(".", 1)[1] in STATISTICS
        and min(tested[:, i].std(), fitted[:, i].std()) > _LEAST_SPREAD
    ]
    found = {}
    for embedding, vectors in recorded.embeddings.items():
        probe = LinearProbe(vectors, recorded.run, is_fit=recorded.is_fit)
        read = probe.predict(recorded.summaries[:, kept])[recorded.is_unseen]
        found[embedding] = {
            names[i]: r2_score(read[:, k], tested[:, i]) for k, i in enumerate(kept)
        }
    return found


def draw_survival(kept: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the R2 of all summaries, best first, one panel for each dimension of the state."""
    dimension_of = {f"{f.node}.{f.name}": str(f.dimension) for f in FEATURES}
    figure = Figure(figsize=(9.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(_COLOURS), sharey=True)
    first, *_, last = kept
    for panel, (dimension, colour) in zip(panels, _COLOURS.items(), strict=True):
        for embedding, style in ((first, "dotted"), (last, "solid")):
            r2 = np.array(
                [
                    value
                    for name, value in kept[embedding].items()
                    if dimension_of[name.rsplit(".", 1)[0]] == dimension
                ]
            )
            r2 = np.sort(np.maximum(r2, 0.0))[::-1]
            share = (np.arange(len(r2)) + 0.5) / len(r2)
            panel.plot(
                100 * share,
                r2,
                color=colour,
                linestyle=style,
                marker=".",
                markersize=3,
                label=embedding,
            )
        panel.set_title(f"{dimension} ({len(r2)})", fontsize=10)
        panel.set_xlabel("% of summaries")
        panel.set_xlim(0, 100)
        panel.set_ylim(0, 1.02)
    panels[0].set_ylabel("R2, linear, unseen runs")
    panels[0].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=120)

"""Command `trimtab pretrain`: train the graph encoder on states of random simulated fleets.

Does not know: what the encoder's vectors are used for.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..env.scenario import Part
from ..graph_encoder.checkpoint import save_encoder
from ..graph_encoder.fleet_graph import GraphBuilder
from ..graph_encoder.graph_batch import GraphBatch
from ..graph_encoder.pretraining import Losses, Pretrained, PretrainingConfig
from ..graph_encoder.pretraining import pretrain as pretrain_encoder
from ..graph_encoder.state_sequences import (
    SequenceConfig,
    draw_cluster,
    fleet_saturation_rps,
    record_sequence,
)

_NUM_VALIDATION_FLEETS = 4
# Servers of the fleets, in turn.
_NUM_SERVERS = (2, 3, 4, 6)
# Seeds of validation fleets begin here, so that none is trained on.
_VALIDATION_SEED = 1_000_000


def pretrain(
    *,
    fleets: Annotated[int, typer.Option(min=1, help="Random fleets to train on.")] = 24,
    windows: Annotated[int, typer.Option(min=2, help="States of each fleet, 2 s apart.")] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training.")] = 1_500,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same encoder.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of the encoder.")] = Path("runs/encoder"),
) -> None:
    """Train the graph encoder: restore what is hidden, foretell the next window, summarise."""
    console = Console(highlight=False)
    config = PretrainingConfig(num_steps=steps, seed=seed)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        recording = progress.add_task("record states", total=fleets + _NUM_VALIDATION_FLEETS)
        training: list[list[GraphBatch]] = []
        validation: list[list[GraphBatch]] = []
        for i in range(fleets + _NUM_VALIDATION_FLEETS):
            is_training = i < fleets
            own_seed = seed * 10_000 + i + (0 if is_training else _VALIDATION_SEED)
            part = Part.TRAIN if is_training else Part.VALIDATION
            recorded = SequenceConfig(num_windows=windows, part=part)
            (training if is_training else validation).append(
                _graphs(own_seed, _NUM_SERVERS[i % len(_NUM_SERVERS)], recorded)
            )
            progress.advance(recording)
        stepping = progress.add_task("train", total=steps)

        def show(losses: Losses) -> None:
            progress.update(stepping, completed=losses.step)

        result = pretrain_encoder(training, validation, config, show)
    _save(out, result, config, fleets=fleets, windows=windows)
    for look in (result.validation[0], _best(result)):
        console.print(
            f"validation at step {look.step}: restore {look.restore:.3f}, "
            f"foretell {look.foretell:.3f}, summarise {look.summarise:.3f}"
        )
    console.print(f"wrote {out}", soft_wrap=True, markup=False)


def _graphs(seed: int, num_servers: int, config: SequenceConfig) -> list[GraphBatch]:
    """Return the graphs of a random fleet's states, in order of time."""
    cluster = draw_cluster(seed, num_servers)
    rate_rps = fleet_saturation_rps(cluster)
    sequence = record_sequence(cluster, rate_rps, config=config, seed=seed)
    builder = GraphBuilder()
    return [builder.build(state) for state in sequence.states]


def _best(result: Pretrained) -> Losses:
    return min(result.validation, key=lambda look: look.total)


def _save(
    out: Path, result: Pretrained, config: PretrainingConfig, *, fleets: int, windows: int
) -> None:
    training = {
        "config": asdict(config),
        "fleets": fleets,
        "windows": windows,
        "validation": [asdict(look) for look in result.validation],
    }
    save_encoder(out, result.encoder, training, overwrite=True)

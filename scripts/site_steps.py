"""Steps over many sites that commands share: the universal base, and training with a progress bar.

Does not know: options of the command line.
"""

from enum import StrEnum
from pathlib import Path

from ..agents.bundle import Bundle, save_bundle
from ..agents.site_training import SiteTrainingConfig, changing_episodes, train_on_sites
from ..agents.training import TrainingResult
from ..agents.training_log import WandbMode
from ..agents.universal import universal_scorer, universal_worth
from ..env.knobs import Knobs
from ..env.sites import Split, TraceLibrary
from .steps import progress_bar, training_results

# Of four sites, one is for validation.
_TRAINING_OVER_VALIDATION = 4


class PlaceBy(StrEnum):
    """By what requests are placed."""

    COST = "cost"
    WORTH = "worth"


def universal_base(place_by: PlaceBy) -> Knobs:
    """Return the vector that ships for all sites."""
    return universal_worth() if place_by is PlaceBy.WORTH else universal_scorer()


def train_on_sites_with_progress(
    base: Knobs,
    directory: Path,
    config: SiteTrainingConfig,
    sites: tuple[int, Path | None],
    *,
    wandb_mode: WandbMode,
    start: Bundle | None = None,
) -> TrainingResult:
    """Train over changing sites, validated on a quarter as many others, showing how far it is."""
    num_sites, traces = sites
    library = None if traces is None else TraceLibrary(traces)
    span_s = config.episode.window_s * config.episode.num_windows
    num_validation = max(2, num_sites // _TRAINING_OVER_VALIDATION)
    with progress_bar() as progress:
        task = progress.add_task("drawing sites", total=config.num_windows)
        episodes = changing_episodes(Split.TRAIN, range(num_sites), library, span_s=span_s)
        validation = changing_episodes(
            Split.VALIDATION, range(num_validation), library, span_s=span_s
        )
        text = f"training over {len(episodes)} sites, windows"
        progress.update(task, description=text)
        return train_on_sites(
            episodes, validation, base, directory, config,
            start=start, wandb_mode=wandb_mode,
            on_windows=lambda count: progress.advance(task, count),
        )  # fmt: skip


def write_site_bundle(
    path: Path, config: SiteTrainingConfig, result: TrainingResult, num_sites: int
) -> None:
    """Save the trained policy with its validation results, in place of an older bundle."""
    description = (
        f"{num_sites} training sites whose regimes change, {result.num_windows} windows of "
        f"{config.episode.window_s:g} s, seed {config.seed}; best checkpoint at "
        f"{result.best_windows} windows."
    )
    save_bundle(
        path,
        policy=result.policy,
        base_knobs=result.base,
        layout=result.layout,
        evaluation=training_results(result),
        description=description,
        overwrite=True,
    )

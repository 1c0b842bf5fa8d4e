"""Training log: Stable-Baselines3's logger, with Weights & Biases as one more output.

Works with W&B online, offline, disabled or not installed; training never depends on it.

Does not know: what is logged.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import CSVOutputFormat, KVWriter, Logger

from ..traces.errors import MissingExtraError

PROJECT = "trimtab"
_LOG = logging.getLogger(__name__)


class WandbMode(StrEnum):
    """What to do with Weights & Biases."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"


class _WandbOutput(KVWriter):
    """Writes SB3's logged values to a W&B run."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Log all plain numbers of a step."""
        numbers = {k: v for k, v in key_values.items() if isinstance(v, int | float)}
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


@contextmanager
def training_log(
    directory: Path, *, mode: WandbMode, config: Mapping[str, Any]
) -> Iterator[Logger]:
    """Yield a logger that writes `progress.csv` in a directory, and a W&B run unless disabled.

    Without the package an offline run is left out, with a line in the log.

    Raises:
        MissingExtraError: an online run is wanted, and the package wandb is not installed.
    """
    mode = usable_mode(mode)
    directory.mkdir(parents=True, exist_ok=True)
    outputs: list[KVWriter] = [CSVOutputFormat(str(directory / "progress.csv"))]
    if mode is not WandbMode.DISABLED:
        outputs.append(_WandbOutput(start_run(directory, mode, config)))
    logger = Logger(str(directory), outputs)
    try:
        yield logger
    finally:
        logger.close()


def usable_mode(mode: WandbMode) -> WandbMode:
    """Return the mode, or `DISABLED` where an offline run cannot be as wandb is not installed.

    Raises:
        MissingExtraError: an online run is wanted, and the package wandb is not installed.
    """
    if mode is WandbMode.DISABLED or importlib.util.find_spec("wandb") is not None:
        return mode
    if mode is WandbMode.ONLINE:
        msg = (
            "wandb mode is 'online', but the package wandb is not installed; "
            "run 'pip install wandb' or use --wandb disabled"
        )
        raise MissingExtraError(msg)
    _LOG.warning("wandb is not installed: logging to files alone")
    return WandbMode.DISABLED


def start_run(
    directory: Path, mode: WandbMode, config: Mapping[str, Any], *, job_type: str = "train"
) -> Any:
    """Begin a W&B run that keeps its files below a directory."""
    import wandb

    return wandb.init(
        project=PROJECT,
        dir=str(directory),
        config=dict(config),
        job_type=job_type,
        mode="offline" if mode is WandbMode.OFFLINE else "online",
        settings=wandb.Settings(silent=True),
    )

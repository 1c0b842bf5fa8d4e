"""Results for Weights & Biases: tables of paired differences, and what a run left behind.

Offline by default, and nothing but a line in the log where the package is not installed; all of it
is in the run's own files as well.

Does not know: how results were come by.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .gate import PairedRun
from .training_log import WandbMode, start_run, usable_mode

TABLE_COLUMNS = ("site", "regime", "policy", "base", "difference")
_BLOCK_BYTES = 1 << 20


@contextmanager
def results_run(
    directory: Path, mode: WandbMode, config: Mapping[str, Any], *, kind: str
) -> Iterator[Any]:
    """Yield a W&B run for results, or None where there is to be none.

    Raises:
        MissingExtraError: an online run is wanted, and the package wandb is not installed.
    """
    mode = usable_mode(mode)
    if mode is WandbMode.DISABLED:
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    run = start_run(directory, mode, config, job_type=kind)
    try:
        yield run
    finally:
        run.finish()


def table_rows(runs: Sequence[PairedRun]) -> list[tuple[str, str, float, float, float]]:
    """Return goodput shares as rows of `TABLE_COLUMNS`: each workload whole, then by regime."""
    rows = []
    for run in runs:
        rows.append((run.site, "all", run.candidate, run.base, run.candidate - run.base))
        rows += [
            (run.site, kind, one, other, one - other) for kind, (one, other) in run.regimes.items()
        ]
    return rows


def log_differences(run: Any, name: str, runs: Sequence[PairedRun]) -> None:
    """Log a table of paired differences; nothing where there is no run."""
    if run is None:
        return
    import wandb

    table = wandb.Table(columns=list(TABLE_COLUMNS), data=[list(row) for row in table_rows(runs)])
    run.log({name: table})


def log_files(run: Any, name: str, kind: str, path: Path) -> None:
    """Log a file or a directory as an artefact; nothing where there is no run."""
    if run is None:
        return
    import wandb

    artefact = wandb.Artifact(name, type=kind)
    if path.is_dir():
        artefact.add_dir(str(path))
    else:
        artefact.add_file(str(path))
    run.log_artifact(artefact)


def trace_manifest(traces: Path | None) -> list[dict[str, Any]]:
    """Return name, size and hash of a file, or of all below a directory, in order of name."""
    if traces is None:
        return []
    is_one = traces.is_file()
    files = [traces] if is_one else sorted(p for p in traces.rglob("*") if p.is_file())
    return [
        {
            "name": path.name if is_one else str(path.relative_to(traces)),
            "size_bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in files
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

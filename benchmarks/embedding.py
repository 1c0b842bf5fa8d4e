"""What survives when a fleet's state becomes at most 512 numbers, by linear probes.

Runs of a fleet of 4,096 GPUs are recorded in the simulator (or read from --directory, if they were
recorded there before). A ridge regression then foretells the share of the next window's requests
that break their limits, from the raw state (all of it end to end; its summaries over nodes of each
kind; the features of fleet and tenants alone; the late share of this window alone) and from the
embedding by untrained encoders and, with --encoder, by a pre-trained one. It is fitted on the first
two thirds of some runs, and tested on runs of unseen seeds and a later part of the trace, and on
what came later in the runs of the fit. Intervals are bootstraps over runs. The same regression then
reads every summary of the raw state off the embedding: what it keeps, and what it drops.

Run: python benchmarks/embedding.py [--json] [--encoder DIR] [--directory DIR] [--picture FILE]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from embedding_probe.runs import Runs
from embedding_probe.survival import draw_survival, survival
from embedding_probe.vectors import Recorded, joined, record
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from trimtab.env.state.feature import FloatArray
from trimtab.graph_encoder.attention_encoder import AttentionEncoder
from trimtab.graph_encoder.checkpoint import load_encoder
from trimtab.graph_encoder.linear_probe import (
    LinearProbe,
    auc_score,
    bootstrap_interval,
    r2_score,
)

NUM_UNTRAINED = 3
PRETRAINED = "encoder, pre-trained"
LARGE_SHARE = 0.05
FULL_RAW = ("raw state, end to end", "raw state, summaries")
RAW = (*FULL_RAW, "raw state, fleet and tenants only", "late share of this window only")
NUM_SHOWN = 15

Figures = dict[str, float | int | list[float]]


def all_vectors(recorded: Recorded) -> dict[str, NDArray[np.floating]]:
    """Return the vectors that are compared, by name; the raw ones first."""
    raw = (recorded.flat, recorded.summaries, recorded.requests_only, recorded.late_only)
    return {**dict(zip(RAW, raw, strict=True)), **recorded.embeddings}


def probe_all(recorded: Recorded) -> dict[str, dict[str, object]]:
    """Return what each vector foretells on both tests."""
    targets = np.column_stack([recorded.fleet, recorded.tenants])
    median = float(np.median(recorded.fleet[recorded.is_fit]))
    foretold, sizes = {}, {}
    for name, vectors in track(all_vectors(recorded).items(), "probing", transient=True):
        probe = LinearProbe(vectors, recorded.run, is_fit=recorded.is_fit)
        foretold[name], sizes[name] = probe.predict(targets), probe.num_inputs
    tests = {"unseen runs": recorded.is_unseen, "later windows": recorded.is_later}
    return {
        name: {
            "numbers": vectors.shape[1],
            "numbers_that_vary": sizes[name],
            **{
                test: scores(foretold, name, targets, recorded.run, is_test, median)
                for test, is_test in tests.items()
            },
        }
        for name, vectors in all_vectors(recorded).items()
    }


def scores(
    foretold: dict[str, FloatArray],
    name: str,
    targets: FloatArray,
    run: NDArray[np.int64],
    is_test: NDArray[np.bool_],
    median: float,
) -> Figures:
    """Return R2 and AUC of one vector on one test, and its R2 over that of the best raw ones.

    Of the two of the full raw state (`r2_of_full_raw`), and of all raw ones (`r2_of_best_raw`).
    """
    actual = targets[is_test]
    read = {key: value[is_test] for key, value in foretold.items()}

    def r2(key: str, rows: NDArray[np.int64]) -> float:
        return r2_score(read[key][rows, 0], actual[rows, 0])

    every = np.arange(len(actual))
    found: Figures = {
        "r2": r2(name, every),
        "r2_interval": list(bootstrap_interval(run[is_test], lambda rows: r2(name, rows))),
    }
    for reference, names in (("r2_of_full_raw", FULL_RAW), ("r2_of_best_raw", RAW)):
        best = max(names, key=lambda key: r2(key, every))
        found[reference] = r2(name, every) / r2(best, every)
        found[f"{reference}_interval"] = list(
            bootstrap_interval(
                run[is_test], lambda rows, best=best: r2(name, rows) / r2(best, rows)
            )
        )
    return found | {
        "auc_above_median": auc_score(read[name][:, 0], actual[:, 0] > median),
        "auc_above_5_percent": auc_score(read[name][:, 0], actual[:, 0] > LARGE_SHARE),
        "tenant_r2": [r2_score(read[name][:, k], actual[:, k]) for k in range(1, actual.shape[1])],
    }


def print_probes(console: Console, probes: dict[str, dict[str, object]]) -> None:
    for test in ("unseen runs", "later windows"):
        table = Table(title=f"Violations of the next window, tested on {test}")
        for column in ("vector", "numbers", "R2", "95 %", "of full raw", "95 %", "of best raw"):
            table.add_column(column)
        for column in ("AUC > median", "AUC > 5 %", "R2 by tenant"):
            table.add_column(column)
        for name, figures in probes.items():
            of = figures[test]
            assert isinstance(of, dict), of
            table.add_row(
                name,
                f"{figures['numbers']:,}",
                f"{of['r2']:.3f}",
                "{:.3f} to {:.3f}".format(*of["r2_interval"]),
                f"{of['r2_of_full_raw']:.3f}",
                "{:.3f} to {:.3f}".format(*of["r2_of_full_raw_interval"]),
                f"{of['r2_of_best_raw']:.3f}",
                f"{of['auc_above_median']:.3f}",
                f"{of['auc_above_5_percent']:.3f}",
                ", ".join(f"{one:.3f}" for one in of["tenant_r2"]),
            )
        console.print(table)


def print_survival(console: Console, kept: dict[str, dict[str, float]]) -> None:
    for name, by_summary in kept.items():
        r2 = np.array(list(by_summary.values()))
        console.print(
            f"{name}: of {len(r2)} summaries that vary, {np.mean(r2 >= 0.9):.0%} are kept with "
            f"R2 0.9 and more, {np.mean(r2 >= 0.5):.0%} with 0.5; median {np.median(r2):.3f}"
        )
    last = list(kept.values())[-1]
    ordered = sorted(last, key=lambda key: -last[key])
    table = Table(title=f"Best and worst kept by: {list(kept)[-1]}")
    for column in ("best", "R2", "worst", "R2"):
        table.add_column(column)
    for best, worst in zip(ordered[:NUM_SHOWN], ordered[: -NUM_SHOWN - 1 : -1], strict=True):
        table.add_row(best, f"{last[best]:.3f}", worst, f"{last[worst]:.3f}")
    console.print(table)


def make_encoders(path: Path | None) -> dict[str, AttentionEncoder]:
    """Return untrained encoders and, last, the trained one if there is one."""
    encoders = {}
    for seed in range(NUM_UNTRAINED):
        torch.manual_seed(seed)
        encoders[f"encoder, untrained, seed {seed}"] = AttentionEncoder()
    return encoders if path is None else {**encoders, PRETRAINED: load_encoder(path)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--encoder", type=Path, help="a directory of `trimtab pretrain`")
    parser.add_argument("--directory", type=Path, help="keep the recorded runs here")
    parser.add_argument("--picture", type=Path, help="draw what survives into this PNG")
    parser.add_argument("--servers", type=int, default=512, help="servers of 8 GPUs")
    parser.add_argument("--fit-runs", type=int, default=30)
    parser.add_argument("--test-runs", type=int, default=10)
    parser.add_argument("--windows", type=int, default=30, help="states of a run")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    runs = Runs(
        num_servers=arguments.servers,
        num_fit_runs=arguments.fit_runs,
        num_test_runs=arguments.test_runs,
        num_windows=arguments.windows,
    )
    encoders = make_encoders(arguments.encoder)
    parts = track(
        record(runs, encoders, arguments.directory), "recording", len(runs.seeds), transient=True
    )
    recorded = joined([part for _, part in parts])
    console = Console(highlight=False, width=160)
    states = {
        "fit": int(recorded.is_fit.sum()),
        "unseen runs": int(recorded.is_unseen.sum()),
        "later windows": int(recorded.is_later.sum()),
    }
    share = recorded.fleet
    console.print(
        f"{runs.num_gpus} GPUs, states {states}; violations of the next window: mean "
        f"{share.mean():.3f}, median of those to fit on {np.median(share[recorded.is_fit]):.3f}, "
        f"above 5 % in {np.mean(share > LARGE_SHARE):.0%}"
    )
    probes = probe_all(recorded)
    print_probes(console, probes)
    kept = survival(recorded)
    print_survival(console, kept)
    if arguments.picture:
        draw_survival(kept, arguments.picture)
    if arguments.json:
        figures = {"gpus": runs.num_gpus, "states": states, "probes": probes, "survival": kept}
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

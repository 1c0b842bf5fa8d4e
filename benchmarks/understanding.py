"""What understanding a request costs, and how right it is.

    python benchmarks/understanding.py [--json] [--shared DIR] [--prompts FILE] [--tokenizer FILE]

Times are of one core. Answer lengths are predicted on the bundled traces, on a drifting stream, and
with `--shared` on recordings that are not shipped. `--prompts` (JSON lines of messages, in, out)
tells what clusters add; `--tokenizer` (a tokenizer.json) how far token estimates are off.

Does not know: the gateway; `gateway.py` measures the whole path.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from understanding_path.length_scores import score
from understanding_path.length_streams import streams
from understanding_path.prompt_scores import cluster_gain, token_errors
from understanding_path.read_times import read_times_us

# us that the request budget leaves for each
AIMS_US = {
    "read_2_kb": 10.0,
    "read_32_kb": 35.0,
    "predict_length": 3.0,
    "learn_length": 5.0,
    "cluster_2_kb": 5.0,
}


def length_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores of all streams as a Markdown table."""
    lines = [
        "| stream | requests | 90 % quantile covers (worst tenant) | interval covers | "
        "loss at 90 %: ours / all lengths / exp. mean | loss at 50 %: ours / all / exp. mean |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, s in scores.items():
        losses = [
            " / ".join(
                f"{s[f'{level}_pinball{rival}']:.1f}"
                for rival in ("", "_all_lengths", "_exponential_mean")
            )
            for level in ("p90", "p50")
        ]
        lines.append(
            f"| {name} | {s['requests']:,.0f} | {100 * s['p90_coverage']:.1f} % "
            f"({100 * s['p90_coverage_worst_tenant']:.1f} %) | "
            f"{100 * s['interval_90_coverage']:.1f} % | {losses[0]} | {losses[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--shared", type=Path, help="folder with traces/")
    parser.add_argument("--prompts", type=Path, help="JSON lines: messages, in, out")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json")
    options = parser.parse_args()
    times = read_times_us()
    for name, time_us in times.items():
        aim = f" (aim {AIMS_US[name]:.0f})" if name in AIMS_US else ""
        print(f"{name:24s} {time_us:7.2f} us{aim}")
    scores = {name: score(make()) for name, make in streams(options.shared)}
    print(length_table(scores))
    found: dict[str, object] = {"times_us": times, "aims_us": AIMS_US, "lengths": scores}
    if options.prompts is not None:
        found["clusters"] = cluster_gain(options.prompts)
        print(found["clusters"])
    if options.tokenizer is not None:
        found["tokens"] = token_errors(options.tokenizer, options.prompts)
        print(found["tokens"])
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

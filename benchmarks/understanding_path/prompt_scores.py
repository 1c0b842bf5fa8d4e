"""How well prompts are understood: their tokens estimated, and what clusters add.

Both need text that is not shipped: prompts with their answers' lengths, and a tokenizer.

Does not know: where the files come from.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from understanding_path.length_scores import score
from understanding_path.length_streams import Answer

from trimtab.agents.prompt_clusters import cluster_in, new_clusters
from trimtab.runtime.understanding.prompt_kernel import NUM_TRAITS, count_traits
from trimtab.runtime.understanding.token_estimate import (
    CHAT,
    learn_tokens_in,
    new_estimates,
    tokens_of,
)
from trimtab.runtime.understanding.tokenized_prompts import TokenizerFile

# Prompts at the beginning that no error counts.
_WARM_UP = 200


def cluster_gain(path: Path) -> dict[str, float]:
    """Return losses with and without the cluster, of prompts of one tenant in random order.

    Each line of the file: `messages`, `in` and `out` (tokens).
    """
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.open(encoding="utf-8")]
    clusters, answers = new_clusters(), []
    for number, row in enumerate(rows):
        raw = np.frombuffer(json.dumps(row["messages"]).encode(), np.uint8)
        answers.append(
            Answer(
                arrived_at_s=0.5 * number,
                input_tokens=row["in"],
                output_tokens=max(1, row["out"]),
                cluster=1 + int(cluster_in(clusters, raw)),
            )
        )
    ours, without = score(answers), score(answers, frozenset({"cluster"}))
    names = ("p50_pinball", "p90_pinball", "p90_coverage")
    return {
        "prompts": len(rows),
        **{name: ours[name] for name in names},
        **{f"{name}_without_cluster": without[name] for name in names},
        "p90_pinball_all_lengths": ours["p90_pinball_all_lengths"],
        "p50_pinball_all_lengths": ours["p50_pinball_all_lengths"],
    }


def texts_of_repository(num: int = 1500, seed: int = 0) -> list[str]:
    """Return pieces of this repository's documents, sources and data files, of any length."""
    root = Path(__file__).parents[2]
    files = [*root.glob("docs/*.md"), *root.glob("*/*.py"), *root.glob("env/data/**/*.yaml")]
    texts = [file.read_text(encoding="utf-8") for file in sorted(files)]
    rng = np.random.default_rng(seed)
    pieces = []
    while len(pieces) < num:
        text = texts[rng.integers(len(texts))]
        size = int(np.exp(rng.uniform(np.log(100), np.log(20_000))))
        start = int(rng.integers(max(1, len(text) - size)))
        pieces.append(text[start : start + size])
    return pieces


def token_errors(tokenizer: Path, prompts: Path | None = None) -> dict[str, float]:
    """Return relative errors of estimates learned online, and those of simple ratios."""
    exact = TokenizerFile(tokenizer)
    texts = texts_of_repository()
    if prompts is not None:
        rows = [json.loads(line) for line in prompts.open(encoding="utf-8")]
        texts += ["\n".join(m["content"] for m in row["messages"]) for row in rows]
        np.random.default_rng(1).shuffle(texts)
    states = new_estimates(1)
    traits, ratio = np.empty(NUM_TRAITS), 4.0
    errors: dict[str, list[float]] = {"learned": [], "one_ratio": [], "bytes_by_4": []}
    for text in texts:
        raw = json.dumps([{"role": "user", "content": text}], ensure_ascii=False).encode()
        tokens = len(exact.encode(text)) + 6  # what a template adds
        count_traits(np.frombuffer(raw, np.uint8), traits)
        found = (tokens_of(states, CHAT, traits), len(raw) / ratio, len(raw) / 4.0)
        for kind, estimate in zip(errors, found, strict=True):
            errors[kind].append(abs(estimate - tokens) / tokens)
        learn_tokens_in(states, CHAT, traits, float(tokens))
        ratio += 0.02 * (len(raw) / tokens - ratio)
    scores: dict[str, float] = {"prompts": len(texts)}
    for kind, values in errors.items():
        scores[f"{kind}_median_frac"] = float(np.median(values[_WARM_UP:]))
        scores[f"{kind}_p95_frac"] = float(np.quantile(values[_WARM_UP:], 0.95))
    scores["first_20_median_frac"] = float(np.median(errors["learned"][:20]))
    return scores

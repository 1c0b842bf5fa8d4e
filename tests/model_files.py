"""Model files and clusters for tests of model profiles."""

from typing import Any

import yaml

SIZES: dict[str, Any] = {
    "name": "own",
    "num_layers": 32,
    "hidden_size": 4096,
    "num_heads": 32,
    "num_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "has_tied_embeddings": False,
    "total_params": 8_030_261_248,
}
"""Those of Llama 3 8B, under a name of one's own."""

KV_TOKEN_BYTES = 131_072
"""What they imply: 32 layers x 8 heads x 128 values x 2 x 2 bytes."""


def make_text(without: tuple[str, ...] = (), **changes: Any) -> str:
    """A model file, with other or further keys."""
    content = {key: value for key, value in SIZES.items() if key not in without}
    return yaml.safe_dump({**content, **changes}, sort_keys=False)


CLUSTER = """
name: made
servers:
  - {{name: s0, gpu: H100-80G, num_gpus: 8, zone: z0}}
replicas:
  - {{server: s0, model: {model}{settings}}}
"""


def make_cluster_text(model: str, **settings: Any) -> str:
    """A cluster file with one replica."""
    text = "".join(f", {key}: {value}" for key, value in settings.items())
    return CLUSTER.format(model=model, settings=text)

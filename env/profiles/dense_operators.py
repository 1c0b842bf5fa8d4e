"""Reader of Vidur's operator tables: all operators of a layer but attention, by tokens.

They check the layers' part of a calibration against other measurements than it was fitted on.

Does not know: attention, transfers, or how a calibration is fitted.
Source: Vidur, `data/profiling/compute`; layout in `profiles/README.md` of the shared data.
"""

from pathlib import Path

import numpy as np
import pyarrow.csv

from ..hardware import Precision
from ..model_shape import ModelProfile
from .samples import IterationSamples

# folder of each GPU and model of the catalogues
SYSTEMS = {"A100-80G": "a100", "H100-80G": "h100"}
FOLDERS = {
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
}
_OPERATORS = (
    "input_layernorm",
    "attn_pre_proj",
    "attn_rope",
    "attn_post_proj",
    "post_attention_layernorm",
    "mlp_up_proj",
    "mlp_act",
    "mlp_down_proj",
    "add",
)
_MAX_TOKENS = 8192


def dense_operator_samples(
    profiles: Path, gpu_name: str, model: ModelProfile, tensor_parallel: int = 1
) -> IterationSamples | None:
    """The layers of a model without attention, as prefill of so many tokens; None if not measured.

    Only the first of `parts_s` is known; `times_s` is the same.
    """
    folder = profiles / "vidur" / "compute" / SYSTEMS.get(gpu_name, "none")
    path = folder / FOLDERS.get(model.name, "none") / "mlp.csv.gz"
    if not path.is_file():
        return None
    table = pyarrow.csv.read_csv(path)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    tokens = columns["num_tokens"].astype(np.float64)
    rows = columns["num_tensor_parallel_workers"] == tensor_parallel
    rows &= tokens <= _MAX_TOKENS
    if not rows.any():
        return None
    layer_ms = sum(columns[f"time_stats.{name}.median"][rows] for name in _OPERATORS)
    times_s = 1e-3 * model.num_layers * np.asarray(layer_ms)
    batches = np.zeros((times_s.size, 6))
    batches[:, 0] = tokens[rows]
    parts_s = np.full((times_s.size, 4), np.nan)
    parts_s[:, 0] = times_s
    return IterationSamples(
        model=model,
        tensor_parallel=tensor_parallel,
        precision=Precision.BF16,
        batches=batches,
        times_s=times_s,
        parts_s=parts_s,
        has_communication=False,
    )

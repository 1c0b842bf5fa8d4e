"""A model's figures as lines and as a table.

Does not know: how figures are computed.
"""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from ..env.model_figures import model_figures
from ..env.model_shape import ModelProfile


def figure_lines(profile: ModelProfile) -> Iterator[str]:
    """Yield what a model comes to, a figure a line."""
    figures = model_figures(profile)
    total, active = profile.total_params / 1e9, figures.active_params / 1e9
    used = f", {active:.2f} B of them for each token" if profile.is_moe else ""
    yield f"parameters: {total:.2f} B{used}"
    weights = ", ".join(f"{gb:.1f} GB in {name}" for name, gb in figures.weight_gb.items())
    yield f"weights: {weights}"
    curve = ", ".join(f"{mb:,.0f} MB at {_k(n)}" for n, mb in figures.kv_mb_by_length.items())
    yield f"KV: {figures.kv_bytes_per_token:,} bytes a token in pages; a sequence keeps {curve}"
    attention = ", ".join(
        f"{flops / 1e9:.2f} at {_k(n)}" for n, flops in figures.attention_flops_by_length.items()
    )
    yield f"GFLOPs a token: {figures.flops_per_token / 1e9:.2f}, and attention {attention}"
    if profile.activation_bytes_per_token:
        yield f"activations: {profile.activation_bytes_per_token:,} bytes a token of a batch"
    if profile.recommended_batch is not None:
        batch = profile.recommended_batch
        yield f"recommended batch: {batch.min} to {batch.max} sequences"
    for label, text in (("source", profile.source), ("licence", profile.licence)):
        if text:
            yield f"{label}: {text}"


def fit_table(profile: ModelProfile) -> Table:
    """Return the fewest GPUs of each kind that hold the model, by precision."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("fits on")
    table.add_column("in")
    table.add_column("GPUs", justify="right")
    table.add_column("room for KV, tokens", justify="right")
    for fit in model_figures(profile).fits:
        table.add_row(fit.gpu, str(fit.precision), str(fit.num_gpus), f"{fit.kv_tokens:,}")
    return table


def _k(tokens: int) -> str:
    return f"{tokens // 1024}k"

"""The model catalogue: bytes and FLOPs of an LLM as functions of its published shape.

Does not know: GPUs, latency, or how a replica is placed. Quantised profiles count every weight
at the precision asked for, although engines leave embeddings in 16 bits (1-7 % of the bytes).
Source: each model's `config.json` and safetensors index on the Hugging Face hub.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..traces.errors import ConfigError
from .hardware import Precision, unknown_name_message


class AttentionKind(StrEnum):
    """How a model's attention stores and reads its context."""

    FULL = "full"  # every query head has its own KV head
    GQA = "gqa"  # groups of query heads share a KV head
    MLA = "mla"  # a compressed latent stands for keys and values
    SLIDING = "sliding"  # only the last `window_tokens` are attended to


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """Shape of one model, enough to count bytes and FLOPs."""

    name: str
    """Catalogue name, as used in cluster files."""
    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Query heads a layer."""
    num_kv_heads: int
    """Key and value heads a layer."""
    head_dim: int
    """Values a head."""
    vocab_size: int
    """Rows of the embedding table."""
    has_tied_embeddings: bool
    """Input table and output head are the same weights."""
    total_params: int
    """All weights."""
    expert_params: int = 0
    """All experts of all layers together; 0 for a dense model."""
    num_experts: int = 0
    """Experts a layer; 0 for a dense model."""
    experts_per_token: int = 0
    """Experts that one token uses; 0 for a dense model."""
    attention: AttentionKind = AttentionKind.GQA
    """How context is stored and read."""
    window_tokens: int | None = None
    """Attention window; only with sliding attention."""

    def __post_init__(self) -> None:
        """Refuse a shape that contradicts itself."""
        if self.num_heads % self.num_kv_heads:
            heads = (self.num_heads, self.num_kv_heads)
            msg = f"model {self.name!r}: num_heads must be a multiple of num_kv_heads, got {heads}"
            raise ValueError(msg)
        if (self.expert_params > 0) != (0 < self.experts_per_token < self.num_experts):
            experts = (self.expert_params, self.num_experts, self.experts_per_token)
            msg = (
                f"model {self.name!r}: expert_params, num_experts, experts_per_token must be all 0 "
                f"or 0 < experts_per_token < num_experts, got {experts}"
            )
            raise ValueError(msg)
        if (self.window_tokens is not None) != (self.attention is AttentionKind.SLIDING):
            msg = (
                f"model {self.name!r}: window_tokens belongs to sliding attention, got "
                f"{self.window_tokens} with {self.attention.value!r}"
            )
            raise ValueError(msg)

    @property
    def is_moe(self) -> bool:
        """Whether the model has routed experts."""
        return self.expert_params > 0

    @property
    def expert_use_frac(self) -> float:
        """Share of the expert weights that one token uses; 0 for a dense model."""
        return self.experts_per_token / self.num_experts if self.is_moe else 0.0

    @property
    def active_params(self) -> int:
        """Weights that one token uses, embedding table and output head included."""
        idle_params = self.expert_params * (1.0 - self.expert_use_frac)
        return self.total_params - round(idle_params)

    @property
    def embedding_params(self) -> int:
        """Weights of one embedding table."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_params(self) -> int:
        """Weights of the layers that one token is multiplied with: no table, no output head."""
        num_tables = 1 if self.has_tied_embeddings else 2
        return self.active_params - num_tables * self.embedding_params

    def weight_bytes(self, precision: Precision) -> int:
        """Bytes that the weights take in memory, over all GPUs of a replica."""
        return self.total_params * precision.bytes_per_value

    def expert_bytes(self, precision: Precision) -> int:
        """Bytes of all experts together; 0 for a dense model."""
        return self.expert_params * precision.bytes_per_value

    def dense_read_bytes(self, precision: Precision) -> int:
        """Bytes of non-expert weights that every iteration reads, output head included.

        An input table of its own is looked up by row and not read as a whole.
        """
        lookup_params = 0 if self.has_tied_embeddings else self.embedding_params
        read_params = self.total_params - self.expert_params - lookup_params
        return read_params * precision.bytes_per_value

    def kv_bytes_per_token(self, precision: Precision, *, tensor_parallel: int = 1) -> int:
        """Bytes that one token of context takes over all GPUs of a replica.

        A group wider than `num_kv_heads` keeps one KV head on each GPU, copies included.

        Raises: `ConfigError` for MLA, whose latent size is not modelled.
        """
        if self.attention is AttentionKind.MLA:
            msg = (
                f"model {self.name!r}: KV size of {self.attention.value!r} attention is not "
                "modelled; use a model with full, gqa or sliding attention"
            )
            raise ConfigError(msg)
        stored_heads = max(self.num_kv_heads, tensor_parallel)
        return 2 * self.num_layers * stored_heads * self.head_dim * precision.bytes_per_value

    def matmul_flops_per_token(self) -> float:
        """FLOPs of one token in the layers' matrix multiplications, attention excluded.

        The output head is left out: engines apply it to a sequence's last token only.
        """
        return 2.0 * self.layer_params

    def attention_flops_per_pair(self) -> float:
        """FLOPs of one (token, attended token) pair: QK and PV, 2 FLOPs an element each."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim

    def attention_flops(self, num_tokens: int, start_tokens: int = 0) -> float:
        """FLOPs of causal attention of `num_tokens` new tokens after `start_tokens` cached ones.

        Every token attends to itself and to those before it, at most `window_tokens` of them.
        """
        window_tokens = self.window_tokens or start_tokens + num_tokens
        num_growing = min(max(window_tokens - start_tokens, 0), num_tokens)
        pairs = num_growing * start_tokens + num_growing * (num_growing + 1) / 2
        pairs += (num_tokens - num_growing) * window_tokens
        return self.attention_flops_per_pair() * pairs

    def can_shard(self, tensor_parallel: int) -> bool:
        """Whether the heads divide evenly over this many GPUs."""
        wide, narrow = (
            max(self.num_kv_heads, tensor_parallel),
            min(self.num_kv_heads, tensor_parallel),
        )
        return tensor_parallel >= 1 and self.num_heads % tensor_parallel == 0 and wide % narrow == 0


# Shapes: config.json of the repository named above each entry. Parameter counts: its
# safetensors index; expert_params = layers x experts x 3 x hidden x expert width.
_PROFILES = (
    # meta-llama/Llama-3.2-1B
    ModelProfile(
        name="llama-3.2-1b",
        num_layers=16,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=128_256,
        has_tied_embeddings=True,
        total_params=1_235_814_400,
    ),
    # meta-llama/Meta-Llama-3-8B (3.1 has the same shape)
    ModelProfile(
        name="llama-3-8b",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        has_tied_embeddings=False,
        total_params=8_030_261_248,
    ),
    # meta-llama/Meta-Llama-3-70B (3.1 and 3.3 have the same shape)
    ModelProfile(
        name="llama-3-70b",
        num_layers=80,
        hidden_size=8192,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128_256,
        has_tied_embeddings=False,
        total_params=70_553_706_496,
    ),
    # Qwen/Qwen2.5-32B
    ModelProfile(
        name="qwen-2.5-32b",
        num_layers=64,
        hidden_size=5120,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=152_064,
        has_tied_embeddings=False,
        total_params=32_763_876_352,
    ),
    # mistralai/Mixtral-8x7B-v0.1, expert width 14,336
    ModelProfile(
        name="mixtral-8x7b",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=32_000,
        has_tied_embeddings=False,
        total_params=46_702_792_704,
        expert_params=45_097_156_608,
        num_experts=8,
        experts_per_token=2,
    ),
    # Qwen/Qwen3-30B-A3B, expert width 768
    ModelProfile(
        name="qwen3-30b-a3b",
        num_layers=48,
        hidden_size=2048,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=151_936,
        has_tied_embeddings=False,
        total_params=30_532_122_624,
        expert_params=28_991_029_248,
        num_experts=128,
        experts_per_token=8,
    ),
)

MODELS: Mapping[str, ModelProfile] = {profile.name: profile for profile in _PROFILES}


def model(name: str) -> ModelProfile:
    """The catalogue's model of this name.

    Raises: `ConfigError` for an unknown name.
    """
    if name not in MODELS:
        raise ConfigError(unknown_name_message("model", name, MODELS))
    return MODELS[name]

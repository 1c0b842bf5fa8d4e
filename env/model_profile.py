"""The model catalogue: models by their keys, several versions of one beside each other.

A key stands for the same model as long as the process runs: `name`, or `name@version` where a
model has versions. What a bare name of such a model means is settled when a file is read, so that
no fleet changes under its feet.

Does not know: what a shape means for time (`roofline.py`); `model_file.py` reads more models from
YAML files.
Source: each model's `config.json` and safetensors index on the Hugging Face hub.
"""

from ..traces.errors import ConfigError
from .hardware import unknown_name_message
from .model_shape import AttentionKind, LatentShape, ModelProfile
from .model_version import split_key, version_order

__all__ = [
    "MODELS",
    "SHIPPED_MODELS",
    "AttentionKind",
    "LatentShape",
    "ModelProfile",
    "add_model",
    "known_versions",
    "model",
]

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
    # Qwen/Qwen3-235B-A22B, expert width 1,536
    ModelProfile(
        name="qwen3-235b-a22b",
        num_layers=94,
        hidden_size=4096,
        num_heads=64,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=151_936,
        has_tied_embeddings=False,
        total_params=235_093_634_560,
        expert_params=227_096_395_776,
        num_experts=128,
        experts_per_token=8,
    ),
    # MiniMaxAI/MiniMax-M2 (M2.5 has the same shape), expert width 1,536; parameters by the shape
    ModelProfile(
        name="minimax-m2",
        num_layers=62,
        hidden_size=3072,
        num_heads=48,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=200_064,
        has_tied_embeddings=False,
        total_params=228_688_920_576,
        expert_params=224_680_476_672,
        num_experts=256,
        experts_per_token=8,
    ),
    # Qwen/Qwen3-8B
    ModelProfile(
        name="qwen3-8b",
        num_layers=36,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        has_tied_embeddings=False,
        total_params=8_190_735_360,
    ),
    # Qwen/Qwen3-14B
    ModelProfile(
        name="qwen3-14b",
        num_layers=40,
        hidden_size=5120,
        num_heads=40,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        has_tied_embeddings=False,
        total_params=14_768_307_200,
    ),
    # Qwen/Qwen3-32B
    ModelProfile(
        name="qwen3-32b",
        num_layers=64,
        hidden_size=5120,
        num_heads=64,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151_936,
        has_tied_embeddings=False,
        total_params=32_762_123_264,
    ),
    # google/gemma-3-27b-it, language model alone: 5 windowed layers of 1,024 tokens to 1 full one
    ModelProfile(
        name="gemma-3-27b",
        num_layers=62,
        hidden_size=5376,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        vocab_size=262_208,
        has_tied_embeddings=True,
        total_params=27_009_346_304,
        attention=AttentionKind.SLIDING,
        window_tokens=1024,
        num_window_layers=52,
    ),
    # openai/gpt-oss-20b, expert width 2,880, every second layer windowed; counted at the precision
    # asked for, although its experts are published in 4 bits
    ModelProfile(
        name="gpt-oss-20b",
        num_layers=24,
        hidden_size=2880,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        vocab_size=201_088,
        has_tied_embeddings=False,
        total_params=20_914_757_184,
        expert_params=19_110_297_600,
        num_experts=32,
        experts_per_token=4,
        attention=AttentionKind.SLIDING,
        window_tokens=128,
        num_window_layers=12,
    ),
    # deepseek-ai/DeepSeek-V3 without its multi-token head: 3 dense layers of width 18,432, then 58
    # with a shared and 256 routed experts of width 2,048
    ModelProfile(
        name="deepseek-v3",
        num_layers=61,
        hidden_size=7168,
        num_heads=128,
        num_kv_heads=128,
        head_dim=128,
        vocab_size=129_280,
        has_tied_embeddings=False,
        total_params=671_026_419_200,
        expert_params=653_908_770_816,
        num_experts=256,
        experts_per_token=8,
        num_expert_layers=58,
        attention=AttentionKind.MLA,
        latent=LatentShape(query_rank=1536, kv_rank=512, rope_dim=64, nope_dim=128, value_dim=128),
    ),
)

MODELS: dict[str, ModelProfile] = {profile.key: profile for profile in _PROFILES}
"""By key; `add_model` adds to it."""

SHIPPED_MODELS = frozenset(MODELS)
"""Names that come with the package; their bare name always means the sizes above."""


def model(name: str) -> ModelProfile:
    """The catalogue's model of this key.

    Raises: `ConfigError` for an unknown one.
    """
    if name not in MODELS:
        raise ConfigError(unknown_name_message("model", name, MODELS))
    return MODELS[name]


def add_model(profile: ModelProfile, source: str) -> ModelProfile:
    """Add a model under its key; the same model again changes nothing.

    Raises: `ConfigError` when the catalogue has other sizes under this key.
    """
    known = MODELS.setdefault(profile.key, profile)
    if known != profile:
        other = "version" if profile.version else "name"
        msg = (
            f"{source} names model {profile.key!r}, which the catalogue has with other sizes; "
            f"choose another {other}"
        )
        raise ConfigError(msg)
    return known


def known_versions(name: str) -> list[str]:
    """Versions of a model that the catalogue has, the oldest first."""
    keys = (split_key(key) for key in list(MODELS))
    found = [version for own, version in keys if own == name and version is not None]
    return sorted(found, key=version_order)

"""A tiny llama with random weights, as a GGUF file: a real model for engines, made in a second.

The same numbers give the same file, byte for byte. Its text is noise; its prefill, decode, KV cache
and slots are those of any llama.

Does not know: engines.
Source: GGUF as the package `gguf` writes it; the layout is that of llama (RMSNorm, SwiGLU, RoPE).
"""

import hashlib
import os
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...traces.errors import MissingExtraError

# Values of one attention head.
HEAD_VALUES = 64
_NUM_SPECIAL = 3
_WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or "
    "one had by word but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them request replica queue token cache prefill "
    "decode batch memory route scale serve model user system assistant answer question"
)
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """Sizes of a tiny llama.

    Raises:
        ValueError: a size is too small, or the width no multiple of a head.
    """

    num_layers: int = 4
    width: int = 256
    """Values of a token between layers; a multiple of 64."""
    seed: int = 1
    context_tokens: int = 8192
    """Longest context that the file allows."""

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            msg = f"num_layers must be at least 1, got {self.num_layers}"
            raise ValueError(msg)
        if self.width < HEAD_VALUES or self.width % HEAD_VALUES:
            msg = f"width must be a multiple of {HEAD_VALUES}, got {self.width}"
            raise ValueError(msg)

    @property
    def name(self) -> str:
        """What the model is called."""
        return f"tiny-{self.num_layers}x{self.width}"

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.width // HEAD_VALUES

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values."""
        return max(1, self.num_heads // 2)

    @property
    def mlp_width(self) -> int:
        """Inner values of the MLP."""
        return max(HEAD_VALUES, self.width * 8 // 3 // HEAD_VALUES * HEAD_VALUES)

    def model_entry(self) -> dict[str, object]:
        """Return what a model file says of it, for simulations."""
        kv_width = self.num_kv_heads * HEAD_VALUES
        per_layer = 2 * self.width * self.width + 2 * self.width * kv_width
        per_layer += 3 * self.width * self.mlp_width + 2 * self.width
        vocab = len(_vocabulary()[0])
        return {
            "name": self.name,
            "source": "random weights, made by Trimtab",
            "num_layers": self.num_layers,
            "hidden_size": self.width,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": HEAD_VALUES,
            "vocab_size": vocab,
            "has_tied_embeddings": False,
            "total_params": self.num_layers * per_layer + 2 * vocab * self.width + self.width,
        }


def _vocabulary() -> tuple[list[str], list[str]]:
    """Return tokens and merges: characters, then whole words built of chained merges."""

    def visible(text: str) -> str:
        # Byte-level BPE writes a space and a line end as these.
        return text.replace(" ", "\u0120").replace("\n", "\u010a")

    characters = string.digits + string.ascii_letters + string.punctuation + " \n"
    tokens, merges = [visible(c) for c in characters], []
    known = set(tokens)
    words = _WORDS.split()
    for word in [f" {word}" for word in words] + words:
        current = visible(word[0])
        for character in word[1:]:
            longer = current + visible(character)
            if longer not in known:
                known.add(longer)
                tokens.append(longer)
                merges.append(f"{current} {visible(character)}")
            current = longer
    return [*tokens, "<|endoftext|>", "<|im_start|>", "<|im_end|>"], merges


def write_tiny_model(model: TinyModel, path: Path) -> str:
    """Write the model's file and return its SHA-256; an older file is replaced as a whole.

    Raises:
        MissingExtraError: the package `gguf` is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        msg = "making a tiny model needs the package gguf; install trimtab[engines]"
        raise MissingExtraError(msg) from error
    tokens, merges = _vocabulary()
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(str(partial), "llama")
    writer.add_name(model.name)
    writer.add_context_length(model.context_tokens)
    writer.add_embedding_length(model.width)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.mlp_width)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_VALUES)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    num_plain = len(tokens) - _NUM_SPECIAL
    kinds = [gguf.TokenType.NORMAL] * num_plain + [gguf.TokenType.CONTROL] * _NUM_SPECIAL
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(num_plain)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_CHAT_TEMPLATE)
    for name, weights in _tensors(model, len(tokens)):
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checksum = hashlib.sha256(partial.read_bytes()).hexdigest()
    partial.replace(path)
    return checksum


def _tensors(model: TinyModel, num_tokens: int) -> list[tuple[str, np.ndarray]]:
    """Return all weights, in one fixed order of drawing."""
    rng = np.random.default_rng(model.seed)

    def drawn(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return np.asarray(values * (scale / np.sqrt(columns)), np.float16)

    width, kv_width, mlp = model.width, model.num_kv_heads * HEAD_VALUES, model.mlp_width
    ones = np.ones(width, np.float32)
    output = drawn(num_tokens, width, 8.0)
    # Nothing speaks for the special tokens, so an answer is about as long as it may be.
    output[-_NUM_SPECIAL:] = 0
    tensors = [("token_embd.weight", drawn(num_tokens, width, 4.0))]
    tensors += [("output.weight", output), ("output_norm.weight", ones)]
    shapes = {
        "attn_q": (width, width), "attn_k": (kv_width, width), "attn_v": (kv_width, width),
        "attn_output": (width, width), "ffn_gate": (mlp, width), "ffn_up": (mlp, width),
        "ffn_down": (width, mlp),
    }  # fmt: skip
    for layer in range(model.num_layers):
        prefix = f"blk.{layer}"
        tensors += [(f"{prefix}.{name}.weight", drawn(*shape)) for name, shape in shapes.items()]
        tensors += [(f"{prefix}.{name}.weight", ones) for name in ("attn_norm", "ffn_norm")]
    return tensors


def tiny_model_file(model: TinyModel, directory: Path) -> Path:
    """Return the model's file in a directory, made if it is not there whole."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{model.name}-seed{model.seed}-{model.context_tokens}.gguf"
    noted = path.with_suffix(".sha256")
    if path.exists() and noted.exists():
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if noted.read_text().strip() == checksum:
            return path
    noted.write_text(write_tiny_model(model, path) + "\n")
    return path

"""llama.cpp servers with a tiny model of random weights, that save their slots to a folder."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

CONTEXT_TOKENS = 1024
NUM_SLOTS = 2
_CHARACTERS = [chr(code) for code in range(33, 127)]
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_model(path: Path, *, num_layers: int = 2, width: int = 128, seed: int = 0) -> None:
    """Write a llama whose vocabulary is the printable characters, one token each."""
    tokens = [*_CHARACTERS, "\u0120", "\u010a", *_SPECIAL]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_block_count(num_layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(width // 64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    normal = [gguf.TokenType.NORMAL] * (len(tokens) - len(_SPECIAL))
    writer.add_token_types([*normal, *[gguf.TokenType.CONTROL] * len(_SPECIAL)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        weights = random.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights)

    add("token_embd", len(tokens), width)
    add("output", len(tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(num_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", width, width)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}", 2 * width, width)
        add(f"blk.{layer}.ffn_down", width, 2 * width)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def serving(model: Path, slot_folder: Path | None) -> Iterator[int]:
    """Serve a model on a free port; yield the port."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel = CONTEXT_TOKENS * NUM_SLOTS, NUM_SLOTS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 4
    parameters.endpoint_metrics = parameters.endpoint_slots = parameters.endpoint_props = True
    parameters.cache_ram_mib, parameters.ui, parameters.warmup = 0, False, False
    if slot_folder is not None:
        parameters.slot_save_path = f"{slot_folder}/"
    server = xllamacpp.Server(parameters)
    try:
        yield port
    finally:
        del server

"""A llama.cpp server on loopback with a tiny model of random weights: real metrics in a second."""

import socket
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

WIDTH = 64
NUM_LAYERS = 1
CONTEXT_TOKENS = 256
_FEED_FORWARD = 128
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_model(path: Path, seed: int = 0) -> None:
    """Write a model whose vocabulary is the printable characters."""
    characters = string.digits + string.ascii_letters + string.punctuation
    tokens = [*characters, "\u0120", "\u010a", *_SPECIAL]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    normal = [gguf.TokenType.NORMAL] * (len(tokens) - len(_SPECIAL))
    writer.add_token_types([*normal, *[gguf.TokenType.CONTROL] * len(_SPECIAL)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    _add_weights(writer, len(tokens), np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: gguf.GGUFWriter, num_tokens: int, random: np.random.Generator) -> None:
    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", matrix(num_tokens, WIDTH))
    writer.add_tensor("output.weight", matrix(num_tokens, WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(NUM_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(WIDTH, WIDTH))
        for name in ("ffn_gate", "ffn_up"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(_FEED_FORWARD, WIDTH))
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", matrix(WIDTH, _FEED_FORWARD))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve a model on a free port; yield the server's address."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx, parameters.n_parallel = CONTEXT_TOKENS, 2
    parameters.hostnames, parameters.port = ["127.0.0.1"], _free_port()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 4
    parameters.endpoint_metrics = True
    parameters.cache_ram_mib, parameters.ui, parameters.warmup = 0, False, False
    server = xllamacpp.Server(parameters)
    try:
        yield server.listening_address
    finally:
        del server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""llama.cpp servers in this process, that save their slots to a folder."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xllamacpp

CONTEXT_TOKENS = 1024
NUM_SLOTS = 2


@contextmanager
def serving(model: Path, slot_folder: Path | None, *, sleep_idle_s: int = -1) -> Iterator[int]:
    """Serve a model on a free port; yield the port."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {"tiny"}
    parameters.n_ctx, parameters.n_parallel = CONTEXT_TOKENS * NUM_SLOTS, NUM_SLOTS
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_threads_http = 4
    parameters.endpoint_metrics = parameters.endpoint_slots = parameters.endpoint_props = True
    parameters.cache_ram_mib, parameters.ui, parameters.warmup = 0, False, False
    parameters.sleep_idle_seconds = sleep_idle_s
    if slot_folder is not None:
        parameters.slot_save_path = f"{slot_folder}/"
    server = xllamacpp.Server(parameters)
    try:
        yield port
    finally:
        del server

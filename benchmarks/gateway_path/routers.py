"""The routers that are measured, and how each is started in front of the mock engines.

Does not know: how they are measured.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

HERE = Path(__file__).parent
MODEL = "mock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One row of the table."""

    name: str
    command: tuple[str, ...]
    port: int
    num_replicas: int = 4


def write_fleet(directory: Path, ports: Sequence[int]) -> Path:
    """Write a live fleet of mock engines, as `trimtab serve` reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    cluster = {
        "name": "mock",
        "servers": [{"name": "s", "gpu": "A100-80G", "num_gpus": len(ports), "zone": "z"}],
        "replicas": [
            {
                "server": "s", "model": "llama-3-8b", "gpus": [number], "max_num_seqs": 256,
                "measured": {"step_ms": 1.0, "token_us": 1.0},
            }
            for number in range(len(ports))
        ],
    }  # fmt: skip
    (directory / "cluster.yaml").write_text(yaml.safe_dump(cluster))
    replicas = [
        {
            "name": f"s/llama-3-8b-{number}", "engine": "vllm", "model": MODEL,
            "url": f"http://127.0.0.1:{port}",
        }
        for number, port in enumerate(ports)
    ]  # fmt: skip
    path = directory / "fleet.yaml"
    path.write_text(yaml.safe_dump({"cluster": "cluster.yaml", "replicas": replicas}))
    return path


def ours(directory: Path, ports: Sequence[int], port: int, *, name: str = "") -> Router:
    """Return our gateway with the full scorer over some engines."""
    fleet = write_fleet(directory / f"fleet-{len(ports)}", ports)
    command = (
        sys.executable, "-m", "trimtab", "serve", "--fleet", str(fleet), "--port", str(port),
        "--admin-port", "0", "--ttft-s", "60", "--tpot-s", "60",
    )  # fmt: skip
    label = name or f"trimtab full scorer, {len(ports)} replicas"
    return Router(name=label, command=command, port=port, num_replicas=len(ports))


def floors(ports: Sequence[int], port: int) -> list[Router]:
    """Return proxies that do nothing else: raw, and a plain aiohttp one."""
    return [
        Router(
            name=f"own {kind} proxy",
            command=(
                sys.executable,
                str(HERE / f"{kind}_proxy.py"),
                str(port + i),
                *map(str, ports),
            ),
            port=port + i,
        )
        for i, kind in enumerate(("raw", "aiohttp"))
    ]


def peers(venv: Path, ports: Sequence[int], port: int) -> list[Router]:
    """Return the routers of others, from a virtual environment of their own."""
    urls = [f"http://127.0.0.1:{each}" for each in ports]
    found = []
    for policy in ("round_robin", "cache_aware"):
        if (venv / "bin/vllm-router").exists():
            found.append(Router(name=f"vllm-router {policy}", port=port, command=(
                str(venv / "bin/vllm-router"), "--host", "127.0.0.1", "--port", str(port),
                "--worker-urls", *urls, "--policy", policy, "--log-level", "warning",
                "--prometheus-port", str(port + 500),
            )))  # fmt: skip
        found.append(Router(name=f"sglang-router {policy}", port=port + 1, command=(
            str(venv / "bin/python"), "-m", "sglang_router.launch_router", "--host", "127.0.0.1",
            "--port", str(port + 1), "--worker-urls", *urls, "--policy", policy,
            "--log-level", "warn", "--prometheus-host", "127.0.0.1",
            "--prometheus-port", str(port + 501),
        )))  # fmt: skip
        if (venv / "bin/smg").exists():
            found.append(Router(name=f"smg {policy}", port=port + 2, command=(
                str(venv / "bin/smg"), "launch", "--host", "127.0.0.1", "--port", str(port + 2),
                "--backend", "sglang", "--worker-urls", *urls, "--policy", policy,
                "--log-level", "warn", "--prometheus-host", "127.0.0.1",
                "--prometheus-port", str(port + 502),
            )))  # fmt: skip
        port += 3
    return found

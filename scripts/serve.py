"""Command `trimtab serve`: an OpenAI-compatible gateway in front of a live fleet.

Does not know: how requests are placed, or what a policy is.

Run: `trimtab fleet up`, then `trimtab serve --fleet runs/fleet/fleet.yaml`.
"""

import asyncio
import logging
import re
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer
import uvloop
from rich.console import Console

from ..agents.generalist import bundle_directory
from ..agents.heuristics import heuristic
from ..runtime.gateway.config import GatewayConfig
from ..runtime.serving.config import ServeConfig
from ..runtime.serving.promotion_rule import parse_promotion_rule
from ..runtime.serving.server import Server
from ..traces.errors import ConfigError

_SPAN = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h)$")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _span_s(text: str) -> float:
    """Return a span such as 90s, 10m or 1h in seconds.

    Raises: `ConfigError` for anything else.
    """
    match = _SPAN.match(text)
    if match is None:
        msg = f"a span must be a number with its unit, such as 90s, 10m or 1h, got '{text}'"
        raise ConfigError(msg)
    return float(match[1]) * _UNITS_S[match[2]]


def serve(
    *,
    fleet: Annotated[Path, typer.Option(help="Live fleet file.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Data port; 0 for any.")] = 8080,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="Admin port, loopback.")] = 8081,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Rules without a policy, and when one is in doubt; else as the rules "
            "say, or analytic-scorer."
        ),
    ] = None,
    knobs: Annotated[
        Path | None, typer.Option(help="Tuned knobs in place of the scheduler's (JSON).")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Policy that steers, or generalist: the one that ships.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Rules: tenants, breakers, limits.")] = None,
    keys: Annotated[Path | None, typer.Option(help="API keys; without, everybody may ask.")] = None,
    record: Annotated[Path | None, typer.Option(help="Record requests as a trace here.")] = None,
    decisions: Annotated[Path | None, typer.Option(help="Log decisions here.")] = None,
    spans: Annotated[
        str | None, typer.Option(help="OTLP collector for spans: http://host:4318/v1/traces.")
    ] = None,
    decision_every: Annotated[int, typer.Option(min=1, help="Log every n-th in full.")] = 16,
    shadow_first: Annotated[
        str | None, typer.Option(help="Time in shadow before the policy may serve, such as 10m.")
    ] = None,
    promote_if: Annotated[
        str, typer.Option(help="What it must show there.")
    ] = "gain > 0 and doubts < 0.05",
    models: Annotated[
        Path | None, typer.Option(help="Store of model profiles; the admin port takes uploads.")
    ] = None,
    planner: Annotated[
        Literal["hold", "target-load"], typer.Option(help="Who lets replicas sleep and wake.")
    ] = "hold",
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json: counts prompts, understands KV events.")
    ] = None,
    state_dir: Annotated[Path | None, typer.Option("--dir", help="Sockets, token, state.")] = None,
    ttft_s: Annotated[float, typer.Option(help="Limit on TTFT of who names none, s.")] = 2.0,
    tpot_s: Annotated[float, typer.Option(help="The same on TPOT, s.")] = 0.2,
) -> None:
    """Serve until Ctrl-C or SIGTERM; open requests are finished first."""
    if scheduler is not None:
        heuristic(scheduler)
    if shadow_first is not None and bundle is None:
        msg = "--shadow-first needs --bundle: without a policy nothing can be in shadow"
        raise ConfigError(msg)
    config = ServeConfig(
        fleet_path=fleet,
        gateway=GatewayConfig(host=host, port=port),
        admin_port=admin_port,
        scheduler=scheduler,
        knobs_path=knobs,
        bundle_path=None if bundle is None else bundle_directory(bundle),
        rules_path=policy,
        keys_path=keys,
        record_dir=record,
        decisions_dir=decisions,
        decision_every=decision_every,
        spans_url=spans,
        shadow_first_s=None if shadow_first is None else _span_s(shadow_first),
        promote=parse_promotion_rule(promote_if),
        models_dir=models,
        planner=planner,
        tokenizer_path=tokenizer,
        state_dir=state_dir,
        default_ttft_s=ttft_s,
        default_tpot_s=tpot_s,
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    uvloop.run(_run(config))


async def _run(config: ServeConfig) -> None:
    server = Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    running = asyncio.create_task(server.run())
    waiting = asyncio.create_task(server.is_serving.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    if server.is_serving.is_set():
        console = Console(highlight=False)
        host, num = config.gateway.host, len(server.spec.replicas)
        names = ", ".join(server.dispatcher.model_names)
        console.print(f"{num} replicas of {names} at http://{host}:{server.gateway.port}/v1")
        console.print(f"admin API at http://{config.admin_host}:{server.admin_port}/admin/status")
        if config.token is None and config.state_dir is not None:
            console.print(f"its token is in {config.state_dir / 'admin-token'}")
    waiting.cancel()
    await running

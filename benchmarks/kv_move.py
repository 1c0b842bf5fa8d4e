"""A session's KV moved between two llama.cpp replicas, against computing it again at the target.

For each prompt length: the session's first turn runs at the source, its KV moves, and its next turn
(the same prompt and one sentence more) runs at the target. Beside it the same turn at the target
without the KV. Times are of the wall clock, from sending the turn to its first token; the turn
after a move is charged with the move. Replicas are processes of one machine and one thread each.

Run: python benchmarks/kv_move.py [--json] [--repeats 5] [--layers 8] [--width 512]
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from trimtab.runtime.engines.connect import connect
from trimtab.runtime.engines.engine import Engine
from trimtab.runtime.engines.kv_move import KvMove, move_session
from trimtab.runtime.launcher.fleet_plan import LocalReplica
from trimtab.runtime.launcher.supervisor import running_fleet
from trimtab.runtime.launcher.tiny_model import TinyModel

SENTENCE = "route this request to the replica that holds its cache and model "
NEXT_TURN = "then the other one"
PROMPT_TOKENS = (128, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Turn:
    """One request, as its engine tells of it."""

    ttft_s: float
    cached_tokens: int
    computed_tokens: int


async def run_turn(session: aiohttp.ClientSession, engine: Engine, prompt: str, slot: int) -> Turn:
    """Run one request of one token in a slot."""
    body = {"prompt": prompt, "n_predict": 1, "temperature": 0, **engine.request_fields(slot=slot)}
    started_at_s = time.perf_counter()
    async with session.post(f"{engine.replica.url}/completion", json=body) as response:
        answer = await response.json()
    ttft_s = time.perf_counter() - started_at_s
    if response.status != 200:
        msg = f"{engine.replica.name} answered {response.status}: {answer}"
        raise SystemExit(msg)
    timings = answer["timings"]
    return Turn(ttft_s, timings["cache_n"], timings["prompt_n"])


async def prompt_of(engine: Engine, num_tokens: int, salt: int) -> str:
    """Make a prompt of about so many tokens that no other repeat begins with."""
    text = f"{salt} " + SENTENCE * (1 + num_tokens // 8)
    per_character = len(await engine.tokenize(text)) / len(text)
    return text[: int(num_tokens / per_character)]


async def measure(
    engines: tuple[Engine, Engine], session: aiohttp.ClientSession, folder: Path, repeats: int
) -> list[dict[str, Any]]:
    source, target = engines
    rows = []
    for num_tokens in PROMPT_TOKENS:
        moves: list[KvMove] = []
        turns: list[tuple[Turn, Turn]] = []
        for repeat in range(repeats):
            prompt = await prompt_of(source, num_tokens, 1000 * num_tokens + repeat)
            await run_turn(session, source, prompt, slot=0)
            await target.reset_prefix_cache()
            without = await run_turn(session, target, prompt + NEXT_TURN, slot=1)
            await target.reset_prefix_cache()
            moves.append(
                await move_session(source, target, source_slot=0, target_slot=0, folder=folder)
            )
            turns.append((await run_turn(session, target, prompt + NEXT_TURN, slot=0), without))
        rows.append(summarise(moves, turns))
    return rows


def summarise(moves: list[KvMove], turns: list[tuple[Turn, Turn]]) -> dict[str, Any]:
    """Medians over the repeats."""

    def middle_ms(values: list[float]) -> float:
        return round(1e3 * statistics.median(values), 3)

    move_ms = middle_ms([move.total_s for move in moves])
    moved_ms = middle_ms([moved.ttft_s for moved, _ in turns])
    return {
        "prompt_tokens": moves[0].tokens,
        "moved_bytes": moves[0].size_bytes,
        "save_ms": middle_ms([move.save_s for move in moves]),
        "restore_ms": middle_ms([move.restore_s for move in moves]),
        "move_ms": move_ms,
        "turn_after_move_ms": moved_ms,
        "move_and_turn_ms": round(move_ms + moved_ms, 3),
        "turn_recomputed_ms": middle_ms([without.ttft_s for _, without in turns]),
        "cached_tokens": statistics.median(moved.cached_tokens for moved, _ in turns),
        "computed_tokens_after_move": statistics.median(m.computed_tokens for m, _ in turns),
        "computed_tokens_without": statistics.median(w.computed_tokens for _, w in turns),
    }


async def benchmark(args: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    model = TinyModel(num_layers=args.layers, width=args.width)
    replica = LocalReplica(model=model, slots=2, slot_tokens=max(PROMPT_TOKENS) + 256)
    with running_fleet([replica, replica], directory) as fleet:
        async with aiohttp.ClientSession() as session:
            source, target = (connect(r, session, timeout_s=60.0) for r in fleet.spec.replicas)
            return await measure((source, target), session, directory / "slots", args.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        rows = asyncio.run(benchmark(args, Path(directory)))
    model = {"layers": args.layers, "width": args.width}
    if args.json:
        print(json.dumps({"model": model, "repeats": args.repeats, "rows": rows}))
        return
    table = Table(*rows[0], title=f"A session moved, ms; medians of {args.repeats}, {model}")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()

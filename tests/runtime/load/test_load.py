"""The load: prompts as recorded, requests at their moments, figures with known answers."""

import asyncio

import numpy as np
import pytest

from trimtab.runtime.load.player import LoadConfig, LoadPlayer, play
from trimtab.runtime.load.prompts import prompt_text
from trimtab.runtime.load.results import RESULT_DTYPE, figures, is_met
from trimtab.runtime.simulated_engine.batch import EngineSpeed
from trimtab.runtime.simulated_engine.server import SimulatedEngine
from trimtab.traces.schema import RequestTrace

BLOCKS = np.array([11, 12, 13], np.uint64)


def test_prompts_that_share_blocks_begin_alike_and_are_as_long_as_recorded() -> None:
    one = prompt_text(BLOCKS, 16, 60, 1)
    two = prompt_text(BLOCKS[:2], 16, 40, 2)
    assert len(one.split()) == 60
    assert one.split()[:32] == two.split()[:32]
    assert one.split()[32:40] != two.split()[32:40]
    assert one == prompt_text(BLOCKS, 16, 60, 1)


def make_trace(number: int = 12, span_s: float = 0.3) -> RequestTrace:
    return RequestTrace.from_columns(
        arrival_s=np.linspace(0.0, span_s, number), input_tokens=[40] * number,
        output_tokens=[4] * number, ttft_slo_s=30.0, tpot_slo_s=30.0,
    )  # fmt: skip


def test_a_trace_is_played_and_its_answers_are_timed() -> None:
    async def run() -> None:
        engine = SimulatedEngine(EngineSpeed(step_s=0.005, prefill_token_s=1e-4))
        port = await engine.start()
        player = LoadPlayer(make_trace(), LoadConfig(port=port, model="simulated"))
        seen: list[int] = []
        results = await player.play(seen.append)
        await engine.close()
        assert seen == list(range(1, 13))
        assert (results["is_whole"] == 1).all()
        assert (results["output_tokens"] == 4).all()
        assert (results["status"] == 200).all()
        summed = figures(results)
        assert (summed.num_failed, summed.goodput_frac) == (0, 1.0)
        assert 0.005 < summed.ttft_p50_s < 10.0
        assert summed.tpot_p50_s > 0.004

    asyncio.run(run())


def test_nobody_there_is_a_failure_and_not_a_hang() -> None:
    async def run() -> None:
        results = await play(make_trace(3, 0.01), LoadConfig(port=1, model="m"))
        assert figures(results).num_failed == 3
        assert figures(results).goodput_frac == 0.0

    asyncio.run(run())


def test_figures_have_known_answers() -> None:
    results = np.zeros(4, RESULT_DTYPE)
    results["due_s"] = [0.0, 1.0, 2.0, 3.0]
    results["first_s"] = [0.1, 1.9, 2.1, np.nan]
    results["end_s"] = [0.5, 2.3, 4.1, np.nan]
    results["output_tokens"] = [5, 5, 5, 0]
    results["is_whole"] = [1, 1, 1, 0]
    results["status"] = [200, 200, 200, 429]
    results["ttft_slo_s"], results["tpot_slo_s"], results["weight"] = 0.5, 0.2, [2, 1, 1, 1]
    assert is_met(results).tolist() == [True, False, False, False]
    summed = figures(results)
    assert summed.goodput_frac == pytest.approx(0.4)
    assert (summed.num_failed, summed.num_shed) == (0, 1)
    assert summed.ttft_p50_s == pytest.approx(0.1)
    assert summed.tpot_p50_s == pytest.approx(0.1)


def test_patience_is_positive() -> None:
    with pytest.raises(ValueError, match="patience_s must be above 0, got 0"):
        LoadConfig(port=1, model="m", patience_s=0)

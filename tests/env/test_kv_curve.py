"""KV by length: known points, bounds that hold for every table, and what follows for replicas."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.env.cluster import ClusterSpec, ReplicaSpec, ServerSpec, kv_pages, page_copy_s
from trimtab.env.hardware import GPUS, Precision
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.kv_curve import KvCurve
from trimtab.env.latency import iteration_time_s
from trimtab.env.model_profile import MODELS, AttentionKind, ModelProfile, add_model
from trimtab.env.model_store import ModelStore
from trimtab.env.roofline import latency_coefficients
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.readers.facts import facts_of
from trimtab.env.simulator.setup import FleetConfig
from trimtab.env.simulator.workload import Workload

BF16 = Precision.BF16
H100 = GPUS["H100-80G"]
LLAMA = MODELS["llama-3-8b"]
TOKEN_BYTES = 131_072
# 100 bytes a token up to 10 tokens, 40 up to 30, 10 beyond
BENT = KvCurve(points=((10, 1000.0), (30, 1800.0), (40, 1900.0)))


@st.composite
def curves(draw: st.DrawFn) -> KvCurve:
    """Concave tables of up to five points."""
    count = draw(st.integers(1, 5))
    spans = draw(st.lists(st.integers(1, 5000), min_size=count, max_size=count))
    slopes = sorted(
        draw(st.lists(st.integers(0, 10_000), min_size=count, max_size=count)), reverse=True
    )
    slopes[0] = max(1, slopes[0])
    tokens = np.cumsum(spans).tolist()
    totals = np.cumsum([a * b for a, b in zip(spans, slopes, strict=True)]).tolist()
    return KvCurve(points=tuple((int(t), float(b)) for t, b in zip(tokens, totals, strict=True)))


@pytest.mark.parametrize(
    ("tokens", "total"),
    [(0, 0), (5, 500), (10, 1000), (20, 1400), (30, 1800), (35, 1850), (90, 2400)],
)
def test_bytes_between_and_beyond_the_points(tokens: int, total: float) -> None:
    assert BENT.bytes_at(tokens) == pytest.approx(total)


def test_a_number_is_a_straight_line() -> None:
    curve = KvCurve.per_token(500.0)
    assert [curve.bytes_at(tokens) for tokens in (1, 7, 10**6)] == [500, 3500, 5 * 10**8]
    assert (curve.page_token_bytes, curve.bend_tokens, curve.bent_frac) == (500.0, 0, 0.0)


def test_first_and_last_line_meet_at_the_bend() -> None:
    # 100 t = 1500 + 10 t at 16.7 tokens
    assert (BENT.bend_tokens, BENT.bent_frac) == (17, pytest.approx(0.9))
    assert BENT.page_token_bytes == 100.0
    assert replace(BENT, reference_tokens=30).page_token_bytes == 60.0


@given(curve=curves(), tokens=st.integers(1, 60_000))
def test_pages_never_count_too_few_without_a_reference(curve: KvCurve, tokens: int) -> None:
    assert curve.page_token_bytes * tokens >= curve.bytes_at(tokens) * (1 - 1e-9)


@given(curve=curves(), reference=st.integers(1, 30_000), longer=st.integers(0, 30_000))
def test_a_reference_is_exact_there_and_too_many_beyond(
    curve: KvCurve, reference: int, longer: int
) -> None:
    exact = replace(curve, reference_tokens=reference)
    assert exact.page_token_bytes * reference == pytest.approx(curve.bytes_at(reference))
    tokens = reference + longer
    assert exact.page_token_bytes * tokens >= curve.bytes_at(tokens) * (1 - 1e-9)


@given(curve=curves(), tokens=st.integers(1, 60_000))
def test_what_is_read_is_never_too_little(curve: KvCurve, tokens: int) -> None:
    last = curve.slopes[-1]
    window = min(tokens, curve.bend_tokens) if curve.bend_tokens else 0
    read = last * tokens + (curve.first_slope - last) * window
    # the bend is a whole number of tokens: half a one of the slopes' difference
    assert read >= curve.bytes_at(tokens) - 0.5 * curve.first_slope - 1e-6
    if len(curve.points) <= 2 and curve.bend_tokens:
        assert read == pytest.approx(curve.bytes_at(tokens))


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ((), "at least one point"),
        (((0, 1.0),), r"must rise from at least 1, got \[0\]"),
        (((5, 1.0), (5, 2.0)), r"must rise from at least 1, got \[5, 5\]"),
        (((5, 0.0),), "must be above 0, got 0 at 5 tokens"),
        (((5, 10.0), (9, 8.0)), "must not fall with length"),
        (((5, 10.0), (10, 40.0)), "no faster with length, got 2 bytes a token up to 5 .* 6 beyond"),
    ],
)
def test_refuses_what_no_cache_is(points: tuple[tuple[int, float], ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        KvCurve(points=points)
    with pytest.raises(ValueError, match="reference_tokens must be at least 1, got 0"):
        KvCurve(points=((1, 1.0),), reference_tokens=0)


def with_kv(curve: KvCurve | None, name: str = "kv-made", **changes: object) -> ModelProfile:
    return replace(LLAMA, name=name, kv_bytes=curve, **changes)


def test_what_the_shape_implies_changes_nothing_when_it_is_said() -> None:
    said = with_kv(KvCurve.per_token(TOKEN_BYTES))
    for group in (1, 4, 8, 16):
        assert said.kv_bytes_per_token(BF16, tensor_parallel=group) == LLAMA.kv_bytes_per_token(
            BF16, tensor_parallel=group
        )
        ours, theirs = (
            latency_coefficients(H100, each, tensor_parallel=group) for each in (said, LLAMA)
        )
        assert ours.tobytes() == theirs.tobytes()


def test_a_table_of_windowed_layers_reads_as_those_layers_do() -> None:
    """Gemma 3: 52 of 62 layers see 1,024 tokens; a table says so without naming windows."""
    gemma = MODELS["gemma-3-27b"]
    layer_bytes = 16 * 128 * 2 * 2
    curve = KvCurve(points=((1024, 62.0 * layer_bytes * 1024), (2048, 72.0 * layer_bytes * 1024)))
    plain = replace(gemma, attention=AttentionKind.GQA, window_tokens=None, num_window_layers=None)
    said = latency_coefficients(H100, replace(plain, kv_bytes=curve))[0]
    known = latency_coefficients(H100, gemma)[0]
    for name in ("decode_context_s", "window_context_s", "window_tokens"):
        assert said[name] == pytest.approx(known[name])
    # all layers compute all pairs of a prompt, as no window was named
    assert said["window_attention_s"] == 0.0
    assert said["prefill_attention_s"] > known["prefill_attention_s"]


def make_cluster(model: str, **settings: object) -> ClusterSpec:
    server = ServerSpec(name="s0", zone="z0", gpu="H100-80G", num_gpus=8)
    replica = ReplicaSpec(name="r0", server="s0", model=model, gpu_indices=(0,), **settings)
    return ClusterSpec(name="made", servers=(server,), replicas=(replica,))


def test_a_bent_table_is_simulated(
    model_store: ModelStore, make_workload: Callable[..., Workload]
) -> None:
    """A cache that stops growing at 1,000 tokens: decode slows no more from there on."""
    kept = KvCurve(points=((1000, 1000.0 * TOKEN_BYTES), (2000, 1000.0 * TOKEN_BYTES)))
    add_model(with_kv(kept, "kept"), "test")
    workload = make_workload([0.0, 0.1], [500, 900], [2000, 2000])
    finished_s = {}
    for model, is_single_step in (("kept", False), ("kept", True), ("llama-3-8b", False)):
        config = FleetConfig(is_single_step=is_single_step)
        fleet = run_workload(make_cluster(model), workload, ANALYTIC_SCORER_KNOBS, config=config)
        finished_s[model, is_single_step] = fleet.requests["finish_s"].copy()
    np.testing.assert_allclose(finished_s["kept", False], finished_s["kept", True], rtol=1e-9)
    assert (finished_s["kept", False] < finished_s["llama-3-8b", False]).all()
    record = latency_coefficients(H100, MODELS["kept"])[0]
    times_s = [iteration_time_s(record, 0, 0, 1, tokens) for tokens in (500, 1000, 5000)]
    assert times_s[0] < times_s[1] == times_s[2]


def test_pages_and_copies_by_hand(model_store: ModelStore) -> None:
    add_model(with_kv(KvCurve.per_token(TOKEN_BYTES / 2), "kv-half"), "test")
    add_model(with_kv(None, "active", activation_bytes_per_token=1_000_000), "test")
    free_bytes = 0.9 * H100.hbm_bytes - 3.5 * 2**30 - 2 * 8_030_261_248
    for model, left, page in (
        ("llama-3-8b", free_bytes, 16 * TOKEN_BYTES),
        ("kv-half", free_bytes, 8 * TOKEN_BYTES),
        ("active", free_bytes - 512 * 1_000_000, 16 * TOKEN_BYTES),
    ):
        cluster = make_cluster(model)
        assert kv_pages(cluster, cluster.replicas[0]) == int(left // page)
    half, whole = (make_cluster(model) for model in ("kv-half", "llama-3-8b"))
    assert 2 * page_copy_s(half, half.replicas[0]) == page_copy_s(whole, whole.replicas[0])


def test_memory_stays_as_full_when_activations_take_room_from_kv(model_store: ModelStore) -> None:
    add_model(with_kv(None, "active", activation_bytes_per_token=800_000), "test")
    active, plain = (facts_of(make_cluster(model)) for model in ("active", "llama-3-8b"))
    assert active.replicas["kv_pool_frac"] < plain.replicas["kv_pool_frac"]
    page_frac = 16 * TOKEN_BYTES / H100.hbm_bytes
    for facts in (active, plain):
        assert facts.replicas["used_frac"][0] == pytest.approx(0.9, abs=page_frac)

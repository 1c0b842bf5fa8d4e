import numpy as np
import pytest
from site_makers import make_site

from trimtab.env.sites import Shape, Traffic
from trimtab.env.sites.library import BLOCK_TOKENS
from trimtab.env.sites.requests import draw_requests, with_classes
from trimtab.traces.schema import RequestTrace


def drawn(shape: Shape, *, seed: int = 0, rate_rps: float = 10.0, eighths: int = 8) -> RequestTrace:
    site = make_site(shape=shape)
    traffic = Traffic(shape=shape, length_eighths=eighths)
    return draw_requests(site, traffic, None, rate_rps=rate_rps, span_s=60.0, seed=seed)


@pytest.mark.parametrize("shape", list(Shape))
def test_the_rate_is_kept_exactly(shape: Shape) -> None:
    trace = drawn(shape)
    assert len(trace) == 600
    assert trace.arrival_s[0] >= 0.0
    assert 55.0 < trace.arrival_s[-1] < 60.0
    assert trace.block_tokens == BLOCK_TOKENS
    assert trace.input_tokens.max() <= make_site().max_prompt_tokens


def test_the_same_seed_draws_the_same_requests() -> None:
    first, again, other = (drawn(Shape.CODE_BURSTS, seed=seed) for seed in (3, 3, 4))
    assert first.table.equals(again.table)
    assert not np.array_equal(first.arrival_s, other.arrival_s)


def test_shapes_differ_as_their_names_say() -> None:
    means = {shape: drawn(shape).input_tokens.mean() for shape in Shape}
    assert means[Shape.LONG_PROMPTS] > 4 * means[Shape.CONVERSATION]
    assert means[Shape.AGENT_SESSIONS] > 4 * means[Shape.CODE_BURSTS]
    outputs = {shape: drawn(shape).output_tokens.mean() for shape in Shape}
    assert outputs[Shape.CODE_BURSTS] < 0.3 * outputs[Shape.CONVERSATION]

    def per_second(shape: Shape) -> float:
        counts = np.bincount(drawn(shape, rate_rps=50.0).arrival_s.astype(int))
        return float(counts.var() / counts.mean())

    assert per_second(Shape.CODE_BURSTS) > 3 * per_second(Shape.CONVERSATION)


def test_eighths_shorten_prompts_and_answers() -> None:
    whole, quarter = (drawn(Shape.LONG_PROMPTS, eighths=each) for each in (8, 2))
    assert quarter.input_tokens.mean() < 0.5 * whole.input_tokens.mean()
    assert quarter.output_tokens.mean() == pytest.approx(0.25 * 347, rel=0.2)


def test_classes_are_by_session_and_limits_grow_with_long_prompts() -> None:
    trace = drawn(Shape.LONG_PROMPTS)
    classed = with_classes(trace, urgent_frac=0.2, limits=((1.0, 4.0), (0.05, 0.1)), seed=1)
    for session in np.unique(classed.session_ids):
        assert np.unique(classed.priority[classed.session_ids == session]).size == 1
    assert 0.1 < (classed.priority == 0).mean() < 0.3
    stretch = np.maximum(1.0, classed.input_tokens / 4096)
    base_s = np.where(classed.priority == 0, 1.0, 4.0)
    assert classed.ttft_slo_s == pytest.approx(base_s * stretch)
    assert set(classed.tpot_slo_s) == {0.05, 0.1}


def test_a_recording_asks_for_traces() -> None:
    traffic = Traffic(shape=Shape.CONVERSATION, recording="azure-conv")
    with pytest.raises(ValueError, match="draws from 'azure-conv'; give the traces"):
        draw_requests(make_site(), traffic, None, rate_rps=1.0, span_s=60.0, seed=0)


@pytest.mark.parametrize(
    ("settings", "text"), [({"length_eighths": 9}, "1 to 8, got 9"), ({"num_overlays": -1}, "-1")]
)
def test_traffic_out_of_bounds_is_refused(settings: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Traffic(shape=Shape.CONVERSATION, **settings)

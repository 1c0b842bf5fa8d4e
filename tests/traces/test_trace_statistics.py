"""Figures of traces: by hand, of the bundled traces, and of the shared table where it is there."""

from pathlib import Path

import numpy as np
import pytest

import trimtab.traces.data
from trimtab.traces.bundled import BUNDLED_FILES, load_bundled
from trimtab.traces.errors import TraceError
from trimtab.traces.schema import RequestTrace
from trimtab.traces.sources import read_mooncake
from trimtab.traces.statistics import prefix_hit_blocks, statistics

SHARED_TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
needs_shared = pytest.mark.skipif(
    not SHARED_TRACES.is_dir(), reason=f"no shared traces at {SHARED_TRACES}"
)


def make_trace(**changes):
    columns = {
        "arrival_s": [1.0, 2.0, 4.0, 8.0],
        "input_tokens": [100, 200, 300, 400],
        "output_tokens": [1, 2, 3, 4],
    }
    return RequestTrace.from_columns(**{**columns, **changes})


def test_figures_by_hand():
    figures = statistics(
        make_trace(
            priority=[0, 0, 0, 2],
            tenant=["a", "b", "b", "b"],
            model=["x", "x", "y", "y"],
            session=[5, 5, None, None],
        )
    )
    assert figures.rows == 4
    assert figures.span_s == 7.0
    assert figures.mean_rate_rps == pytest.approx(4 / 7)
    assert figures.peak_10s_rps == pytest.approx(0.4)
    # Gaps 1, 2, 4: mean 7/3, variance 14/9.
    assert figures.cv_interarrival == pytest.approx(np.sqrt(14 / 9) / (7 / 3))
    assert figures.dispersion_10s is None
    assert figures.input_tokens.mean == 250.0
    assert figures.input_tokens.p50 == 250.0
    assert figures.input_tokens.max == 400
    assert figures.output_tokens.p99 == pytest.approx(3.97)
    assert figures.prefix_hit_frac is None
    assert figures.num_sessions == 3
    assert figures.tenant_fracs == {"a": 0.25, "b": 0.75}
    assert figures.model_fracs == {"x": 0.5, "y": 0.5}
    assert figures.priority_fracs == {0: 0.75, 2: 0.25}


def test_dispersion_uses_full_bins_only():
    # Bins of 10 s from the first arrival hold 3, 1 and (not full) 1 requests.
    trace = RequestTrace.from_columns(
        arrival_s=[5, 6, 7, 15, 25], input_tokens=[1] * 5, output_tokens=[1] * 5
    )
    assert statistics(trace).dispersion_10s == pytest.approx(1.0 / 2.0)
    assert statistics(trace).peak_10s_rps == pytest.approx(0.3)


def test_one_request_and_none():
    figures = statistics(RequestTrace(make_trace().table.slice(0, 1)))
    assert (figures.span_s, figures.mean_rate_rps) == (0.0, 0.0)
    assert figures.cv_interarrival is None
    with pytest.raises(TraceError, match="'unnamed' has 0 requests; expected at least 1"):
        statistics(RequestTrace(make_trace().table.slice(0, 0)))


def test_only_the_leading_run_hits():
    trace = make_trace(prefix=([0, 1, 3, 6, 8], [10, 10, 20, 10, 30, 20, 99, 10]))
    # Row 2 has 20 again, but behind a block that is new; row 3 begins with a new one.
    np.testing.assert_array_equal(prefix_hit_blocks(trace), [0, 1, 1, 0])
    assert statistics(trace).prefix_hit_frac == pytest.approx(2 / 8)


def test_a_request_does_not_hit_itself():
    trace = make_trace(prefix=([0, 1, 1, 1, 1], [10]))
    np.testing.assert_array_equal(prefix_hit_blocks(trace), [0, 0, 0, 0])


def test_models_share_no_cache():
    blocks = (np.arange(5), [10, 10, 10, 10])
    trace = make_trace(prefix=blocks, model=["x", "y", "x", "y"], tenant=["a", "a", "b", "b"])
    np.testing.assert_array_equal(prefix_hit_blocks(trace), [0, 0, 1, 1])


def test_hits_against_a_set_in_python():
    rng = np.random.Generator(np.random.PCG64(1))
    lengths = rng.integers(0, 6, 300)
    hashes = rng.integers(0, 40, lengths.sum()).astype(np.uint64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    trace = RequestTrace.from_columns(
        arrival_s=np.arange(300),
        input_tokens=np.full(300, 1000),
        output_tokens=np.ones(300),
        prefix=(offsets, hashes),
    )
    seen, expected = set(), []
    for row in np.split(hashes.tolist(), offsets[1:-1]):
        run = 0
        while run < len(row) and row[run] in seen:
            run += 1
        expected.append(run)
        seen.update(row)
    np.testing.assert_array_equal(prefix_hit_blocks(trace), expected)


# Figures of shared/traces/README.md; the bundled files are those files, whole.


def test_azure_conv_matches_its_table():
    figures = statistics(load_bundled("azure-conv"))
    assert figures.rows == 15_606
    assert figures.span_s == pytest.approx(2653, abs=0.5)
    tokens = figures.input_tokens
    assert (round(tokens.mean), tokens.p50, tokens.p95, tokens.max) == (1182, 1015, 4085, 14_050)
    assert figures.output_tokens.mean == pytest.approx(201.1, abs=0.05)
    assert figures.output_tokens.p99 == 598
    assert figures.mean_rate_rps == pytest.approx(5.88, abs=0.005)
    assert figures.peak_10s_rps == pytest.approx(9.8)
    assert figures.cv_interarrival == pytest.approx(1.07, abs=0.005)
    assert figures.dispersion_10s == pytest.approx(3.25, abs=0.01)


def test_azure_code_matches_its_table():
    figures = statistics(load_bundled("azure-code"))
    assert figures.rows == 7717
    assert round(figures.input_tokens.mean) == 2036
    assert figures.output_tokens.mean == pytest.approx(27.73, abs=0.005)
    assert figures.mean_rate_rps == pytest.approx(3.0, abs=0.005)
    assert figures.peak_10s_rps == pytest.approx(32.7)
    assert figures.cv_interarrival == pytest.approx(12.6, abs=0.05)
    assert figures.dispersion_10s == pytest.approx(70, abs=0.5)


@needs_shared
def test_mooncake_conversation_matches_its_table():
    path = SHARED_TRACES / "mooncake" / "conversation_trace.jsonl.gz"
    trace = read_mooncake(path).trace
    figures = statistics(trace)
    assert figures.rows == 8768
    assert round(figures.input_tokens.mean) == 12_240
    assert figures.mean_rate_rps == pytest.approx(3.31, abs=0.01)
    # The table counts partial last blocks among all blocks, which the import leaves out.
    num_blocks_in_file = 213_761
    hit_frac = prefix_hit_blocks(trace).sum() / num_blocks_in_file
    assert hit_frac == pytest.approx(0.353, abs=0.001)
    assert figures.prefix_hit_frac == pytest.approx(0.353, abs=0.02)
    # Spread over their ticks, the arrivals are no longer in batches (CV 2.99 as stamped).
    assert figures.cv_interarrival < 0.5


@needs_shared
def test_mooncake_synthetic_matches_its_table():
    path = SHARED_TRACES / "mooncake" / "synthetic_trace.jsonl.gz"
    figures = statistics(read_mooncake(path).trace)
    assert figures.rows == 3993
    assert figures.mean_rate_rps == pytest.approx(3.91, abs=0.005)
    assert figures.cv_interarrival == pytest.approx(1.01, abs=0.005)
    assert figures.prefix_hit_frac == pytest.approx(0.64, abs=0.025)


# Bundled traces


@pytest.mark.parametrize("name", sorted(BUNDLED_FILES))
def test_bundled_traces_name_their_licence(name):
    source = load_bundled(name).source
    assert source.licence == "CC BY 4.0"
    assert "Splitwise" in source.citation
    assert "AzurePublicDataset" in source.url


def test_bundled_traces_are_attributed_beside_the_files():
    package = Path(trimtab.traces.data.__file__).parent
    text = (package / "README.md").read_text(encoding="utf-8")
    for name in (*BUNDLED_FILES.values(), "CC BY 4.0", "Splitwise", "Changed"):
        assert name in text
    assert sum(file.stat().st_size for file in package.glob("*.gz")) < 1_000_000


def test_an_unknown_bundled_trace_lists_the_known():
    message = r"must be one of \['azure-code', 'azure-conv'\], got 'azure'"
    with pytest.raises(ValueError, match=message):
        load_bundled("azure")


@needs_shared
@pytest.mark.parametrize("name", sorted(BUNDLED_FILES))
def test_bundled_files_are_the_shared_files(name):
    kind = name.removeprefix("azure-")
    shared = SHARED_TRACES / "azure_llm_2023" / f"AzureLLMInferenceTrace_{kind}.csv.gz"
    bundled = Path(__file__).parents[2] / "traces" / "data" / BUNDLED_FILES[name]
    assert bundled.read_bytes() == shared.read_bytes()

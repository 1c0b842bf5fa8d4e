import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED
from site_makers import make_site

from trimtab.env.sites import Shape, Split, TraceLibrary, Traffic
from trimtab.env.sites.library import BLOCK_TOKENS, agent_sessions_of, recordings_of
from trimtab.env.sites.requests import draw_requests
from trimtab.traces.errors import ConfigError
from trimtab.traces.schema import RequestTrace
from trimtab.traces.sources.agent_sessions import read_agent_sessions

needs_traces = pytest.mark.skipif(not (SHARED / "traces").is_dir(), reason="no shared traces")
MOONCAKE = "mooncake/conversation_trace.jsonl.gz"


def write_mooncake(directory: Path, *, num_rows: int = 200) -> TraceLibrary:
    """One request every 10 s, of 2 to 5 blocks, the first of which all share."""
    path = directory / MOONCAKE
    path.parent.mkdir()
    rows = [
        {
            "timestamp": 10_000 * i,
            "input_length": 512 * (2 + i % 4),
            "output_length": 1 + i,
            "hash_ids": [0, *range(10 * i + 1, 10 * i + 2 + i % 4)],
        }
        for i in range(num_rows)
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return TraceLibrary(directory)


def test_parts_of_a_recording_share_no_request_and_leave_none_out(tmp_path: Path) -> None:
    library = write_mooncake(tmp_path)
    # Output lengths number the rows.
    rows = {part: library.part("mooncake-conversation", part).output_tokens for part in Split}
    assert np.concatenate(list(rows.values())).tolist() == list(range(1, 201))
    assert [rows[part].size for part in Split] == pytest.approx([100, 30, 70], abs=1)


@pytest.mark.parametrize("eighths", [1, 3, 4])
def test_prompts_are_scaled_with_their_blocks(tmp_path: Path, eighths: int) -> None:
    library = write_mooncake(tmp_path)
    traffic = Traffic(
        shape=Shape.LONG_PROMPTS, recording="mooncake-conversation", length_eighths=eighths
    )
    recorded = library.part("mooncake-conversation", Split.TRAIN)
    scaled = library.stretch(traffic, Split.TRAIN, 100_000)
    assert scaled.block_tokens == BLOCK_TOKENS
    assert (scaled.input_tokens * 8 == recorded.input_tokens * eighths).all()
    # Whole prompts of blocks before, whole prompts of blocks after; the shared one stays shared.
    assert (np.diff(scaled.prefix_offsets) * BLOCK_TOKENS == scaled.input_tokens).all()
    first = scaled.prefix_block_hashes[scaled.prefix_offsets[:-1]]
    assert np.unique(first).size == 1
    distinct = np.unique(recorded.prefix_block_hashes).size
    assert np.unique(scaled.prefix_block_hashes).size == distinct * eighths


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    traffic = Traffic(shape=Shape.LONG_PROMPTS, recording="mooncake-conversation", length_eighths=4)
    kept = write_mooncake(tmp_path).stretch(traffic, Split.TRAIN, 512)
    assert kept.input_tokens.max() == 512
    assert len(kept) == 25


def test_lengths_are_cut_further_where_no_prompt_would_be_left(tmp_path: Path) -> None:
    traffic = Traffic(shape=Shape.LONG_PROMPTS, recording="mooncake-conversation", length_eighths=4)
    library = write_mooncake(tmp_path)
    shortest = int(library.part("mooncake-conversation", Split.TRAIN).input_tokens.min())
    kept = library.stretch(traffic, Split.TRAIN, shortest // 4)
    assert len(kept) > 0
    assert kept.input_tokens.max() <= shortest // 4


def test_only_recordings_that_are_there_are_had(tmp_path: Path) -> None:
    library = write_mooncake(tmp_path)
    assert library.names == ("mooncake-conversation",)
    assert recordings_of(Shape.SYNTHETIC_CHAT) == ()
    with pytest.raises(ConfigError, match=r"no recording 'azure-conv'.*mooncake-conversation"):
        library.part("azure-conv", Split.TRAIN)


def test_a_directory_without_any_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no recorded trace; expected any of azure_llm"):
        TraceLibrary(tmp_path)


@needs_traces
@pytest.mark.parametrize("name", ["azure-conv", "azure-code", "mooncake-synthetic"])
def test_no_stretch_of_a_shared_trace_is_shared(name: str) -> None:
    library = TraceLibrary(SHARED / "traces")
    spans_s = [library.part(name, part).span_s for part in Split]
    assert spans_s[0] > spans_s[2] > spans_s[1] > 100.0
    sizes = [len(library.part(name, part)) for part in Split]
    assert min(sizes) > 400


@needs_traces
def test_no_group_of_agent_sessions_is_shared() -> None:
    path = SHARED / "traces" / "weka_agentic" / "sessions.jsonl.gz"
    sessions = read_agent_sessions(path, max_input_tokens=50_000)
    parts = [agent_sessions_of(sessions, part) for part in Split]
    groups = [{session.group for session in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert sum(map(len, parts)) == len(sessions)
    blocks = [set(np.concatenate([one.blocks for one in part]).tolist()) for part in parts]
    assert not blocks[0] & blocks[1]
    assert not blocks[0] & blocks[2]


@needs_traces
@pytest.mark.parametrize(
    ("recording", "shape", "num_overlays", "least_frac"),
    [
        ("mooncake-conversation", Shape.LONG_PROMPTS, 1, 0.15),
        ("agent-sessions", Shape.AGENT_SESSIONS, 0, 0.4),
    ],
)
def test_recorded_prefixes_are_really_reused(
    recording: str, shape: Shape, num_overlays: int, least_frac: float
) -> None:
    traffic = Traffic(shape=shape, recording=recording, length_eighths=2, num_overlays=num_overlays)
    library = TraceLibrary(SHARED / "traces")

    def drawn(split: Split) -> RequestTrace:
        site = make_site(split=split, traffic=traffic)
        return draw_requests(site, traffic, library, rate_rps=16.0, span_s=90.0, seed=1)

    trace = drawn(Split.TEST)
    assert len(trace) == 16 * 90
    assert trace.input_tokens.max() <= make_site().max_prompt_tokens
    hashes = trace.prefix_block_hashes
    assert 1.0 - np.unique(hashes).size / hashes.size > least_frac
    assert drawn(Split.TEST).table.equals(trace.table)
    assert not drawn(Split.TRAIN).table.equals(trace.table)

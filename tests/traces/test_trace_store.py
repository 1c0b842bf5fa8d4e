"""Trace stores: round trips, appends that a crash cannot break, and files that were changed."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.traces import store
from trimtab.traces.errors import TraceError
from trimtab.traces.schema import RequestTrace, TraceSource
from trimtab.traces.store import append_store, read_manifest, read_store, write_store

SOURCE = TraceSource("hand", "CC0-1.0", "nobody, 2026", "https://example.org")


def make_trace(start_s=0.0, **changes):
    columns = {
        "arrival_s": [start_s, start_s + 1.0, start_s + 2.5],
        "input_tokens": [130, 64, 1],
        "output_tokens": [1, 2, 3],
        "block_tokens": 32,
        "source": SOURCE,
        "model": ["big", "small", "big"],
        "tenant": ["a", "a", "b"],
        "priority": [0, 1, 2],
        "session": [7, None, 7],
        "prefix": ([0, 2, 3, 3], [1, 2**64 - 1, 1]),
        "ttft_slo_s": [0.5, None, 2.0],
        "tpot_slo_s": [None, 0.1, 0.1],
        "adapter": [None, "x", None],
        "num_sequences": [1, 1, 4],
    }
    return RequestTrace.from_columns(**{**columns, **changes})


def edit_manifest(path, **changes):
    file = path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_store_of_before_adapters_and_sequences_is_read(tmp_path):
    trace = make_trace(adapter=None, num_sequences=1)
    write_store(tmp_path / "t", trace)
    file = tmp_path / "t" / "part-00000.parquet"
    pq.write_table(trace.table.drop_columns(["adapter", "num_sequences"]), file)
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    manifest["parts"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_manifest(tmp_path / "t", parts=manifest["parts"])
    assert read_store(tmp_path / "t") == trace


def test_every_column_survives_the_store(tmp_path):
    trace = make_trace()
    write_store(tmp_path / "t", trace)
    back = read_store(tmp_path / "t")
    assert back == trace
    assert back.source == SOURCE
    assert back.block_tokens == 32
    for name in (
        *("session_ids", "prefix_block_hashes", "ttft_slo_s", "tenant_index"),
        *("adapter_index", "num_sequences"),
    ):
        np.testing.assert_array_equal(getattr(back, name), getattr(trace, name))


def test_the_manifest_says_what_is_there(tmp_path):
    write_store(tmp_path / "t", make_trace())
    content = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert content["schema_version"] == 1
    assert content["block_tokens"] == 32
    assert content["source"]["licence"] == "CC0-1.0"
    (part,) = content["parts"]
    assert part["file"] == "part-00000.parquet"
    assert part["rows"] == 3
    assert (part["first_arrival_s"], part["last_arrival_s"]) == (0.0, 2.5)
    assert len(part["sha256"]) == 64


def test_appended_requests_follow_the_first(tmp_path):
    write_store(tmp_path, make_trace())
    append_store(tmp_path, make_trace(2.5, model="third"))
    append_store(tmp_path, make_trace(5.0))
    trace = read_store(tmp_path)
    assert len(trace) == 9
    np.testing.assert_array_equal(trace.arrival_s, [0, 1, 2.5, 2.5, 3.5, 5, 5, 6, 7.5])
    assert set(trace.model_names) == {"big", "small", "third"}
    assert [part.file for part in read_manifest(tmp_path).parts] == [
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]


def test_appending_nothing_changes_nothing(tmp_path):
    write_store(tmp_path, make_trace())
    before = (tmp_path / "manifest.json").read_bytes()
    empty = make_trace().table.slice(0, 0)
    append_store(tmp_path, RequestTrace(empty, 32, SOURCE))
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_trace_of_no_requests_can_be_stored_and_appended_to(tmp_path):
    write_store(tmp_path, RequestTrace(make_trace().table.slice(0, 0), 32, SOURCE))
    assert len(read_store(tmp_path)) == 0
    append_store(tmp_path, make_trace())
    assert len(read_store(tmp_path)) == 3


def test_an_earlier_request_is_not_appended(tmp_path):
    write_store(tmp_path, make_trace())
    with pytest.raises(TraceError, match=r"arrival_s 2\.4 is before .*\(2\.5\); append in order"):
        append_store(tmp_path, make_trace(2.4))
    assert len(read_store(tmp_path)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_tokens": 64}, "block_tokens of the new requests is 64; expected 32"),
        ({"source": TraceSource("other")}, "source of the new requests is .*'other'"),
    ],
)
def test_another_kind_of_trace_is_not_appended(tmp_path, changes, message):
    write_store(tmp_path, make_trace())
    with pytest.raises(TraceError, match=message):
        append_store(tmp_path, make_trace(9.0, **changes))


class CrashError(Exception):
    """Stands for the power going out."""


@pytest.mark.parametrize("crash_at", ["part", "manifest"])
def test_a_crash_while_appending_leaves_the_old_store(tmp_path, monkeypatch, crash_at):
    write_store(tmp_path, make_trace())
    rename = store.Path.replace

    def crash(self, target):
        if crash_at in self.name:
            raise CrashError
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(store.Path, "replace", crash)
        with pytest.raises(CrashError):
            append_store(tmp_path, make_trace(3.0))
    left_over = sorted(file.name for file in tmp_path.iterdir())
    assert any(name.endswith(".tmp") for name in left_over)
    assert ("part-00001.parquet" in left_over) == (crash_at == "manifest")
    assert read_store(tmp_path) == make_trace()
    append_store(tmp_path, make_trace(4.0))
    np.testing.assert_array_equal(read_store(tmp_path).arrival_s, [0, 1, 2.5, 4, 5, 6.5])


def test_a_crash_while_replacing_leaves_the_old_store(tmp_path, monkeypatch):
    write_store(tmp_path, make_trace())

    def crash(root, manifest):
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_manifest", crash)
        with pytest.raises(CrashError):
            write_store(tmp_path, make_trace(9.0), overwrite=True)
    assert read_store(tmp_path) == make_trace()


def test_the_part_is_synced_before_the_manifest_names_it(tmp_path, monkeypatch):
    events = []
    fsync, rename = store.os.fsync, store.Path.replace
    monkeypatch.setattr(store.os, "fsync", lambda fd: (events.append("sync"), fsync(fd)))
    monkeypatch.setattr(
        store.Path, "replace", lambda self, to: (events.append(to.name), rename(self, to))
    )
    write_store(tmp_path, make_trace())
    expected = ["sync", "part-00000.parquet", "sync", "sync", "manifest.json", "sync"]
    assert events == expected


def test_an_existing_store_is_replaced_only_when_told(tmp_path):
    write_store(tmp_path, make_trace())
    with pytest.raises(TraceError, match=r"exists; .* overwrite=True"):
        write_store(tmp_path, make_trace(5.0))
    assert read_store(tmp_path) == make_trace()
    write_store(tmp_path, make_trace(5.0), overwrite=True)
    assert read_store(tmp_path) == make_trace(5.0)
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_foreign_files_in_the_directory_stay(tmp_path):
    (tmp_path / "part-00000.parquet").write_bytes(b"someone else's")
    (tmp_path / "notes.txt").write_text("mine")
    write_store(tmp_path, make_trace())
    assert (tmp_path / "part-00000.parquet").read_bytes() == b"someone else's"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert read_store(tmp_path) == make_trace()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "t").write_text("")
    with pytest.raises(TraceError, match="t' is a file; expected a directory"):
        write_store(tmp_path / "t", make_trace())


def test_no_store_at_all(tmp_path):
    with pytest.raises(TraceError, match=r"nowhere' has no manifest\.json"):
        read_store(tmp_path / "nowhere")
    with pytest.raises(TraceError, match=r"nowhere' has no manifest\.json"):
        append_store(tmp_path / "nowhere", make_trace())


def test_a_changed_part_is_refused_with_both_checksums(tmp_path):
    write_store(tmp_path, make_trace())
    expected = read_manifest(tmp_path).parts[0].sha256
    file = tmp_path / "part-00000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(TraceError, match=rf"part-00000\.parquet has sha256 .* {expected}"):
        read_store(tmp_path)


def test_a_missing_part_is_named(tmp_path):
    write_store(tmp_path, make_trace())
    (tmp_path / "part-00000.parquet").unlink()
    with pytest.raises(TraceError, match=r"cannot read part-00000\.parquet, which manifest"):
        read_store(tmp_path)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_schema_version_is_refused(tmp_path, version):
    write_store(tmp_path, make_trace())
    edit_manifest(tmp_path, schema_version=version)
    with pytest.raises(TraceError, match=f"schema_version {version}; expected 1; import"):
        read_store(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": []}, "lists 0 parts; expected at least 1"),
        ({"parts": [{"file": "part-00000.parquet"}]}, "lacks or misnames .*rows"),
        ({"source": {"nome": "x"}}, "lacks or misnames .*nome"),
        (
            {
                "parts": [
                    {
                        "file": "../secret",
                        "rows": 1,
                        "sha256": "",
                        "first_arrival_s": 0,
                        "last_arrival_s": 0,
                    }
                ]
            },
            r"lists the part '\.\./secret'; expected a name like",
        ),
    ],
)
def test_a_broken_manifest_is_explained(tmp_path, changes, message):
    write_store(tmp_path, make_trace())
    edit_manifest(tmp_path, **changes)
    with pytest.raises(TraceError, match=message):
        read_store(tmp_path)


def test_a_manifest_that_is_not_json(tmp_path):
    write_store(tmp_path, make_trace())
    (tmp_path / "manifest.json").write_text('{"schema_version": 1')
    with pytest.raises(TraceError, match=r"cannot read manifest\.json: .*delimiter"):
        read_store(tmp_path)


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_any_division_into_parts_reads_as_the_whole(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("store")
    num_rows = sum(sizes)
    whole = RequestTrace.from_columns(
        arrival_s=np.arange(num_rows) / 2.0,
        input_tokens=np.arange(1, num_rows + 1),
        output_tokens=np.arange(1, num_rows + 1),
        tenant=[f"tenant {i % 3}" for i in range(num_rows)],
    )
    start = 0
    for i, size in enumerate(sizes):
        part = RequestTrace(whole.table.slice(start, size))
        if i == 0:
            write_store(path, part)
        else:
            append_store(path, part)
        start += size
    back = read_store(path)
    np.testing.assert_array_equal(back.arrival_s, whole.arrival_s)
    np.testing.assert_array_equal(back.input_tokens, whole.input_tokens)
    assert back.table["tenant"].to_pylist() == whole.table["tenant"].to_pylist()

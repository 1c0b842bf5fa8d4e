"""Importers of recorded formats: known answers, bad rows by line, and what skipping leaves."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from trimtab.traces.errors import TraceError
from trimtab.traces.sources import (
    IMPORTERS,
    BadRow,
    read_azure,
    read_csv,
    read_jsonl,
    read_mooncake,
    read_openai_log,
)
from trimtab.traces.sources.importing import RowFault, iso_to_ns, spread_ticks, whole_number

AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE_ROWS = (
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2225670,879,55\n"
)


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def write_lines(path: Path, *rows) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# Azure


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_azure_rows_by_hand(tmp_path, name):
    result = read_azure(write(tmp_path / name, AZURE_HEADER + AZURE_ROWS), tenant="chat")
    trace = result.trace
    assert result.bad_rows == ()
    np.testing.assert_allclose(trace.arrival_s, [0.0, 4.314579, 4.541977], atol=1e-9)
    np.testing.assert_array_equal(trace.input_tokens, [374, 396, 879])
    np.testing.assert_array_equal(trace.output_tokens, [44, 109, 55])
    assert trace.tenant_names == ("chat",)
    assert trace.source.licence == "CC BY 4.0"
    assert "ISCA 2024" in trace.source.citation


def test_azure_accepts_a_byte_order_mark_windows_lines_and_columns_in_any_order(tmp_path):
    text = "\ufeffGeneratedTokens,TIMESTAMP,ContextTokens\r\n44,2023-11-16 18:15:46,374\r\n\r\n"
    trace = read_azure(write(tmp_path / "x.csv", text)).trace
    np.testing.assert_array_equal(trace.input_tokens, [374])
    np.testing.assert_array_equal(trace.output_tokens, [44])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "2023-11-16 18:15:52,abc,5",
            r"x\.csv' line 5: ContextTokens 'abc' is not a whole number; "
            "expected an integer of at least 1; fix the row or pass --skip-bad-rows",
        ),
        ("2023-11-16 18:15:52,7.5,5", r"line 5: ContextTokens '7\.5' is not a whole number"),
        ("2023-11-16 18:15:52,,5", "line 5: ContextTokens '' is missing"),
        ("2023-11-16 18:15:52,7,0", "line 5: GeneratedTokens '0' is out of range; .* from 1 to"),
        ("2023-11-16 18:15:52,7,-4", "line 5: GeneratedTokens '-4' is out of range"),
        ("2023-11-16 18:15:52,9999999999,4", "line 5: ContextTokens '9999999999' is out of"),
        ("yesterday,7,4", "line 5: TIMESTAMP 'yesterday' is not a moment; expected a form like"),
        (",7,4", "line 5: TIMESTAMP '' is missing"),
        ("2023-11-16 18:15:52,7", "line 5: row '2023-11-16 18:15:52,7' has 2 cells; expected 3"),
    ],
)
def test_a_bad_azure_row_is_named_or_skipped(tmp_path, row, message):
    path = write(tmp_path / "x.csv", AZURE_HEADER + AZURE_ROWS + row + "\n")
    with pytest.raises(TraceError, match=message):
        read_azure(path)
    result = read_azure(path, skip_bad_rows=True)
    assert len(result.trace) == 3
    assert [bad.line for bad in result.bad_rows] == [5]


def test_a_skipped_row_says_why_and_what(tmp_path):
    text = AZURE_HEADER + "2023-11-16 18:15:45,abc,5\n" + AZURE_ROWS + "2023-11-16 18:16:00,1,0\n"
    result = read_azure(write(tmp_path / "x.csv", text), skip_bad_rows=True)
    assert len(result.trace) == 3
    assert result.bad_rows == (
        BadRow(
            2,
            "ContextTokens 'abc' is not a whole number; expected an integer of at least 1",
            "abc",
        ),
        BadRow(
            6,
            "GeneratedTokens '0' is out of range; expected an integer from 1 to 2147483647",
            "0",
        ),
    )


def test_azure_rows_out_of_order_show_both_times(tmp_path):
    text = AZURE_HEADER + AZURE_ROWS + "2023-11-16 18:15:50,1,1\n"
    with pytest.raises(
        TraceError, match=r"line 5: TIMESTAMP .*18:15:50.* is before .*18:15:51\.22.*; sort"
    ):
        read_azure(write(tmp_path / "x.csv", text), skip_bad_rows=True)


def test_a_missing_column_names_those_there_and_the_nearest(tmp_path):
    path = write(tmp_path / "x.csv", "TIMESTAMP,ContextToken,Out\n")
    with pytest.raises(
        TraceError,
        match=r"no column 'ContextTokens' .*\['TIMESTAMP', 'ContextToken', 'Out'\]; "
        "did you mean 'ContextToken'",
    ):
        read_azure(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header line"),
        (AZURE_HEADER, "has 0 readable rows and 0 bad ones"),
        (AZURE_HEADER + "a,b,c\n", "0 readable rows and 1 bad ones; line 2: TIMESTAMP 'a'"),
    ],
)
def test_a_file_without_requests(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        read_azure(write(tmp_path / "x.csv", text), skip_bad_rows=True)


# Files


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TraceError, match=r"gone\.csv' cannot be read: .*No such file"):
        read_azure(tmp_path / "gone.csv")


def test_a_file_that_is_not_gzip(tmp_path):
    (tmp_path / "x.csv.gz").write_text(AZURE_HEADER)
    with pytest.raises(TraceError, match=r"x\.csv\.gz' cannot be read: Not a gzipped file"):
        read_azure(tmp_path / "x.csv.gz")


def test_a_cut_gzip_file(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress((AZURE_HEADER + AZURE_ROWS * 50).encode())[:-20])
    with pytest.raises(TraceError, match=r"x\.csv\.gz' cannot be read"):
        read_azure(path)


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match=r"cannot be read: .*utf-8.*expected UTF-8 text"):
        read_azure(tmp_path / "x.csv")


# Mooncake


def make_mooncake_row(timestamp, input_length, hash_ids, output_length=5):
    return {
        "timestamp": timestamp,
        "input_length": input_length,
        "output_length": output_length,
        "hash_ids": hash_ids,
    }


def test_mooncake_rows_by_hand(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl.gz",
        make_mooncake_row(3000, 1100, [0, 1, 2]),
        make_mooncake_row(3000, 1024, [0, 1]),
        make_mooncake_row(3000, 511, [9]),
        make_mooncake_row(6000, 1600, [0, 4, 5, 6]),
    )
    trace = read_mooncake(path).trace
    assert trace.block_tokens == 512
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.0, 2.0, 3.0])
    # The last, partial block of each prompt is gone.
    np.testing.assert_array_equal(trace.prefix_offsets, [0, 2, 4, 4, 7])
    hashes = trace.prefix_block_hashes
    assert hashes[0] == hashes[2] == hashes[4]
    assert hashes[1] == hashes[3]
    assert len(set(hashes.tolist())) == 4
    assert 0 not in hashes


def test_mooncake_ticks_are_as_long_as_told(tmp_path):
    rows = [make_mooncake_row(0, 10, [1])] * 2 + [make_mooncake_row(60_000, 10, [1])] * 4
    path = write_lines(tmp_path / "x.jsonl", *rows)
    np.testing.assert_allclose(
        read_mooncake(path).trace.arrival_s, [0, 1.5, 60, 60.75, 61.5, 62.25]
    )
    trace = read_mooncake(path, tick_s=1.0).trace
    np.testing.assert_allclose(trace.arrival_s, [0, 0.5, 60, 60.25, 60.5, 60.75])
    with pytest.raises(ValueError, match=r"tick_s must be above 0, got 0\.0"):
        read_mooncake(path, tick_s=0.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_mooncake_row(0, 600, None), "line 2: hash_ids is not a list"),
        (make_mooncake_row(0, 600, ["a"]), r"line 2: hash_ids \"\['a'\]\" holds more than"),
        (make_mooncake_row(0, 600, [-1, 2]), r"hash_ids '\[-1, 2\]' holds more than"),
        (make_mooncake_row(0, 600, [2**64, 2]), r"expected integers from 0 to below 2\*\*64"),
        (make_mooncake_row(0, 0, [1]), "line 2: input_length '0' is out of range"),
        (make_mooncake_row(0, True, [1]), "line 2: input_length 'True' is not a whole number"),
        (make_mooncake_row(0, 600, [1], output_length=None), "output_length is missing"),
        (make_mooncake_row("soon", 600, [1]), "timestamp 'soon' is not a finite number"),
        (make_mooncake_row(None, 600, [1]), "timestamp is missing"),
        ([1, 2], r"line 2: line '\[1, 2\]' is not an object"),
    ],
)
def test_a_bad_mooncake_row_is_named_or_skipped(tmp_path, row, message):
    path = write_lines(tmp_path / "x.jsonl", make_mooncake_row(0, 600, [1, 2]), row)
    with pytest.raises(TraceError, match=message):
        read_mooncake(path)
    result = read_mooncake(path, skip_bad_rows=True)
    assert (len(result.trace), [bad.line for bad in result.bad_rows]) == (1, [2])


def test_a_line_that_is_not_json(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"timestamp": 0,\n')
    with pytest.raises(TraceError, match=r"line 1: line '.\"timestamp\": 0,' is not JSON"):
        read_mooncake(path)


# Tabular


COLUMNS = {"arrival_s": "ts", "input_tokens": "prompt_len", "output_tokens": "out_len"}


@pytest.mark.parametrize(
    ("unit", "stamps"),
    [
        ("s", ["10.5", "12", "12.25"]),
        ("ms", ["10500", "12000", "12250"]),
        ("us", ["10500000", "12000000", "12250000"]),
        ("iso", ["2026-01-01T00:00:10.5Z", "2026-01-01 00:00:12", "2026-01-01T01:00:12.25+01:00"]),
    ],
)
def test_every_time_unit_gives_the_same_arrivals(tmp_path, unit, stamps):
    rows = "".join(f"{stamp},10,20\n" for stamp in stamps)
    path = write(tmp_path / "x.csv", "ts,prompt_len,out_len\n" + rows)
    trace = read_csv(path, columns=COLUMNS, time_unit=unit).trace
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.5, 1.75], atol=1e-9)
    assert trace.source.name == "x.csv"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_field_of_a_table(tmp_path, kind):
    fields = ["ts", "prompt_len", "out_len", "model", "who", "priority", "chat", "ttft_slo_s", "x"]
    rows = [
        ["0", "10", "20", "big", "a", "1", "u-1", "0.5", "-"],
        ["1.5", "11.0", "21", "", "b", "", "", "", "-"],
        ["2", "12", "22", "big", "a", "0", "u-1", "2", "-"],
    ]
    if kind == "csv":
        text = "".join(",".join(row) + "\n" for row in [fields, *rows])
        path, read = write(tmp_path / "x.csv", text), read_csv
    else:
        path = write_lines(
            tmp_path / "x.jsonl", *[dict(zip(fields, row, strict=True)) for row in rows]
        )
        read = read_jsonl
    trace = read(path, columns={**COLUMNS, "tenant": "who", "session": "chat"}).trace
    np.testing.assert_array_equal(trace.input_tokens, [10, 11, 12])
    assert [trace.model_names[i] for i in trace.model_index] == ["big", "default", "big"]
    assert [trace.tenant_names[i] for i in trace.tenant_index] == ["a", "b", "a"]
    np.testing.assert_array_equal(trace.priority, [1, 0, 0])
    np.testing.assert_array_equal(trace.session_ids, [0, 1, 0])
    np.testing.assert_array_equal(trace.has_session, [True, False, True])
    np.testing.assert_array_equal(trace.ttft_slo_s, [0.5, np.nan, 2.0])
    assert np.isnan(trace.tpot_slo_s).all()


def test_json_numbers_and_nulls(tmp_path):
    path = write_lines(
        tmp_path / "x.jsonl",
        {"arrival_s": 5, "input_tokens": 10, "output_tokens": 20.0, "session": 3},
        {"arrival_s": 6.5, "input_tokens": 1, "output_tokens": 2, "session": None},
    )
    trace = read_jsonl(path).trace
    np.testing.assert_array_equal(trace.arrival_s, [0.0, 1.5])
    np.testing.assert_array_equal(trace.output_tokens, [20, 2])
    np.testing.assert_array_equal(trace.has_session, [True, False])


def test_unsorted_rows_are_an_error_unless_sorted(tmp_path):
    text = "ts,prompt_len,out_len\n4.0,1,1\n3.2,2,2\n9,3,3\n"
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(
        TraceError,
        match=r"line 3: ts 3\.2 is before the previous row \(4\.0\); sort the trace by ts",
    ):
        read_csv(path, columns=COLUMNS)
    trace = read_csv(path, columns=COLUMNS, sort=True).trace
    np.testing.assert_array_equal(trace.input_tokens, [2, 1, 3])
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.8, 5.8])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,1,1", "line 3: ts 'x' is not a finite number"),
        ("inf,1,1", "line 3: ts 'inf' is not a finite number"),
        ("1,1", "line 3: row '1,1' has 2 cells; expected 3"),
        ("1,1,1,1", "line 3: row '1,1,1,1' has 4 cells; expected 3"),
        ("1,0,1", "line 3: prompt_len '0' is out of range"),
    ],
)
def test_a_bad_csv_row_is_named_or_skipped(tmp_path, row, message):
    path = write(tmp_path / "x.csv", f"ts,prompt_len,out_len\n0,1,1\n{row}\n2,2,2\n")
    with pytest.raises(TraceError, match=message):
        read_csv(path, columns=COLUMNS)
    result = read_csv(path, columns=COLUMNS, skip_bad_rows=True)
    assert (len(result.trace), [bad.line for bad in result.bad_rows]) == (2, [3])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("priority", "200", "priority '200' is out of range; expected an integer from 0 to 127"),
        ("priority", "-1", "priority '-1' is out of range"),
        ("ttft_slo_s", "0", "ttft_slo_s '0' is not above 0"),
        ("tpot_slo_s", "fast", "tpot_slo_s 'fast' is not a finite number"),
    ],
)
def test_a_bad_optional_field(tmp_path, field, value, message):
    text = f"arrival_s,input_tokens,output_tokens,{field}\n0,1,1,{value}\n"
    with pytest.raises(TraceError, match=message):
        read_csv(write(tmp_path / "x.csv", text))


@pytest.mark.parametrize("read", [read_csv, read_jsonl])
def test_a_column_map_that_does_not_fit(tmp_path, read):
    path = tmp_path / "x"
    if read is read_csv:
        write(path, "ts,promt_len,out_len\n0,1,1\n")
    else:
        write_lines(path, {"ts": 0, "promt_len": 1, "out_len": 1})
    with pytest.raises(
        TraceError,
        match=r"no column 'prompt_len' for input_tokens; it has \['ts', 'promt_len', 'out_len'\]; "
        "did you mean 'promt_len'",
    ):
        read(path, columns=COLUMNS)
    with pytest.raises(ValueError, match=r"'input_token' is none of .*did you mean 'input_tokens'"):
        read(path, columns={"input_token": "x"})
    with pytest.raises(ValueError, match=r"time_unit must be one of \['s', .*, got 'min'"):
        read(path, time_unit="min")


@pytest.mark.parametrize("read", [read_csv, read_jsonl])
def test_an_empty_table(tmp_path, read):
    with pytest.raises(TraceError, match=r"is empty|0 readable rows"):
        read(write(tmp_path / "x", ""))


def test_an_optional_column_that_the_map_names_must_be_there(tmp_path):
    path = write(tmp_path / "x.csv", "arrival_s,input_tokens,output_tokens\n0,1,1\n")
    with pytest.raises(TraceError, match="no column 'who' for tenant"):
        read_csv(path, columns={"tenant": "who"})


def test_a_json_line_that_lacks_a_key(tmp_path):
    good = {"arrival_s": 0, "input_tokens": 1, "output_tokens": 1}
    path = write_lines(tmp_path / "x.jsonl", good, {"arrival_s": 1, "input_tokens": 1})
    with pytest.raises(TraceError, match="line 2: output_tokens is missing"):
        read_jsonl(path)


def test_every_row_of_a_long_file_is_read(tmp_path):
    rows = "".join(f"{i / 10},{i % 999 + 1},{i % 99 + 1}\n" for i in range(20_000))
    path = write(tmp_path / "x.csv", "arrival_s,input_tokens,output_tokens\n" + rows)
    trace = read_csv(path).trace
    assert len(trace) == 20_000
    assert trace.input_tokens.sum() == sum(i % 999 + 1 for i in range(20_000))
    assert trace.arrival_s[-1] == pytest.approx(1999.9)


def test_json_lines_may_lack_optional_keys_and_begin_with_a_bad_row(tmp_path):
    good = {"arrival_s": 0, "input_tokens": 1, "output_tokens": 1}
    path = write_lines(tmp_path / "x.jsonl", {"error": 500}, good, {**good, "who": "ann"})
    result = read_jsonl(path, columns={"tenant": "who"}, skip_bad_rows=True)
    assert [result.trace.tenant_names[i] for i in result.trace.tenant_index] == ["default", "ann"]
    assert [bad.line for bad in result.bad_rows] == [1]
    with pytest.raises(TraceError, match=r"no column 'arrival_s' .*\['error'\]"):
        read_jsonl(path)


# OpenAI logs


def make_log_row(created=100, prompt_tokens=10, completion_tokens=5, **more):
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    return {"id": "x", "created": created, "model": "m", "usage": usage, **more}


def test_openai_rows_by_hand(tmp_path):
    flat = make_log_row(103.5, 30, 3, user="ann", session_id="s1")
    nested = {
        "request": {"user": "bob", "metadata": {"session_id": "s1"}, "messages": []},
        "response": make_log_row(100, 10, 1),
    }
    stamped = {**make_log_row(None, 20, 2), "timestamp": 101.25}
    trace = read_openai_log(write_lines(tmp_path / "x.jsonl", flat, nested, stamped)).trace
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.25, 3.5])
    np.testing.assert_array_equal(trace.input_tokens, [10, 20, 30])
    np.testing.assert_array_equal(trace.output_tokens, [1, 2, 3])
    tenants = [trace.tenant_names[i] for i in trace.tenant_index]
    assert tenants == ["bob", "default", "ann"]
    assert trace.model_names == ("m",)
    np.testing.assert_array_equal(trace.session_ids, [0, 1, 0])
    assert trace.prefix_block_hashes.size == 0


def test_openai_iso_times_and_metadata_session(tmp_path):
    rows = [
        {**make_log_row(), "created": "2026-01-01T00:00:00Z", "metadata": {"session_id": 4}},
        {**make_log_row(), "created": "2026-01-01T00:00:02.5Z"},
    ]
    trace = read_openai_log(write_lines(tmp_path / "x.jsonl", *rows)).trace
    np.testing.assert_allclose(trace.arrival_s, [0.0, 2.5])
    np.testing.assert_array_equal(trace.has_session, [True, False])


def test_openai_whole_seconds_are_spread_when_told(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", *[make_log_row(100)] * 4)
    np.testing.assert_array_equal(read_openai_log(path).trace.arrival_s, [0, 0, 0, 0])
    spread = read_openai_log(path, tick_s=1.0).trace
    np.testing.assert_allclose(spread.arrival_s, [0, 0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"created": 1}, "line 2: usage is missing or no object"),
        (make_log_row(completion_tokens=0), "usage.completion_tokens '0' is out of range"),
        (make_log_row(prompt_tokens=None), "usage.prompt_tokens is missing"),
        (make_log_row(created=None), "created is missing; expected created or timestamp"),
        (make_log_row(created=[]), r"created '\[\]' is not a finite number"),
        (make_log_row(created="noon"), "created 'noon' is not a moment"),
    ],
)
def test_a_bad_log_row_is_named_or_skipped(tmp_path, row, message):
    path = write_lines(tmp_path / "x.jsonl", make_log_row(), row)
    with pytest.raises(TraceError, match=message):
        read_openai_log(path)
    result = read_openai_log(path, skip_bad_rows=True)
    assert (len(result.trace), [bad.line for bad in result.bad_rows]) == (1, [2])


# Parts that every importer shares


def test_the_command_line_names_every_importer():
    assert set(IMPORTERS) == {"azure", "csv", "jsonl", "mooncake", "openai"}


@pytest.mark.parametrize("value", [5, "5", " 5 ", "5.0", 5.0])
def test_whole_numbers_in_any_writing(value):
    assert whole_number(value, "n") == 5


@pytest.mark.parametrize("value", [True, None, "", "x", "nan", 1.5, [5], {}])
def test_what_is_no_whole_number(value):
    with pytest.raises(RowFault, match="expected an integer of at least 1"):
        whole_number(value, "n")


def test_iso_moments_keep_their_nanoseconds():
    base = iso_to_ns("2023-11-16 18:15:46", "t")
    assert base == 1_700_158_546 * 10**9
    assert iso_to_ns("2023-11-16 18:15:46.6805900", "t") - base == 680_590_000
    assert iso_to_ns("2023-11-16T19:15:46.000000001+01:00", "t") - base == 1
    assert iso_to_ns("1969-12-31T23:59:59.5Z", "t") == -500_000_000


def test_spread_ticks_stops_at_the_next_stamp():
    times_s = np.array([0.0, 0.0, 0.5, 0.5, 0.5, 10.0])
    np.testing.assert_allclose(spread_ticks(times_s, 3.0), [0, 0.25, 0.5, 1.5, 2.5, 10.0])

"""What a client is told of a request that cannot be served, in OpenAI's words."""

import pytest
from understood import CHAT, TEXT, FakeTenant, chat, make_call, make_reader

from trimtab.runtime.understanding.openai_reader import OpenAiReader
from trimtab.runtime.understanding.reader import RequestFault


@pytest.fixture(scope="module")
def reader() -> OpenAiReader:
    return make_reader()


def fault(reader: OpenAiReader, body: object, path: str = CHAT, **more: object) -> RequestFault:
    with pytest.raises(RequestFault) as caught:
        reader.read(make_call(body, path, **more))  # type: ignore[arg-type]
    assert str(caught.value) == caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "Input data was truncated"),
        (b'{"model":"llama" "n":1}', r"expected ',' or '}' (byte 17)"),
        (b'{"model":"llama"}x', "trailing characters (byte 18)"),
        (b'["model"]', "expected an object, but got array"),
        (b'{"model":"\xed\xa0\x80","user":"\xff"}', "invalid UTF-8"),
        (b'{"model":"llama","messages":' + b"[" * 100_000, "nested too deeply"),
        (b'{"x":' + b'{"y":' * 50_000 + b"1" + b"}" * 50_001, "nested too deeply"),
    ],
)
def test_bad_json(reader: OpenAiReader, raw: bytes, what: str) -> None:
    found = fault(reader, raw)
    assert (found.status, found.code, found.param) == (400, "invalid_json", None)
    assert found.message.startswith("We could not parse the JSON body of your request.")
    assert what in found.message


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ({"max_tokens": "9"}, "invalid_type",
         "Invalid type for 'max_tokens': expected an integer, but got a string instead."),
        ({"max_tokens": 1.5}, "invalid_type",
         "Invalid type for 'max_tokens': expected an integer, but got a decimal instead."),
        ({"stream": 1}, "invalid_type",
         "Invalid type for 'stream': expected a boolean, but got an integer instead."),
        ({"user": {}}, "invalid_type",
         "Invalid type for 'user': expected a string, but got an object instead."),
        ({"max_tokens": 0}, "integer_below_min_value",
         "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, "
         "but got 0 instead."),
        ({"max_completion_tokens": -3}, "integer_below_min_value",
         "Invalid 'max_completion_tokens': integer below minimum value. Expected a value >= 1, "
         "but got -3 instead."),
        ({"n": 129}, "integer_above_max_value",
         "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 129 instead."),
        ({"temperature": 2.5}, "decimal_above_max_value",
         "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, "
         "but got 2.5 instead."),
        ({"messages": []}, "empty_array",
         "Invalid 'messages': empty array. Expected an array with minimum length 1, "
         "but got an empty array instead."),
        ({"messages": "Hi"}, "invalid_type",
         "Invalid type for 'messages': expected an array of objects, but got a string instead."),
        ({"messages": None}, "invalid_type",
         "Invalid type for 'messages': expected an array of objects, but got a null instead."),
    ],
)  # fmt: skip
def test_wrong_values(reader: OpenAiReader, more: dict, code: str, message: str) -> None:
    found = fault(reader, {**chat(("user", "Hi")), **more})
    assert (found.status, found.code, found.message) == (400, code, message)
    assert found.param == next(iter(more))


@pytest.mark.parametrize(
    ("body", "path", "param"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, CHAT, "model"),
        ({"model": "llama"}, CHAT, "messages"),
        ({"model": "llama", "messages": [{}]}, TEXT, "prompt"),
    ],
)
def test_missing_parameters(reader: OpenAiReader, body: dict, path: str, param: str) -> None:
    found = fault(reader, body, path)
    assert (found.status, found.code) == (400, "missing_required_parameter")
    assert (found.message, found.param) == (f"Missing required parameter: '{param}'.", param)


def test_unknown_model(reader: OpenAiReader) -> None:
    found = fault(reader, chat(("user", "Hi"), model="gpt-9"))
    assert (found.status, found.code, found.param) == (404, "model_not_found", "model")
    assert found.message == "The model `gpt-9` does not exist or you do not have access to it."


def test_a_model_that_a_tenant_may_not_use_is_unknown_to_it(reader: OpenAiReader) -> None:
    tenant = FakeTenant(models=frozenset({"small"}))
    assert fault(reader, chat(("user", "Hi")), tenant=tenant).status == 404
    assert reader.read(make_call(chat(("user", "Hi"), model="small"), tenant=tenant))


@pytest.mark.parametrize(("written", "kind"), [(5, "number"), (["llama"], "array"), (None, "null")])
def test_a_model_is_a_string(reader: OpenAiReader, written: object, kind: str) -> None:
    found = fault(reader, {"model": written, "prompt": "Hi"}, TEXT)
    assert (found.code, found.param) == ("invalid_type", "model")
    assert kind in found.message


def test_a_prompt_that_nobody_has_room_for(reader: OpenAiReader) -> None:
    found = fault(reader, chat(("user", "word " * 5000)))
    assert (found.status, found.code, found.param) == (400, "context_length_exceeded", "messages")
    assert "maximum context length is 4096 tokens" in found.message
    ids = list(range(512))
    assert fault(reader, {"model": "small", "prompt": ids}, TEXT).code == "context_length_exceeded"
    assert reader.read(make_call({"model": "small", "prompt": ids[:-1]}, TEXT))


@pytest.mark.parametrize("value", [b"soon", b"-5", b"0", b"nan", b"inf"])
def test_headers_that_are_no_limit(reader: OpenAiReader, value: bytes) -> None:
    found = fault(reader, chat(("user", "Hi")), headers={b"x-slo-ttft-ms": value})
    assert (found.status, found.code) == (400, "invalid_header")
    assert found.message == (
        "Invalid header 'x-slo-ttft-ms': expected a number of milliseconds above 0, "
        f"but got '{value.decode()}' instead."
    )

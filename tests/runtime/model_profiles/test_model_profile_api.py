"""The upload API: answers, faults as JSON, and what is uploaded is in use at once."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import KV_TOKEN_BYTES, SIZES, make_cluster_text, make_text

from trimtab.env.cluster import kv_pages
from trimtab.env.cluster_file import load_cluster
from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.model_file import load_model
from trimtab.env.model_profile import MODELS
from trimtab.env.model_store import ModelStore
from trimtab.env.simulated_fleet import run_workload
from trimtab.env.simulator.workload import Workload
from trimtab.runtime.model_profiles.app import checked_host, make_app
from trimtab.runtime.model_profiles.auth import is_allowed
from trimtab.traces.errors import ConfigError

TOKEN = "a-token-of-24-characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PLACE = "/v1/model-profiles"

Talk = Callable[[TestClient[Any, Any]], Awaitable[Any]]


def talk(store: ModelStore, conversation: Talk, *, headers: dict[str, str] | None = None) -> Any:
    """What a conversation with the application over a loopback socket returns."""

    async def run() -> Any:
        server = TestServer(make_app(store, token=TOKEN), host="127.0.0.1")
        async with TestClient(server, headers=BEARER if headers is None else headers) as client:
            return await conversation(client)

    return asyncio.run(run())


def post(store: ModelStore, body: Any, **options: Any) -> tuple[int, dict[str, Any]]:
    """Status and answer of one upload."""

    async def conversation(client: TestClient[Any, Any]) -> tuple[int, dict[str, Any]]:
        async with client.post(PLACE, data=body, **options) as response:
            return response.status, await response.json()

    status, answer = talk(store, conversation)
    return status, answer


def get(store: ModelStore, path: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, headers and answer of one question."""

    async def conversation(client: TestClient[Any, Any]) -> tuple[int, Any, Any]:
        async with client.get(PLACE + path, **options) as response:
            return response.status, response.headers, await response.read()

    status, headers, body = talk(store, conversation)
    return status, headers, json.loads(body) if body else None


def test_upload_again_and_otherwise(model_store: ModelStore) -> None:
    assert post(model_store, make_text(version=1)) == (
        201,
        {"model": "own@1", "name": "own", "version": "1"},
    )
    status, _ = post(
        model_store,
        json.dumps({**SIZES, "version": 1}),
        headers={"Content-Type": "application/json"},
    )
    assert status == 200
    status, answer = post(model_store, make_text(version=1, source="other"))
    assert status == 409
    assert answer["faults"][0]["key"] == "version"
    assert "source: none -> other" in answer["faults"][0]["text"]
    # without a version the next is given out
    assert post(model_store, make_text(source="other"))[1]["model"] == "own@2"


def test_all_faults_as_json_with_lines(model_store: ModelStore) -> None:
    status, answer = post(model_store, make_text(num_kv_heads=5, vocab_size=1, version=1))
    assert status == 422
    assert [(fault["key"], fault["line"]) for fault in answer["faults"]] == [
        ("num_kv_heads", 5),
        ("vocab_size", 7),
    ]
    assert (
        "num_heads must be a multiple of num_kv_heads, got (32, 5)" in answer["faults"][0]["text"]
    )
    assert not model_store.directory.exists()


def test_a_note_where_the_package_has_the_name(model_store: ModelStore) -> None:
    _, answer = post(model_store, make_text(name="llama-3-8b"))
    assert answer["model"] == "llama-3-8b@1"
    assert (
        "the bare name 'llama-3-8b' stays the model that comes with the package" in answer["note"]
    )


def test_reading(model_store: ModelStore) -> None:
    assert get(model_store, "")[2] == {"models": []}
    for version in (1, 2):
        post(model_store, make_text(version=version, activation_bytes_per_token=20_000 * version))
    assert get(model_store, "")[2] == {"models": [{"name": "own", "versions": ["1", "2"]}]}
    status, headers, answer = get(model_store, "/own")
    assert (status, answer["model"], answer["figures"]["weight_gb"]["bf16"]) == (
        200,
        "own@2",
        pytest.approx(16.06, abs=0.01),
    )
    assert answer["sizes"]["activation_bytes_per_token"] == 40_000
    assert get(model_store, "/own@1.0")[2]["model"] == "own@1"
    # a client that has it already is told so
    tag = {"If-None-Match": headers["ETag"]}
    assert get(model_store, "/own", headers=tag)[0] == 304
    assert get(model_store, "/own@1", headers=tag)[0] == 200
    _, _, history = get(model_store, "/own/history")
    assert history["versions"][1]["changes"] == [
        "activation_bytes_per_token: 20,000 -> 40,000 (+100 %)"
    ]
    for path in ("/other", "/own@9", "/other/history", "/..%2Fown"):
        status, _, answer = get(model_store, path)
        assert status == 404
    status, _, answer = get(model_store, "/own@9")
    assert answer["faults"][0]["text"] == "the store has no 'own@9'; its models: own"


@pytest.mark.parametrize("header", ["", "Bearer", f"Bearer {TOKEN}x", f"bearer {TOKEN}", TOKEN])
def test_nobody_comes_in_without_the_token(model_store: ModelStore, header: str) -> None:
    async def conversation(client: TestClient[Any, Any]) -> list[int]:
        answers = [
            await client.get(PLACE),
            await client.get("/elsewhere"),
            await client.post(PLACE, data=make_text(version=1)),
        ]
        assert "the token is missing or wrong" in await answers[0].text()
        return [answer.status for answer in answers]

    headers = {"Authorization": header} if header else {}
    assert talk(model_store, conversation, headers=headers) == [401, 401, 401]
    assert not model_store.directory.exists()
    assert not is_allowed(None, TOKEN)
    assert not is_allowed("Bearer \udc80", TOKEN)
    with pytest.raises(
        ValueError, match="at least 16 printable ASCII characters, got 3 characters"
    ):
        make_app(model_store, token="abc")


def test_only_loopback() -> None:
    assert [checked_host(host) for host in ("127.0.0.1", "::1", "localhost")]
    for host in ("0.0.0.0", "10.0.0.1", "example.org", ""):
        with pytest.raises(ConfigError, match=f"must be a loopback address .*, got '{host}'"):
            checked_host(host)


def test_a_body_that_is_too_long_is_not_kept(model_store: ModelStore) -> None:
    status, answer = post(model_store, b"#" * 70_000)
    assert (status, answer["faults"][0]["text"]) == (413, "is longer than 65536 bytes; shorten it")


BODIES = (
    st.binary(max_size=80)
    | st.text("a:[{&*!-? \n\"'|1.@", max_size=60).map(str.encode)
    | st.builds(
        lambda key, value: make_text(**{key: value}).encode(),
        st.sampled_from([*SIZES, "layers", "latent", "version", "kv_bytes_per_token"]),
        st.none() | st.integers() | st.sampled_from([[], {}, "../x", [[1, 2]], "1.2.3", 1.5, [{}]]),
    )
)


def test_bad_bodies_never_break_it(model_store: ModelStore) -> None:
    """Whatever is sent, the answer is JSON, and what is stored is whole."""

    async def conversation(client: TestClient[Any, Any]) -> None:
        loop = asyncio.get_running_loop()

        async def send(body: bytes, kind: str) -> None:
            headers = {"Content-Type": kind}
            async with client.post(PLACE, data=body, headers=headers) as response:
                answer = await response.json()
            assert response.status in (200, 201, 409, 422), answer
            assert ("faults" in answer) == (response.status in (409, 422))

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(body=BODIES, kind=st.sampled_from(["application/json", "application/yaml", "x"]))
        def check(body: bytes, kind: str) -> None:
            asyncio.run_coroutine_threadsafe(send(body, kind), loop).result()

        await asyncio.to_thread(check)

    talk(model_store, conversation)
    for key in model_store.model_keys():
        assert model_store.read(key).key == key


def test_uploads_at_the_same_time(model_store: ModelStore) -> None:
    async def conversation(client: TestClient[Any, Any]) -> list[int]:
        async def send(index: int) -> int:
            async with client.post(PLACE, data=make_text(version=1, source=str(index))) as response:
                return response.status

        return list(await asyncio.gather(*(send(index) for index in range(8))))

    assert sorted(talk(model_store, conversation)) == [201, *[409] * 7]


def test_a_damaged_file_keeps_no_other_from_being_served(
    model_store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("own", "other"):
        post(model_store, make_text(name=name, version=1))
    (model_store.directory / "own" / "1.yaml").write_text("name: own")
    assert get(model_store, "/other")[0] == 200
    for status, answer in (get(model_store, "/own")[::2], post(model_store, make_text())):
        assert status == 500
        assert answer["faults"][0]["text"].startswith("model '")
    assert "model own@1 of the store is left out" in caplog.text


def ttft_s(workload: Workload, path: Path) -> float:
    """Mean time to first token in a simulation of a cluster file."""
    fleet = run_workload(load_cluster(path), workload, ANALYTIC_SCORER_KNOBS)
    requests = fleet.requests
    return float(np.mean(requests["first_token_s"] - requests["arrival_s"]))


def test_an_upload_is_simulated_at_once(
    model_store: ModelStore, tmp_path: Path, make_workload: Callable[..., Workload]
) -> None:
    """Upload, name it in a cluster, simulate: other sizes, other times; no restart between."""
    workload = make_workload(np.arange(20) * 0.3, [2000] * 20, [40] * 20)
    path = tmp_path / "cluster.yaml"
    path.write_text(make_cluster_text("own"))
    times_s, pages, nominal = [], [], []

    async def conversation(client: TestClient[Any, Any]) -> None:
        for changes in (
            {},
            {"num_layers": 64, "total_params": 15_009_855_488, "kv_bytes_per_token": 262_144},
            {"kv_bytes_per_token": KV_TOKEN_BYTES // 4},
        ):
            async with client.post(PLACE, data=make_text(**changes)) as response:
                assert response.status == 201
                key = (await response.json())["model"]
            assert load_model(key) is MODELS[key]
            cluster = load_cluster(path)
            assert cluster.replicas[0].model == key
            times_s.append(ttft_s(workload, path))
            pages.append(kv_pages(cluster, cluster.replicas[0]))
            fleet = run_workload(cluster, workload, ANALYTIC_SCORER_KNOBS)
            # what the dispatch kernel scores by
            nominal.append(fleet.arrays.nominal[0].copy())

    talk(model_store, conversation)
    small, deep, lean = times_s
    assert deep > 1.5 * small
    assert lean == pytest.approx(small, rel=0.2)
    assert pages[2] // 4 == pages[0]
    assert pages[1] < pages[0] / 2
    assert nominal[1]["gemm_token_s"].sum() > 1.8 * nominal[0]["gemm_token_s"].sum()
    assert nominal[2]["decode_context_s"] == pytest.approx(nominal[0]["decode_context_s"] / 4)
    # the first version is what it was
    path.write_text(make_cluster_text("own@1"))
    assert ttft_s(workload, path) == small

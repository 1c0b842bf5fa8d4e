"""The admin port of a whole server: who may ask, what is refused and in which words."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from server_stand import TOKEN, Setter, Stand, standing, write_bundle

from trimtab.env.knobs import ANALYTIC_SCORER_KNOBS
from trimtab.env.state.feature import Node
from trimtab.runtime.admin.client import AdminClient, AdminError, read_token
from trimtab.runtime.dispatcher.totals import DispatchTotals
from trimtab.runtime.serving import admin_host
from trimtab.runtime.serving.window_meter import WindowMeter

VALUES = ANALYTIC_SCORER_KNOBS.values.tolist()


async def asked(
    stand: Stand, method: str, path: str, body: bytes = b"", *, token: str = TOKEN, kind: str = ""
) -> tuple[int, Any]:
    """Return status and content of an answer."""
    url = f"http://127.0.0.1:{stand.server.admin_port}{path}"
    headers = {"authorization": f"Bearer {token}", "content-type": kind or "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:  # noqa: SIM117
        async with session.request(method, url, data=body) as answer:
            content = await answer.read()
            return answer.status, json.loads(content) if content else None


ROUTES = [
    ("GET", "/admin/state"), ("GET", "/admin/window?span_s=1"), ("PUT", "/admin/knobs"),
    ("PUT", "/admin/order"), ("DELETE", "/admin/order"), ("POST", "/admin/bundle"),
    ("GET", "/admin/status"), ("POST", "/admin/drain"), ("GET", "/admin/decisions/x"),
    ("POST", "/admin/replicas/x/drain"),
]  # fmt: skip

FAULTS: list[tuple[str, str, bytes, int, str, str]] = [
    ("PUT", "/admin/knobs", b"{", 400, "body", "is neither JSON nor msgpack"),
    ("PUT", "/admin/knobs", b"{}", 422, "body", "missing required field `state_at_s`"),
    ("PUT", "/admin/knobs", b'{"state_at_s": 1, "values": [NaN]}', 400, "body", "neither JSON"),
    ("PUT", "/admin/knobs", b'{"state_at_s": 1, "values": ["a"]}', 422, "body",
     "Expected `float`, got `str` - at `$.values[0]`"),
    ("PUT", "/admin/knobs", b'{"state_at_s": 1, "valu": []}', 422, "body", "unknown field `valu`"),
    ("PUT", "/admin/order", b'{"knobs": {"backlogg": 1}}', 422, "knobs",
     "unknown knob 'backlogg'; did you mean 'backlog'?"),
    ("PUT", "/admin/order", b'{"knobs": {"backlog": 99}}', 422, "knobs",
     "knob 'backlog' must be in [0.05, 4], got 99"),
    ("PUT", "/admin/order", b'{"knobs": {"value_weight": 1}}', 422, "knobs",
     "place by worth (value_weight 1), and this gateway does not remember what that takes"),
    ("PUT", "/admin/order", b'{"knobs": {}, "bias": [0.1]}', 422, "bias",
     "must have 2 numbers or none, got 1"),
    ("PUT", "/admin/order", b'{"knobs": {}, "lease_s": -1}', 422, "body", "`float` > 0.0"),
    ("POST", "/admin/bundle", b'{"path": "/nowhere"}', 422, "path", "cannot read config.json"),
    ("POST", "/admin/drain", b'{"deadline_s": "soon"}', 422, "body", "Expected `float`"),
    ("GET", "/admin/window?span_s=0", b"", 422, "span_s", "must be a number above 0"),
    ("GET", "/admin/window?span_s=x", b"", 422, "span_s", "got 'x'"),
    ("GET", "/admin/decisions/none", b"", 404, "request_id", "nothing is known of request 'none'"),
    ("POST", "/admin/replicas/none/drain", b"", 404, "name", "the fleet has no replica 'none'"),
    ("POST", "/admin/replicas/none/kill", b"", 404, "deed", "unknown deed 'kill'"),
]  # fmt: skip


def test_whoever_lacks_the_token_gets_nothing_but_401(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            for method, path in ROUTES:
                for token in ("", "wrong", TOKEN + "x"):
                    status, content = await asked(stand, method, path, token=token)
                    assert status == 401
                    assert content["faults"][0]["key"] == "Authorization"
            assert not stand.server.gateway.is_draining
            with pytest.raises(AdminError, match="answered 401"):
                await stand.ask(lambda client: client.status(), "wrong")

    asyncio.run(run())


def test_each_fault_is_answered_in_words_and_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            version = stand.server.dispatcher.knob_version
            for method, path, body, expected, key, text in FAULTS:
                status, content = await asked(stand, method, path, body)
                (fault,) = content["faults"]
                assert (status, fault["key"]) == (expected, key), (path, body, content)
                assert text in fault["text"], (path, body)
            assert stand.server.dispatcher.knob_version == version
            assert not stand.server.gateway.is_draining

    asyncio.run(run())


def test_a_body_too_large_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            url = f"http://127.0.0.1:{stand.server.admin_port}/admin/knobs"
            headers = {"authorization": f"Bearer {TOKEN}"}
            async with aiohttp.ClientSession(headers=headers) as session:  # noqa: SIM117
                async with session.put(url, data=io.BytesIO(b"x" * 3_000_000)) as answer:
                    assert answer.status == 413

    asyncio.run(run())


def test_a_proposal_of_nobody_is_taken_and_not_followed(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            body = {"values": VALUES, "state_at_s": stand.server.clock(), "source": "x"}
            status, content = await asked(stand, "PUT", "/admin/knobs", msgspec.json.encode(body))
            assert status == 200
            assert (content["is_judged"], content["ruler"]) == (False, "scheduler")
            assert stand.server.steering.counts.num_ignored == 1

    asyncio.run(run())


def test_the_state_travels_bit_for_bit_with_its_clock(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            with stand.client() as client:
                state = await asyncio.to_thread(client.state)
                clock = client.clock
            own = stand.server.control.state(state.now_s)
            assert state.values[Node.REPLICA].shape == own.values[Node.REPLICA].shape
            assert np.array_equal(
                state.feature(Node.REPLICA, "outstanding_requests"),
                own.feature(Node.REPLICA, "outstanding_requests"),
            )
            assert clock["window_s"] == 0.1
            assert 0.0 <= clock["now_s"] - clock["window_at_s"] < 0.1

    asyncio.run(run())


def test_a_window_says_what_happened_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    def meter(totals: DispatchTotals, now_s: float) -> WindowMeter:
        begun.set()
        return WindowMeter(totals, now_s)

    monkeypatch.setattr(admin_host, "WindowMeter", meter)

    async def run() -> None:
        async with standing(tmp_path) as stand:
            await stand.post()
            waiting = asyncio.create_task(stand.ask(lambda client: client.advance(1.0)))
            await begun.wait()
            for _ in range(3):
                await stand.post()
            outcome = await waiting
            assert (outcome.num_arrived, outcome.num_finished) == (3, 3)
            assert outcome.end_s - outcome.start_s >= 1.0

    asyncio.run(run())


def test_a_replica_is_drained_and_serves_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:

            def may_take() -> object:
                return stand.server.status()["replicas"][0]["may_take"]

            answer = await stand.ask(lambda client: client.order_replica("local/tiny-0", "drain"))
            assert answer == {
                "replica": "local/tiny-0", "state": "draining", "outstanding_requests": 0,
            }  # fmt: skip
            await stand.until(lambda: may_take() == "is taken out of service by the plan")
            for _ in range(6):
                await stand.post()
            counted = [len(e.batch.running) for e in stand.engines]
            assert counted == [0, 0]
            assert may_take() == "is taken out of service by the plan"
            found = [
                stand.server.placements.find(request_id)
                for request_id in list(stand.server.placements._found)
            ]
            assert {each["replica"] for each in found if each is not None} == {"local/tiny-1"}
            await stand.ask(lambda client: client.order_replica("local/tiny-0", "undrain"))
            await stand.until(lambda: may_take() == "may take it")

    asyncio.run(run())


def test_a_request_tells_where_it_went(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            _, answer = await stand.post()
            lines = answer.split(b"\r\n\r\n")[0].decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines[1:])
            found = await stand.ask(lambda client: client.decision(headers["x-request-id"]))
            assert found["replica"] == headers["x-trimtab-replica"]
            assert (found["ending"], found["output_tokens"]) == ("finished", 3)

    asyncio.run(run())


def test_the_metrics_page_tells_of_requests_rulers_and_latencies(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    bundle = write_bundle(tmp_path)

    async def run() -> None:
        make = lambda path: Setter(ANALYTIC_SCORER_KNOBS)  # noqa: E731
        async with standing(tmp_path, policies=make, bundle_path=bundle) as stand:
            await stand.until(lambda: stand.server.status()["ruler"] == "policy")
            for _ in range(4):
                await stand.post(5, is_stream=True)
            page = f"http://127.0.0.1:{stand.server.gateway.port}/metrics"
            async with aiohttp.ClientSession() as session, session.get(page) as answer:
                text = await answer.text()
        samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["trimtab_ruler", ("ruler", "policy")] == 1
        assert samples["trimtab_requests_total", ("fate", "finished")] == 4
        assert samples["trimtab_doubts_total", ("doubt", "regret")] == 0
        who = (("kind", "interactive"), ("tenant", "default"))
        assert samples["trimtab_ttft_seconds_count", *who] == 4
        assert samples["trimtab_tpot_seconds_count", *who] == 4
        assert samples["trimtab_loop_failures_total", ("loop", "tick")] == 0

    asyncio.run(run())


def test_model_profiles_are_there_where_a_store_is_and_behind_the_token(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path, models_dir=tmp_path / "models") as stand:
            assert await asked(stand, "GET", "/v1/model-profiles") == (200, {"models": []})
            assert (await asked(stand, "GET", "/v1/model-profiles", token="x"))[0] == 401

    asyncio.run(run())


def test_a_port_where_nobody_listens_is_said_so() -> None:
    client = AdminClient("http://127.0.0.1:1", TOKEN, timeout_s=1.0)
    with pytest.raises(AdminError, match=r"admin port http://127\.0\.0\.1:1/admin/status: C"):
        client.status()


@pytest.mark.parametrize("url", ["127.0.0.1:80", "https://x:1", "http://x"])
def test_an_admin_url_must_be_http_with_a_port(url: str) -> None:
    with pytest.raises(ValueError, match="admin URL must be http://HOST:PORT"):
        AdminClient(url, TOKEN)


def test_a_missing_token_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="cannot be read"):
        read_token(tmp_path / "none")

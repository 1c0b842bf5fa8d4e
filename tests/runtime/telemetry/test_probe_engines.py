"""Engines asked for their pages: slow, broken and restarted ones, and a real llama.cpp server."""

import asyncio
import http.server
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trimtab.runtime.telemetry.frames import Sample, decode
from trimtab.runtime.telemetry.probes.backends import BACKENDS
from trimtab.runtime.telemetry.probes.engine_pages_probe import (
    EnginePagesProbe,
    HttpPage,
    PageReader,
)
from trimtab.runtime.telemetry.probes.runner import Place, ProbeRunner, Timing
from trimtab.runtime.telemetry.signals import SIGNALS_BY_SCOPE, Scope, signal_index
from trimtab.runtime.telemetry.transport import InProcessTransport

PAGE = "vllm:num_requests_running 3\n"


class Engine:
    """Answers with a page, an error, or late."""

    def __init__(self) -> None:
        self.answer: str | Exception = PAGE

    def __call__(self) -> str:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_reader() -> tuple[PageReader, Engine, Clock]:
    engine, clock = Engine(), Clock()
    return PageReader("m0", engine, period_s=0.1, clock=clock), engine, clock


def known(row: np.ndarray) -> dict[str, float]:
    names = [signal.name for signal in SIGNALS_BY_SCOPE[Scope.REPLICA]]
    values = zip(names, row, strict=True)
    return {name: float(value) for name, value in values if not np.isnan(value)}


def test_a_page_ages_until_only_its_age_is_left() -> None:
    reader, _, clock = make_reader()
    assert known(reader.row(max_age_s=5.0)) == {}
    reader.fetch_once()
    assert known(reader.row(max_age_s=5.0)) == {"running_requests": 3.0, "page_age_s": 0.0}
    clock.now_s = 5.0
    assert known(reader.row(max_age_s=5.0)) == {"running_requests": 3.0, "page_age_s": 5.0}
    clock.now_s = 5.1
    assert known(reader.row(max_age_s=5.0)) == {"page_age_s": 5.1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [(ConnectionRefusedError("refused"), "refused"), ("<html>", "no metric of a known engine")],
)
def test_a_fault_is_counted_and_logged_when_it_is_new(
    answer: str | Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, engine, _ = make_reader()
    engine.answer = answer
    for _ in range(3):
        reader.fetch_once()
    assert reader.num_failed == 3
    assert len(caplog.messages) == 1
    assert "metrics page of replica 'm0' was not read" in caplog.text
    assert said in caplog.text
    engine.answer = PAGE
    reader.fetch_once()
    assert known(reader.row(max_age_s=5.0))["running_requests"] == 3.0
    engine.answer = answer
    reader.fetch_once()
    assert len(caplog.messages) == 2


def test_an_engine_that_hangs_delays_neither_a_sample_nor_the_other_engines() -> None:
    release, answered = threading.Event(), threading.Event()

    def hanging() -> str:
        release.wait(60.0)
        return PAGE

    def healthy() -> str:
        answered.set()
        return PAGE

    probe = EnginePagesProbe({"hanging": hanging, "healthy": healthy}, period_s=0.005)
    try:
        assert answered.wait(60.0)
        rows = [known(row) for row in probe.sample()[Scope.REPLICA]]
        while not rows[1]:
            rows = [known(row) for row in probe.sample()[Scope.REPLICA]]
        assert probe.members.replicas == ("hanging", "healthy")
        assert rows[0] == {}
        assert rows[1]["running_requests"] == 3.0
    finally:
        release.set()
        probe.close()
        probe.close()


@pytest.mark.parametrize("url", ["https://host/metrics", "ftp://host", "localhost:8000", ""])
def test_an_address_must_be_plain_http(url: str) -> None:
    with pytest.raises(ValueError, match=r"must be http://HOST:PORT/metrics, got '.*'"):
        HttpPage(url)


class _Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = PAGE.encode()
        self.send_response(200 if self.path == "/metrics" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_page_comes_over_http_and_its_path_may_be_left_out(page_server: str) -> None:
    for address in (page_server, f"{page_server}/", f"{page_server}/metrics"):
        page = HttpPage(address)
        assert page() == page() == PAGE
        page.close()


def test_another_status_is_an_error_that_says_so(page_server: str) -> None:
    with pytest.raises(ValueError, match="/stats answered 404 Not Found, expected 200"):
        HttpPage(f"{page_server}/stats")()


def test_an_answer_that_breaks_off_is_an_error_and_no_page() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"

    def answer_half(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(head + PAGE.encode())

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_half, args=(server,))
        thread.start()
        with pytest.raises(ValueError, match=f"/metrics broke off after {len(PAGE)} of 900 bytes"):
            HttpPage(f"http://127.0.0.1:{server.getsockname()[1]}")()
        thread.join()


def test_restarts_and_cut_pages_are_counted() -> None:
    reader, engine, _ = make_reader()
    both = 'vllm:num_requests_running{{engine="0"}} {}\nvllm:num_requests_running{{engine="1"}} 2\n'
    for page in ("vllm:num_preemptions_total 5\n", "vllm:num_preemptions_total 1\n"):
        engine.answer = page
        reader.fetch_once()
    assert (reader.num_restarts, reader.num_cut) == (1, 0)
    engine.answer = both.format(3)
    reader.fetch_once()
    assert known(reader.row(5.0))["running_requests"] == 5.0
    engine.answer = engine.answer.splitlines()[0] + "\n"
    reader.fetch_once()
    assert "running_requests" not in known(reader.row(5.0))
    assert (reader.num_restarts, reader.num_cut) == (1, 1)


def complete(address: str, num_tokens: int) -> None:
    body = {"prompt": "route this", "n_predict": num_tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["tokens_predicted"] == num_tokens


def test_a_real_llama_cpp_server_is_sampled_with_its_host(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="extra engines is not installed: gguf writes the model")
    pytest.importorskip("xllamacpp", reason="extra engines is not installed: llama.cpp's server")
    from tiny_llama import serving, write_model

    write_model(tmp_path / "model.gguf")

    async def sampled_while_serving(address: str) -> list[Sample]:
        transport = InProcessTransport()
        inbox = await transport.subscribe("trimtab.sample.r0", 10_000)
        probe = BACKENDS["host"]({"llama-0": address})
        place = Place(probe="p0", server="s0", rack="r0")
        runner = ProbeRunner(probe, place, transport, timing=Timing(period_s=0.02))
        running = asyncio.create_task(runner.run())
        samples: list[Sample] = []
        try:
            for wanted in (0.0, 8.0, 20.0):  # tokens counted since the first sample
                if wanted:
                    await asyncio.to_thread(complete, address, 8 if wanted == 8 else 12)
                async with asyncio.timeout(60.0):
                    while not samples or output_tokens(samples[-1]) != wanted:
                        await inbox.wait(1.0)
                        samples += [s for s in map(decode, inbox.take()) if isinstance(s, Sample)]
        finally:
            runner.stop()
            await running
            probe.close()
        return samples

    with serving(tmp_path / "model.gguf") as address:
        samples = asyncio.run(sampled_while_serving(address))
    last = row_of(samples[-1], Scope.REPLICA)
    assert last["running_requests"] == last["waiting_requests"] == 0.0
    assert last["prompt_computed_tokens"] > 0
    assert last["decode_busy_s"] > 0
    assert last["page_age_s"] < 5.0
    host = row_of(samples[-1], Scope.SERVER)
    assert host["cpu_total_s"] >= host["cpu_busy_s"] >= 0
    assert host["memory_bytes"] > 2**28


def row_of(sample: Sample, scope: Scope) -> dict[str, float]:
    signals = SIGNALS_BY_SCOPE[scope]
    row = np.frombuffer(sample.blocks[scope], "<f4")
    return {signal.name: float(value) for signal, value in zip(signals, row, strict=True)}


def output_tokens(sample: Sample) -> float:
    row = np.frombuffer(sample.blocks[Scope.REPLICA], "<f4")
    return float(row[signal_index(Scope.REPLICA, "output_tokens")])

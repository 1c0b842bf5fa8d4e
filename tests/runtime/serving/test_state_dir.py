"""A gateway's directory: one process has it, and what was learned there is not lost."""

import asyncio
import os
from pathlib import Path

import pytest
from server_stand import standing

from trimtab.runtime.serving.state_dir import LEARNED_FILE, owned
from trimtab.traces.errors import ConfigError


def test_a_directory_that_is_in_use_is_refused_with_its_owner(tmp_path: Path) -> None:
    with owned(tmp_path / "state") as directory:
        expected = f"'{directory}' is in use by the gateway with process id {os.getpid()}"
        with pytest.raises(ConfigError, match=expected), owned(directory):
            pass
    with owned(directory):
        pass


def test_a_second_gateway_leaves_the_first_alone(tmp_path: Path) -> None:
    async def run() -> None:
        async with standing(tmp_path) as stand:
            with pytest.raises(ConfigError, match="give this one another --dir"):
                async with standing(tmp_path):
                    pass
            status, _ = await stand.post()
            assert status == 200

    asyncio.run(run())


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    async def run() -> float:
        async with standing(tmp_path) as stand:
            before = float(stand.server.reader.state.lengths["num_learned"][0])
            for _ in range(5):
                await stand.post()
            return before

    assert asyncio.run(run()) == 0
    assert asyncio.run(run()) == 5


def test_a_file_that_does_not_fit_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / LEARNED_FILE).write_bytes(b"not of this kind")

    async def run() -> None:
        async with standing(tmp_path) as stand:
            status, _ = await stand.post()
            assert status == 200

    asyncio.run(run())
    assert "cannot be read" in caplog.text

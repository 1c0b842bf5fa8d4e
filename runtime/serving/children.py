"""Processes that serve a gateway from beside: watched, restarted with back-off, ended with it.

None of them is needed for a request; what is missing when one is gone is the gateway's to bear.

Does not know: what a process does.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

_LOG = logging.getLogger(__name__)

_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONG_LIFE_S = 0.2, 10.0, 30.0
_STOP_S = 3.0


class Child:
    """One Python module that runs as a process of its own."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.num_restarts = 0
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of its process; None while there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Keep the process alive from here on."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        num_short_lives = 0
        while True:
            began_at_s = loop.time()
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL
            )
            code = await self._process.wait()
            lived_s = loop.time() - began_at_s
            num_short_lives = 0 if lived_s > _LONG_LIFE_S else num_short_lives + 1
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(num_short_lives - 1, 10))
            _LOG.warning(
                "%s ended with code %s after %.1f s; it restarts in %.1f s",
                self.name, code, lived_s, wait_s,
            )  # fmt: skip
            await asyncio.sleep(wait_s)
            self.num_restarts += 1

    def kill(self) -> None:
        """Kill the process, as it does not answer; it restarts by itself."""
        if self.pid is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def stop(self) -> None:
        """End the process for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            # A stopped process hears nothing else.
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

"""Reads the metrics pages of a server's engines, each in a thread of its own.

An engine that is slow to answer never delays a sample: the sample holds the newest page that came,
with its age, and nothing at all once that page is too old.

Does not know: what is on a page (`engine_page.py`), or the host and its GPUs.
"""

import http.client
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import numpy as np

from ..signals import SIGNALS_BY_SCOPE, Scope, signal_index
from .engine_page import EnginePage
from .probe import FloatArray, Members, Readings

_LOG = logging.getLogger(__name__)
_AGE_COLUMN: Final = signal_index(Scope.REPLICA, "page_age_s")
_MAX_PAGE_BYTES: Final = 8 * 1024 * 1024

# Close waits so long for a request that is under way.
_PATIENCE_S: Final = 1.0

Page = str | Callable[[], str]
"""An http address, or what returns the text of a page or raises OSError or ValueError."""


class PageReader:
    """Fetches one engine's page over and over, and keeps the signals of the newest."""

    def __init__(
        self, name: str, page: Page, *, period_s: float, clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._fetch = HttpPage(page) if isinstance(page, str) else page
        self._period_s = period_s
        self._clock = clock
        self._page = EnginePage()
        self._newest: tuple[float, FloatArray] | None = None
        self._last_fault = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"page-{name}", daemon=True)
        self.num_failed = 0
        """Pages that did not come or could not be read."""

    @property
    def num_restarts(self) -> int:
        """Times that the engine's counters began anew."""
        return self._page.num_restarts

    @property
    def num_cut(self) -> int:
        """Pages of which a part was left out, as it was not whole."""
        return self._page.num_cut

    def start(self) -> None:
        """Begin to fetch, in a thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop fetching; a request that hangs is left behind."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_PATIENCE_S)

    def fetch_once(self) -> None:
        """Fetch the page and read it; what fails is counted, and logged when it is new."""
        asked_at_s = self._clock()
        try:
            self._newest = (asked_at_s, self._page.read(self._fetch(), asked_at_s))
            self._last_fault = ""
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.num_failed += 1
            fault = f"{type(error).__name__}: {error}"
            if fault != self._last_fault:
                _LOG.warning("metrics page of replica %r was not read: %s", self._name, fault)
            self._last_fault = fault

    def row(self, max_age_s: float) -> FloatArray:
        """Return the newest signals and their age; only the age if they are too old."""
        newest = self._newest
        if newest is None:
            return np.full(len(SIGNALS_BY_SCOPE[Scope.REPLICA]), np.nan)
        read_at_s, values = newest
        age_s = self._clock() - read_at_s
        row = values.copy() if age_s <= max_age_s else np.full_like(values, np.nan)
        row[_AGE_COLUMN] = age_s
        return row

    def _run(self) -> None:
        while not self._stop.is_set():
            started_at_s = time.monotonic()
            self.fetch_once()
            self._stop.wait(max(0.0, self._period_s - (time.monotonic() - started_at_s)))
        if isinstance(self._fetch, HttpPage):
            self._fetch.close()


class EnginePagesProbe:
    """Samples replicas by the metrics pages of their engines."""

    def __init__(
        self,
        pages: Mapping[str, Page],
        *,
        period_s: float = 0.1,
        max_age_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the page of each named replica."""
        self._members = Members(replicas=tuple(pages))
        self._max_age_s = max_age_s
        self._readers = [
            PageReader(name, page, period_s=period_s, clock=clock) for name, page in pages.items()
        ]
        for reader in self._readers:
            reader.start()

    @property
    def members(self) -> Members:
        """The replicas, no GPUs."""
        return self._members

    @property
    def num_failed(self) -> int:
        """Pages that did not come or could not be read, of all replicas."""
        return sum(reader.num_failed for reader in self._readers)

    @property
    def num_restarts(self) -> int:
        """Times that engines' counters began anew, of all replicas."""
        return sum(reader.num_restarts for reader in self._readers)

    @property
    def num_cut(self) -> int:
        """Pages of which a part was left out, as it was not whole, of all replicas."""
        return sum(reader.num_cut for reader in self._readers)

    def sample(self) -> Readings:
        """Return the newest page of each replica, without waiting for any."""
        readings = self._members.absent()
        for row, reader in enumerate(self._readers):
            readings[Scope.REPLICA][row] = reader.row(self._max_age_s)
        return readings

    def close(self) -> None:
        """Stop fetching."""
        for reader in self._readers:
            reader.close()


class HttpPage:
    """A page behind an http address; keeps its connection, and opens a new one after a fault."""

    def __init__(self, url: str, timeout_s: float = 2.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            msg = (
                f"address of a metrics page must be http://HOST:PORT/metrics, got {url!r}; "
                "probes read engines of their own server, where there is no TLS"
            )
            raise ValueError(msg)
        self._connection = http.client.HTTPConnection(
            parts.hostname, parts.port or 80, timeout=timeout_s
        )
        self._path = parts.path if parts.path not in ("", "/") else "/metrics"

    def __call__(self) -> str:
        """Return the text of the page."""
        try:
            return self._get()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    def _get(self) -> str:
        self._connection.request("GET", self._path, headers={"Accept": "text/plain"})
        response = self._connection.getresponse()
        length = response.length  # None if the answer does not say how long it is
        body = response.read(_MAX_PAGE_BYTES + 1)
        if response.status != http.HTTPStatus.OK:
            msg = f"{self._path} answered {response.status} {response.reason}, expected 200"
            raise ValueError(msg)
        if len(body) > _MAX_PAGE_BYTES:
            msg = f"{self._path} is longer than {_MAX_PAGE_BYTES} bytes: no metrics page"
            raise ValueError(msg)
        if length is not None and len(body) < length:
            msg = f"{self._path} broke off after {len(body)} of {length} bytes"
            raise ValueError(msg)
        return body.decode(errors="replace")

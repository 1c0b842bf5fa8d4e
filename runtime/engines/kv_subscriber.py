"""Listens to the KV events of a fleet's engines over ZMQ, in a thread of its own.

Frames of an event: topic, sequence number (8 bytes, big-endian), payload. Missed batches are asked
for at the engine's replay socket: send the first number wanted; what comes ends with the number -1.
vLLM sends the topic before each of them and SGLang does not. A connection that breaks is noticed,
as the engine behind it may come back as another; at a new one all that the engine still has is
asked for.

Does not know: the order of batches (`kv_stream.py`), or what an event says.
Source: ZmqEventPublisher of vLLM 0.32.0 and of SGLang 0.5.10.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...traces.errors import MissingExtraError
from .engine_error import EngineError
from .kv_stream import Batch, EventSink, KvStream, StreamCounts
from .live_replica import LiveReplica

_LOG = logging.getLogger(__name__)

_NUMBER_BYTES: Final = 8
_END: Final = (-1).to_bytes(_NUMBER_BYTES, "big", signed=True)
# Engines keep 10,000 batches (buffer_steps of both).
_MAX_REPLAYED: Final = 20_000
# The publisher looks at its replay socket between events, at least every 0.1 s.
_REPLAY_SILENCE_S: Final = 1.0
_REPLAY_S: Final = 5.0
# High-water mark of both engines' publishers, batches.
_MAX_QUEUED: Final = 100_000
# A publisher takes a moment to note a new listener; what it says meanwhile is asked for.
_ASK_AGAIN_S: Final = 1.0
_POLL_MS: Final = 50
# Taken from one engine before the others have their turn.
_MAX_IN_A_ROW: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSource:
    """Where an engine's KV events come from."""

    replica: int
    """Number in the fleet."""
    events: str
    """ZMQ address; `bind:` before it if the engine connects to us, as vLLM does to one without `*`.
    """
    replay: str | None = None
    """ZMQ address at which missed batches are asked for."""

    @property
    def is_bound(self) -> bool:
        """Whether we listen and the engine connects."""
        return self.events.startswith("bind:")

    @property
    def address(self) -> str:
        """ZMQ address of the events."""
        return self.events.removeprefix("bind:")


def kv_sources(replicas: Sequence[LiveReplica]) -> list[KvSource]:
    """Return the sources of those replicas that publish KV events."""
    return [
        KvSource(replica=number, events=replica.kv_events, replay=replica.kv_replay)
        for number, replica in enumerate(replicas)
        if replica.kv_events is not None
    ]


class KvSubscriber:
    """Hears the KV events of several engines, and keeps an index of what they hold."""

    def __init__(self, sources: Sequence[KvSource], sink: EventSink) -> None:
        """Open sockets; events are taken once started.

        Raises: MissingExtraError without pyzmq; EngineError if an address is none or is taken.
        """
        self._zmq = _import_zmq()
        self._context = self._zmq.Context()
        self._lock = threading.Lock()  # of the streams: the thread's, and who says what sleeps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._sink = sink
        self._streams: dict[int, KvStream] = {}
        self._by_socket: dict[Any, KvStream] = {}
        self._by_monitor: dict[Any, KvStream] = {}
        for source in sources:
            self._add(source)
        self._is_asleep: dict[int, bool] = {}
        self._to_ask: list[tuple[float, KvStream]] = []
        self.num_strange = 0
        """Messages that are no events: other frames than three, or a number of other length."""

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and close every socket."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for socket in self._by_socket:
            socket.disable_monitor()
        for socket in (*self._by_socket, *self._by_monitor):
            socket.close(linger=0)
        self._context.destroy(linger=0)

    @property
    def addresses(self) -> Mapping[int, str]:
        """Where each replica's events come in; with the port that `bind:` with `*` got."""
        option = self._zmq.LAST_ENDPOINT
        sockets = zip(self._streams, self._by_socket, strict=True)
        return {replica: socket.getsockopt_string(option) for replica, socket in sockets}

    @property
    def is_listening(self) -> bool:
        """Whether events are taken."""
        return self._thread.is_alive()

    @property
    def counts(self) -> Mapping[int, StreamCounts]:
        """What came from each replica."""
        return {replica: stream.counts for replica, stream in self._streams.items()}

    def see_awake(self, replica: int, is_awake: bool | None) -> None:
        """Take an engine's sleep gauge, None if it is absent; who falls asleep holds nothing."""
        if replica not in self._streams or is_awake is None:
            return
        was_asleep, self._is_asleep[replica] = self._is_asleep.get(replica, False), not is_awake
        if not is_awake and not was_asleep:
            self.see_reset(replica)

    def see_reset(self, replica: int) -> None:
        """Take it that an engine dropped its cache; an idle one says so with its next step only."""
        if replica in self._streams:
            with self._lock:
                self._streams[replica].was_reset()

    def _run(self) -> None:
        poller = self._zmq.Poller()
        for socket in (*self._by_socket, *self._by_monitor):
            poller.register(socket, self._zmq.POLLIN)
        try:
            while not self._stop.is_set():
                for socket, _ in poller.poll(_POLL_MS):
                    with self._lock:
                        if socket in self._by_monitor:
                            self._see_connection(socket.recv_multipart(), self._by_monitor[socket])
                        else:
                            self._take(socket, self._by_socket[socket])
                self._catch_up()
        except Exception:
            _LOG.exception("KV events are heard no more: what engines hold is not known")
            for replica in self._streams:
                self._sink.clear(replica)

    def _add(self, source: KvSource) -> None:
        zmq = self._zmq
        socket = self._context.socket(zmq.SUB)
        socket.set_hwm(_MAX_QUEUED)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        stream = KvStream(source.replica, self._sink, self._replay_of(source))
        self._by_socket[socket] = self._by_monitor[monitor] = stream
        self._streams[source.replica] = stream
        try:
            (socket.bind if source.is_bound else socket.connect)(source.address)
        except zmq.ZMQError as error:
            self.close()
            does = "listen for" if source.is_bound else "connect to"
            msg = (
                f"cannot {does} KV events of replica {source.replica} at {source.address!r}: "
                f"{error}; expected tcp://HOST:PORT"
            )
            raise EngineError(msg) from error

    def _see_connection(self, frames: Sequence[bytes], stream: KvStream) -> None:
        """Forget at a broken connection, and ask for everything at a new one."""
        event = int.from_bytes(frames[0][:2], sys.byteorder)  # as libzmq lays it out
        if event == self._zmq.EVENT_DISCONNECTED:
            stream.disconnected()
        else:
            now_s = time.monotonic()
            self._to_ask += [(now_s, stream), (now_s + _ASK_AGAIN_S, stream)]

    def _catch_up(self) -> None:
        now_s = time.monotonic()
        due = [stream for at_s, stream in self._to_ask if at_s <= now_s]
        if due:
            self._to_ask = [(at_s, stream) for at_s, stream in self._to_ask if at_s > now_s]
        for stream in due:
            with self._lock:
                stream.catch_up()

    def _take(self, socket: Any, stream: KvStream) -> None:
        for _ in range(_MAX_IN_A_ROW):
            try:
                frames = socket.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            if len(frames) != 3 or len(frames[1]) != _NUMBER_BYTES:
                self.num_strange += 1
            else:
                stream.take(int.from_bytes(frames[1], "big"), frames[2])

    def _replay_of(self, source: KvSource) -> Any:
        if source.replay is None:
            return None
        return lambda first: self._replayed(str(source.replay), first)

    def _replayed(self, address: str, first: int) -> Iterator[Batch]:
        """Yield what an engine still has from a number on; less if it falls silent."""
        zmq = self._zmq
        socket = self._context.socket(zmq.DEALER)
        try:
            socket.connect(address)
            socket.send_multipart([b"", first.to_bytes(_NUMBER_BYTES, "big")])
            end_at_s = time.monotonic() + _REPLAY_S
            for _ in range(_MAX_REPLAYED):
                left_s = min(_REPLAY_SILENCE_S, end_at_s - time.monotonic())
                if left_s <= 0 or not socket.poll(left_s * 1e3):
                    _LOG.warning("replay at %s broke off: nothing for %.1f s", address, left_s)
                    return
                frames = socket.recv_multipart()
                if len(frames) < 3 or frames[-2] == _END or len(frames[-2]) != _NUMBER_BYTES:
                    return
                yield int.from_bytes(frames[-2], "big"), frames[-1]
        finally:
            socket.close(linger=0)


def _import_zmq() -> Any:
    try:
        import zmq
    except ImportError as error:
        msg = "KV events need pyzmq; install it with: pip install 'trimtab[engines]'"
        raise MissingExtraError(msg) from error
    return zmq

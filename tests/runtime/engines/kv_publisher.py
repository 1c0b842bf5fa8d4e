"""A publisher of KV events as engines have one, that loses, repeats and forgets on demand."""

import threading
from collections import deque

import zmq
from kv_payloads import payload_of

END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """Binds both sockets on loopback; answers replays in a thread."""

    def __init__(
        self,
        *,
        sends_topic: bool = True,
        max_kept: int = 10_000,
        address: str = "",
        replay: str = "",
    ) -> None:
        self.context = zmq.Context()
        self.events_socket = self.context.socket(zmq.XPUB)  # tells of subscribers
        self.events_socket.bind(address or "tcp://127.0.0.1:*")
        self.events = self.events_socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._replay_socket = self.context.socket(zmq.ROUTER)
        self._replay_socket.bind(replay or "tcp://127.0.0.1:*")
        self.replay = self._replay_socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._sends_topic = sends_topic
        self.kept: deque[tuple[int, bytes]] = deque(maxlen=max_kept)
        self.sequence = 0
        self.num_replays = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def wait_for_subscriber(self) -> None:
        assert self.events_socket.poll(5000), "nobody subscribed"
        self.events_socket.recv()

    def publish(self, *events: object, is_lost: bool = False) -> tuple[int, bytes]:
        """Number and keep a batch; send it unless it is to be lost on its way."""
        batch = self.sequence, payload_of(*events, at_s=float(self.sequence))
        self.sequence += 1
        self.kept.append(batch)
        if not is_lost:
            self.send(*batch)
        return batch

    def send(self, sequence: int, payload: bytes) -> None:
        frames = [b"kv@replica@m", sequence.to_bytes(8, "big"), payload]
        self.events_socket.send_multipart(frames)

    def restart(self) -> None:
        """Be another engine at the same address: numbers begin at 0, nothing is kept."""
        self.sequence = 0
        self.kept.clear()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.context.destroy(linger=0)

    def _answer(self) -> None:
        topic = [b"kv@replica@m"] if self._sends_topic else []
        while not self._stop.is_set():
            if not self._replay_socket.poll(20):
                continue
            client, _, start = self._replay_socket.recv_multipart()
            self.num_replays += 1
            first = int.from_bytes(start, "big")
            for sequence, payload in list(self.kept):
                if sequence >= first:
                    number = sequence.to_bytes(8, "big")
                    self._replay_socket.send_multipart([client, b"", *topic, number, payload])
            end = [b""] if self._sends_topic else []
            self._replay_socket.send_multipart([client, b"", *end, END, b""])

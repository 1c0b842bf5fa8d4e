"""One request's life in the gateway: understood, placed, sent, answered; placed again if need be.

Nothing is sent to a client before a replica answers, so until then the request can go elsewhere.

Does not know: sockets of clients (`client.py`) or replicas (`upstream.py`).
"""

import logging
from typing import TYPE_CHECKING

from ..dispatcher.request import Ending, Placement, Refusal, RequestEnd, RequestFacts
from ..understanding.reader import Call, RequestFault
from .answer_head import AnswerHead
from .answers import answer, error_body, error_event, refusal_headers, wrong_key
from .usage import AnswerUsage

if TYPE_CHECKING:
    from .client import ClientConnection
    from .gateway import Gateway
    from .request_head import RequestHead
    from .upstream import UpstreamConnection

# Statuses with which an engine says that another should be asked: it is loading, or a proxy before
# it found nobody.
_ELSEWHERE = (502, 503)
# Kept connections that may turn out to be closed before one of them counts as a failure.
_MAX_STALE = 3
_log = logging.getLogger(__name__)


class Exchange:
    """A request and its answer."""

    __slots__ = (
        "_attempts_left", "_body", "_body_pieces", "_gateway", "_is_chunked", "_num_stale",
        "_pending_head", "_status", "_usage", "attempt", "client", "deadline_at_s",
        "facts", "has_begun", "head", "id_line", "is_ended", "is_event_stream", "placement",
        "request_id", "upstream",
    )  # fmt: skip

    def __init__(self, gateway: "Gateway", client: "ClientConnection", head: "RequestHead") -> None:
        self._gateway = gateway
        self.client, self.head = client, head
        self.request_id = gateway.request_id(head.headers.get(b"x-request-id"))
        self.id_line = b"x-request-id: %s\r\n" % self.request_id.encode()
        self.upstream: UpstreamConnection | None = None
        self.placement: Placement | None = None
        self.facts: RequestFacts | None = None
        self.attempt = 0
        """Changes whenever the request goes elsewhere, and when it ends."""
        self.has_begun = False
        """Whether the client has got the first byte of an answer."""
        self.is_ended = False
        self.is_event_stream = False
        self.deadline_at_s = float("inf")
        self._attempts_left = gateway.config.max_attempts - 1
        self._num_stale = 0
        self._status = 0
        self._is_chunked = False
        self._pending_head = b""
        self._body_pieces: list[bytes] = []
        self._usage = AnswerUsage()

    def begin(self, body: bytes, now_s: float) -> None:
        """Understand the request and send it to a replica, or say why not."""
        try:
            self._begin(body, now_s)
        except Exception as error:
            self._break_down(error)

    def _begin(self, body: bytes, now_s: float) -> None:
        gateway, head = self._gateway, self.head
        tenant = gateway.tenants.find(head.headers.get(b"authorization"))
        if tenant is None:
            self._give_up(401, wrong_key())
            return
        call = Call(
            path=head.path, headers=head.headers, body=body, tenant=tenant,
            request_id=self.request_id, arrived_at_s=now_s,
        )  # fmt: skip
        try:
            reading = gateway.reader.read(call)
        except RequestFault as fault:
            body = error_body(fault.status, fault.code, fault.message, fault.param)
            self._give_up(fault.status, body)
            return
        self.facts = facts = reading.facts
        longest_at_s = now_s + gateway.config.request_timeout_s
        self.deadline_at_s = min(facts.deadline_at_s, longest_at_s)
        if gateway.trace_header is not None:
            self.head = head.add(b"traceparent", gateway.trace_header(facts))
        self._body = body if reading.body is None else reading.body
        self._settle(gateway.dispatcher.dispatch(facts, now_s))

    def _settle(self, chosen: Placement | Refusal) -> None:
        """Send the request where it was placed, or tell its client why it is not."""
        if isinstance(chosen, Refusal):
            self.placement = None
            body = error_body(chosen.status, chosen.code, chosen.message)
            self._give_up(chosen.status, body, refusal_headers(chosen))
            return
        self.placement = chosen
        self.attempt += 1
        pool = self._gateway.pools[chosen.replica]
        pool.exchanges.add(self)
        pool.send(self, self.head.forwarded(pool.request_lines, self.id_line, self._body))

    def is_waiting(self, attempt: int) -> bool:
        """Whether the request is still at the attempt of this number."""
        return not self.is_ended and self.attempt == attempt

    # Called by the upstream connection.

    def on_head(self, head: AnswerHead, length_line: bytes) -> bool:
        """Take the head of an answer; return whether its body is wanted.

        `length_line` is the header that tells the body's length, empty if none does.
        """
        status = head.status
        if status in _ELSEWHERE and self._attempts_left > 0:
            self._detach()
            self._retry(f"answered {status}")
            return False
        placement, client = self.placement, self.client
        assert placement is not None
        self._status = status
        self.is_event_stream = head.is_event_stream
        self._is_chunked = not head.has_length and not self.head.is_old
        end = b"transfer-encoding: chunked\r\n\r\n" if self._is_chunked else b"\r\n"
        if self.head.is_old and not head.has_length:
            client.is_last = True
        if client.is_last:
            end = b"connection: close\r\n" + end
        own_line = self._gateway.pools[placement.replica].answer_line
        self._pending_head = b"".join((head.lines, length_line, self.id_line, own_line, end))
        return True

    def on_whole(self, head: AnswerHead, body: bytes) -> None:
        """Take a whole answer at once; its head is known from another one."""
        if self.on_head(head, b"content-length: %d\r\n" % len(body)):
            self.on_body(body)
            self.on_complete()

    def on_body(self, data: bytes) -> None:
        """Take a piece of an answer's body."""
        self._body_pieces.append(data)

    def flush(self) -> None:
        """Pass on what has come; a head waits for its body, as until then all can start anew."""
        if not self._body_pieces:
            return
        body = self._take_body()
        if not self.is_event_stream:
            self._usage.take_part(body)
        self._write(body, is_whole=False)

    def on_complete(self) -> None:
        """The answer is whole."""
        body = self._take_body()
        if not self.is_event_stream:
            self._usage.take_body(body)
        self._write(body, is_whole=True)
        status = self._status
        if status < 400:
            ending = Ending.FINISHED
        else:
            ending = Ending.REFUSED if status < 500 else Ending.FAILED
        self._end(ending)
        self.client.on_answered()

    def on_upstream_lost(self, reason: str) -> None:
        """The connection to the replica is gone before the answer was whole."""
        upstream, self.upstream = self.upstream, None
        is_stale = upstream is not None and upstream.is_reused and not upstream.has_answered
        if is_stale and self._num_stale < _MAX_STALE and not self.has_begun:
            self._num_stale += 1
            assert self.placement is not None
            pool = self._gateway.pools[self.placement.replica]
            pool.exchanges.add(self)
            pool.send(self, self.head.forwarded(pool.request_lines, self.id_line, self._body))
            return
        if self.has_begun:
            self.cut(f"its replica {reason}")
        else:
            self._retry(reason)

    # Called by the gateway.

    def evict(self, reason: str) -> bool:
        """Go elsewhere, if nothing has been sent to the client; return whether it did."""
        if self.has_begun or self.is_ended:
            return False
        self._detach()
        self._gateway.counts.num_evicted += 1
        self._retry(reason)
        return True

    def cut(self, reason: str, ending: Ending = Ending.FAILED) -> None:
        """End an answer that has begun and cannot go on."""
        if self.is_ended:
            return
        self._detach()
        self._gateway.counts.num_cut += 1
        if self.is_event_stream:
            event = error_event("answer_cut", f"The answer was cut: {reason}.")
            if self._is_chunked:
                event = b"%x\r\n%s\r\n" % (len(event), event)
            self.client.write(event)
        self._end(ending)
        self.client.close()

    def on_deadline(self) -> None:
        """Nobody waits any longer."""
        if self.is_ended:
            return
        self._gateway.counts.num_timeouts += 1
        if self.has_begun:
            self.cut("its deadline passed", Ending.TIMED_OUT)
            return
        self._detach()
        self._end(Ending.TIMED_OUT, 504)
        text = "The request's deadline passed before a replica answered."
        self._answer(504, error_body(504, "deadline_exceeded", text))

    def abort(self) -> None:
        """Its client went away: so does the request."""
        if self.is_ended:
            return
        self._detach()
        self._gateway.counts.num_aborts += 1
        self._end(Ending.ABORTED)

    def pause(self, is_paused: bool) -> None:
        """Let the replica wait while the client does not read, or go on."""
        if self.upstream is not None and self.upstream.transport is not None:
            transport = self.upstream.transport
            if is_paused:
                transport.pause_reading()
            else:
                transport.resume_reading()

    # Its own.

    def _take_body(self) -> bytes:
        pieces = self._body_pieces
        if not pieces:
            return b""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def _write(self, body: bytes, *, is_whole: bool) -> None:
        """Send the head, if it is new, a piece of the body, and the end if this is all."""
        data = self._pending_head
        if body:
            self._note(body)
            data += b"%x\r\n%s\r\n" % (len(body), body) if self._is_chunked else body
        if is_whole and self._is_chunked:
            data += b"0\r\n\r\n"
        if data:
            self.has_begun = True
            self._pending_head = b""
            self.client.write(data)

    def _note(self, body: bytes) -> None:
        """Tell the dispatcher that something has come."""
        gateway, placement = self._gateway, self.placement
        assert placement is not None
        now_s = gateway.clock()
        if self.is_event_stream:
            self._usage.take_events(body)
        try:
            if self.is_event_stream and placement.first_token_at_s != placement.first_token_at_s:
                gateway.dispatcher.first_token(placement, now_s)
            gateway.dispatcher.progress(placement.replica, now_s)
        except Exception:
            self._note_fault()
        gateway.counts.body_bytes_out += len(body)

    def _detach(self) -> None:
        """Break off with the replica, which takes that for an abort."""
        upstream, self.upstream = self.upstream, None
        self.attempt += 1
        if upstream is not None:
            upstream.exchange = None
            upstream.close()

    def _retry(self, reason: str) -> None:
        """Place the request anew, if it may be."""
        gateway, placement = self._gateway, self.placement
        assert placement is not None
        gateway.pools[placement.replica].exchanges.discard(self)
        # What came of an answer that its client has not seen is forgotten.
        self._status, self._pending_head, self.is_event_stream = 0, b"", False
        self._body_pieces.clear()
        self._usage = AnswerUsage()
        if self._attempts_left <= 0:
            self._end(Ending.FAILED, 502)
            name = gateway.pools[placement.replica].replica.name
            text = f"Replica {name} {reason}, and so did those that were tried before it."
            self._answer(502, error_body(502, "upstream_error", text))
            return
        self._attempts_left -= 1
        gateway.counts.num_retries += 1
        try:
            self._settle(gateway.dispatcher.redispatch(placement, gateway.clock(), reason))
        except Exception as error:
            self._break_down(error)

    def _end(self, ending: Ending, status: int | None = None) -> None:
        """Take the request off its replica and tell the dispatcher what came of it."""
        self.is_ended = True
        placement, gateway = self.placement, self._gateway
        if placement is None:
            return
        gateway.pools[placement.replica].exchanges.discard(self)
        if status is None:
            status = self._status if self.has_begun else 0
        if self.has_begun:
            gateway.counts.count_answer(status)
        usage = self._usage
        end = RequestEnd(
            ending=ending, status=status, ended_at_s=gateway.clock(),
            output_tokens=usage.best_output_tokens, input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
        )  # fmt: skip
        try:
            gateway.dispatcher.finish(placement, end)
        except Exception:
            self._note_fault()

    def _break_down(self, error: Exception) -> None:
        """End the request for an error of this program's own, which must cost no other one."""
        self._note_fault()
        if self.is_ended:
            return
        if self.has_begun:
            self.cut("the gateway failed")
            return
        self._detach()
        self._end(Ending.FAILED, 500)
        text = f"The gateway failed on this request ({type(error).__name__}); its log says more."
        self._answer(500, error_body(500, "internal_error", text))

    def _note_fault(self) -> None:
        self._gateway.counts.num_faults += 1
        _log.exception("request %s: an error of the gateway's own", self.request_id)

    def _give_up(self, status: int, body: bytes, headers: bytes = b"") -> None:
        """Answer without a replica."""
        self.is_ended = True
        self._answer(status, body, headers)

    def _answer(self, status: int, body: bytes, headers: bytes = b"") -> None:
        self._gateway.counts.count_answer(status)
        headers += self.id_line
        client = self.client
        client.write(answer(status, body, headers=headers, is_last=client.is_last))
        client.on_answered()

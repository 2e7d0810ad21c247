# SPDX-License-Identifier: Apache-2.0
"""One QUIC connection of the load, on a socket of its own, with an HTTP/3 client on top.

Datagrams are read and written in batches, one flush a wake-up, so that the client is not what is measured.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted
from aioquic.tls import SessionTicket

from benchmarks.h3.servers import ANSWER_BYTES, SIZES

__all__ = ["Client", "Exchange", "LoadError"]

BURST = 64
RECEIVE_BUFFER = 8 << 20
SERVER = "127.0.0.1"


class LoadError(Exception):
    """The run says nothing: an answer was wrong, or none came."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request of a load, bytes of its body and of the answer's."""

    body: int = 1000
    answer: int = ANSWER_BYTES

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The request's head. Behind the name of a size is a model that answers so much."""
        model = self.answer if self.answer in SIZES else "m"
        return [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", f"/v2/models/{model}/infer".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(self.body).encode()),
        ]


class Client:
    """One connection. keep: told of each session ticket; ticket: to resume by."""

    def __init__(
        self,
        port: int,
        exchange: Exchange | None = None,
        *,
        keep: Callable[[SessionTicket], None] | None = None,
        ticket: SessionTicket | None = None,
    ) -> None:
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE, server_name="localhost"
        )
        configuration.session_ticket = ticket
        self.quic = QuicConnection(configuration=configuration, session_ticket_handler=keep)
        self.http: H3Connection | None = None
        self.ready = self.resumed = False
        self.started: dict[int, float] = {}
        self._exchange = exchange or Exchange()
        self._fields = self._exchange.fields
        self._body = b"{" + b" " * (self._exchange.body - 2) + b"}"
        self._received: dict[int, int] = {}
        self._address = (SERVER, port)
        self.socket = self._open()
        self.quic.connect(self._address, now=time.monotonic())

    def _open(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        opened.connect(self._address)
        opened.setblocking(False)
        return opened

    def move(self) -> None:
        """Go on from another port, as a NAT makes a client do that does not know of it."""
        self.socket.close()
        self.socket = self._open()

    def request(self, now: float) -> None:
        """Send one more."""
        assert self.http is not None
        stream_id = self.quic.get_next_available_stream_id()
        self.http.send_headers(stream_id, self._fields)
        self.http.send_data(stream_id, self._body, end_stream=True)
        self.started[stream_id] = now
        self._received[stream_id] = 0

    def receive(self, now: float) -> list[float]:
        """Read what is there; returns when each request that is now answered was sent."""
        for _ in range(BURST):
            try:
                datagram = self.socket.recv(2048)
            except BlockingIOError:
                break
            self.quic.receive_datagram(datagram, self._address, now)
        answered: list[float] = []
        while (event := self.quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self.http = H3Connection(self.quic)
                self.ready, self.resumed = True, event.session_resumed
            elif isinstance(event, ConnectionTerminated):
                raise LoadError(f"the server closed the connection: {event.reason_phrase or event.error_code}")
            if self.http is not None:
                for message in self.http.handle_event(event):
                    self._take(message, answered)
        return answered

    def _take(self, message: H3Event, answered: list[float]) -> None:
        if isinstance(message, HeadersReceived):
            status = dict(message.headers).get(b":status")
            if status != b"200":
                raise LoadError(f"answered with status {status!r}")
        elif isinstance(message, DataReceived):
            self._received[message.stream_id] += len(message.data)
        else:
            return
        if message.stream_ended:
            if (size := self._received.pop(message.stream_id)) != self._exchange.answer:
                raise LoadError(f"answered with {size} bytes; the upstream sends {self._exchange.answer}")
            answered.append(self.started.pop(message.stream_id))

    def flush(self, now: float) -> None:
        """Send what is due."""
        for datagram, _ in self.quic.datagrams_to_send(now):
            self.socket.send(datagram)

    def wait(self, selector: selectors.BaseSelector, until: float) -> None:
        """Until something came for this client alone, or its timer is due: then handle that. Raises LoadError."""
        now = time.monotonic()
        if now > until:
            raise LoadError("no answer in time")
        selector.select(max(0.0, min(self.quic.get_timer() or until, until) - now))
        now = time.monotonic()
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now)
        self.receive(now)
        self.flush(now)

    def close(self) -> None:
        """Tell the server, and let go."""
        self.quic.close()
        self.flush(time.monotonic())
        self.socket.close()

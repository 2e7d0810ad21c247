# SPDX-License-Identifier: Apache-2.0
"""Connections that carry token streams: HTTP/1.1 on TCP, with TLS or without, and HTTP/3.

What comes is stamped by the kernel when it comes, so the client's own slowness, and what it decrypts or parses, are
not measured. Nothing blocks: `receive` reads what is there.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Protocol

import httptools
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, HandshakeCompleted, StreamReset

__all__ = ["Http1Line", "Http3Line", "Line", "StreamError", "Taken"]

PATH = "/v1/completions"
HOST = "127.0.0.1"
BURST = 64
_RECEIVE_BUFFER = 8 << 20
_SO_TIMESTAMPNS = 35  # Linux; Python's socket module does not name it
_STAMP = struct.Struct("@qq")
_ANCILLARY = socket.CMSG_SPACE(_STAMP.size)

Taken = Callable[[int, int, bytes, bool], None]
"""Stream, when it came (ns, real time), bytes of its reply's body, whether they are the last."""


class StreamError(Exception):
    """The run says nothing: a stream was refused or broke off."""


class Line(Protocol):
    """One connection."""

    sock: socket.socket
    ready: bool
    """Whether a request can be sent."""

    @property
    def timer(self) -> float | None:
        """When `receive` is due even if nothing came, monotonic seconds."""
        ...

    def ask(self, body: bytes) -> int:
        """Send a request; the number of its stream."""
        ...

    def receive(self) -> None:
        """Take what is there, and answer what the protocol wants answered."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class Http1Line:
    """HTTP/1.1, one stream at a time. tls: encrypted, whoever the server is."""

    def __init__(self, port: int, taken: Taken, *, tls: bool) -> None:
        self.ready = not tls
        self.timer = None
        self.sock = socket.create_connection((HOST, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.sock.setblocking(False)
        self._taken = taken
        self._parser = httptools.HttpResponseParser(self)
        self._stream = 0
        self._came = 0
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _careless().wrap_bio(self._in, self._out) if tls else None
        if tls:
            self._shake_hands()

    def ask(self, body: bytes) -> int:
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        self._stream += 1
        if self._tls is None:
            self.sock.sendall(request)
        else:
            self._tls.write(request)
            self.sock.sendall(self._out.read())
        return self._stream

    def receive(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(65536, _ANCILLARY)
        except BlockingIOError:
            return
        self._came = _stamp(ancillary)
        if not data:
            raise StreamError("the server closed a connection")
        if self._tls is None:
            self._parser.feed_data(data)
            return
        self._in.write(data)
        if not self.ready:
            self._shake_hands()
        if self.ready:
            self._decrypt(self._tls)

    def close(self) -> None:
        self.sock.close()

    def on_body(self, data: bytes) -> None:
        """httptools: a part of the reply's body."""
        self._taken(self._stream, self._came, data, False)

    def on_message_complete(self) -> None:
        """httptools: the reply is whole."""
        if self._parser.get_status_code() != 200:
            raise StreamError(f"answered with status {self._parser.get_status_code()}")
        self._taken(self._stream, self._came, b"", True)

    def _shake_hands(self) -> None:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
            self.ready = True
        except ssl.SSLWantReadError:
            pass
        self.sock.sendall(self._out.read())

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        try:
            while data := tls.read(65536):
                self._parser.feed_data(data)
        except ssl.SSLWantReadError:
            return
        raise StreamError("the server closed a connection")


class Http3Line:
    """HTTP/3, as many streams at a time as the server grants."""

    def __init__(self, port: int, taken: Taken) -> None:
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE, server_name="localhost"
        )
        self.ready = False
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.sock.connect((HOST, port))
        self.sock.setblocking(False)
        self._taken = taken
        self._address = (HOST, port)
        self._quic = QuicConnection(configuration=configuration)
        self._http: H3Connection | None = None
        self._quic.connect(self._address, now=time.monotonic())
        self._flush()

    @property
    def timer(self) -> float | None:
        return self._quic.get_timer()

    def ask(self, body: bytes) -> int:
        assert self._http is not None
        stream_id = self._quic.get_next_available_stream_id()
        head = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", PATH.encode())]
        head += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self._http.send_headers(stream_id, head)
        self._http.send_data(stream_id, body, end_stream=True)
        self._flush()
        return stream_id

    def receive(self) -> None:
        for _ in range(BURST):
            try:
                datagram, ancillary, _, _ = self.sock.recvmsg(2048, _ANCILLARY)
            except BlockingIOError:
                break
            self._quic.receive_datagram(datagram, self._address, time.monotonic())
            self._pump(_stamp(ancillary))
        now = time.monotonic()
        if self.timer is not None and self.timer <= now:
            self._quic.handle_timer(now)
            self._pump(time.time_ns())
        self._flush()

    def close(self) -> None:
        self._quic.close()
        self._flush()
        self.sock.close()

    def _pump(self, came: int) -> None:
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                self._http = H3Connection(self._quic)
                self.ready = True
            elif isinstance(event, (ConnectionTerminated, StreamReset)):
                raise StreamError(f"broken off: {event}")
            if self._http is not None:
                for message in self._http.handle_event(event):
                    self._take(message, came)

    def _take(self, message: H3Event, came: int) -> None:
        if isinstance(message, HeadersReceived):
            status = dict(message.headers).get(b":status")
            if status != b"200":
                raise StreamError(f"answered with status {status!r}")
        elif isinstance(message, DataReceived):
            self._taken(message.stream_id, came, message.data, message.stream_ended)

    def _flush(self) -> None:
        for datagram, _ in self._quic.datagrams_to_send(time.monotonic()):
            self.sock.send(datagram)


def _careless() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _stamp(ancillary: list[tuple[int, int, bytes]]) -> int:
    """When the kernel took the last of what was read, ns; now, if it did not say."""
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _STAMP.unpack(value)
            return int(seconds) * 10**9 + int(nanoseconds)
    return time.time_ns()

# SPDX-License-Identifier: Apache-2.0
"""A listening stream socket on the loop: accepts in bursts, and pauses where file descriptors have run out."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog

from proxy.listeners.tcp_marks import listen_for_marks

__all__ = ["Acceptor", "more_descriptors", "tls_context"]

_BACKLOG = 1024  # more wait in the kernel while a burst is welcomed; net.core.somaxconn caps it
_BURST = 64
"""Connections accepted per wake-up, so that those that are here get their turn."""
_PAUSE_S = 1.0
# accept(2): what is wrong with the connection that waited, not with the socket it waited at.
_GONE_ALREADY = frozenset(
    {
        errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
        errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR,
    }
)  # fmt: skip
_log = structlog.get_logger("inferlane.tcp")


class Acceptor:
    """Hands every connection of a bound socket, which is its own from now on, to `welcome`.

    accepting: else others do, who share the socket, until `accept`.
    """

    def __init__(
        self, sock: socket.socket, welcome: Callable[[socket.socket], None], *, accepting: bool = True
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._welcome = welcome
        self._again: asyncio.TimerHandle | None = None
        self._open = True
        self._standby = True
        listen_for_marks(sock)
        sock.listen(_BACKLOG)
        if accepting:
            self.accept()

    def __repr__(self) -> str:
        state = "paused" if self._again is not None else "listening" if self._open else "closed"
        return f"<Acceptor {state}>"

    def accept(self) -> None:
        """Begin, once."""
        if self._standby and self._open:
            self._standby = False
            self._resume()

    def close(self) -> None:
        """Accept no more."""
        if not self._open:
            return
        self._open = False
        if self._again is not None:
            self._again.cancel()
        elif not self._standby:
            self._loop.remove_reader(self._sock.fileno())
        self._sock.close()

    def _resume(self) -> None:
        self._again = None
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(_BURST):
            try:
                accepted, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_ALREADY:
                    continue
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: the connection still waits, and so would wake us at once again.
                _log.error("cannot_accept", error=str(error), again_in_s=_PAUSE_S)
                self._loop.remove_reader(self._sock.fileno())
                self._again = self._loop.call_later(_PAUSE_S, self._resume)
                return
            accepted.setblocking(False)
            self._welcome(accepted)


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or 1.3 with a certificate chain and its key, for HTTP/1.1 alone. Both files are checked already."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have us do handshakes for the price of a packet
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def more_descriptors() -> int:
    """Have as many file descriptors as this process may: the usual limit of 1024 is there for select(). How many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # a sandbox that forbids it: what there is must do
        return soft
    return hard

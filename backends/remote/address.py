# SPDX-License-Identifier: Apache-2.0
"""From a backend's name to an open socket, within a deadline; and what it means to a client that this failed."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import structlog

from backends.remote.lookup import look_up
from backends.remote.marks import mark_socket
from inferlane.errors import Reason, Refused
from qos.marking import UNMARKED, Mark

__all__ = ["CONNECT_S", "Address", "connects", "open_socket", "reaching", "resolve", "unreachable"]

CONNECT_S = 1.0
"""Longest wait for a connection: a lost SYN is repeated after 1 s (RFC 6298); another endpoint is nearer."""

TELL_S = 10.0
"""The log says at most this often that descriptors ran out."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_told_at = -TELL_S

_log = structlog.get_logger("inferlane.backends")

Address = tuple[Any, ...] | str
"""As getaddrinfo gives it: (host, port) for IPv4, two numbers more for IPv6; the path of a Unix socket."""


def open_socket(family: int, kind: socket.SocketKind, mark: Mark = UNMARKED) -> socket.socket:
    """A socket before it connects, so that even its first packet, TCP's SYN, carries the mark."""
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    if mark != UNMARKED:
        mark_socket(sock, mark)
    return sock


async def resolve(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, Address]]:
    """All (family, address) of a host, at least one. Raises socket.gaierror."""
    try:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name, and looking those up blocks
        found = await look_up(host, port, kind)
    return [(family, address) for family, _, _, _, address in found]


async def connects(host: str, port: int, *, deadline: float) -> None:
    """Open a TCP connection and close it again. Raises Refused where none of its addresses takes one."""
    async with reaching(deadline):
        addresses = await resolve(host, port, socket.SOCK_STREAM)
        for family, address in addresses:
            with open_socket(family, socket.SOCK_STREAM) as sock:
                try:
                    await asyncio.get_running_loop().sock_connect(sock, address)
                    return
                except OSError:
                    if (family, address) == addresses[-1]:
                        raise  # the last one tells what is wrong


@asynccontextmanager
async def reaching(deadline: float) -> AsyncIterator[None]:
    """What is done in here may take CONNECT_S and not beyond `deadline`; what fails in here is Refused."""
    patience = min(CONNECT_S, deadline - monotonic())
    try:
        async with asyncio.timeout(patience):
            yield
    except TimeoutError:
        if patience < CONNECT_S:
            raise Refused(Reason.DEADLINE, "the request's time was up while connecting to the backend") from None
        raise unreachable(f"no connection within {CONNECT_S:g} s") from None
    except OSError as error:
        raise unreachable(error) from None


def unreachable(why: str | OSError) -> Refused:
    """The refusal of a request whose backend is not there. It names no address: clients may not know ours."""
    if isinstance(why, OSError) and why.errno in _NO_DESCRIPTORS:
        _tell_no_descriptors(why)
        return Refused(Reason.NO_ENDPOINT, "no descriptors: the gateway has too many connections open to open another")
    text = why if isinstance(why, str) else _why(why)
    return Refused(Reason.BACKEND_FAILED, f"the backend cannot be reached: {text}", status=503)


def _tell_no_descriptors(error: OSError) -> None:
    """Say so, but not for each request that meets it."""
    global _told_at
    now = monotonic()
    if now - _told_at < TELL_S:
        return
    _told_at = now
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = "raise LimitNOFILE= of the service, or ulimit -n; ENFILE: sysctl fs.file-max"
    _log.error("no_descriptors", why=os.strerror(error.errno or 0), limit=limit, hard_limit=most, remedy=remedy)


def _why(error: OSError) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not accepted ({error.verify_message}); tls.ca names whom to believe"
        case ssl.SSLError():
            return f"the TLS handshake failed ({getattr(error, 'reason', None) or error.strerror})"
        case socket.gaierror():
            return f"its name cannot be resolved ({error.strerror})"
        case _:
            return os.strerror(error.errno) if error.errno else str(error)

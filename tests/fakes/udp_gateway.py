# SPDX-License-Identifier: Apache-2.0
"""A UDP gateway of a few lines: challenges strangers, shows what came with which mark, answers as a test scripts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from inferlane.wire import Header, Type, decode, encode

COOKIE = bytes(range(16))


@dataclass
class Heard:
    """One datagram from a client."""

    gateway: UdpGateway
    client: object
    header: Header
    payload: bytes
    ds_field: int

    def send(self, *, body: bytes = b"", **fields: object) -> None:
        """A datagram under the request's id."""
        header = Header(request_id=self.header.request_id, total_length=len(body), **fields)
        self.gateway.sock.sendto(encode(header) + body, self.client)


class UdpGateway:
    """answer: called with every request that shows the cookie."""

    def __init__(self, sock: socket.socket, answer: Callable[[Heard], None]) -> None:
        self.sock = sock
        self.answer = answer
        self.heard: list[Heard] = []
        self.cancelled: asyncio.Queue[int] = asyncio.Queue()
        self.silent = False
        self.arrived = asyncio.Event()
        self.port = sock.getsockname()[1]

    def readable(self) -> None:
        data, ancillary, _, client = self.sock.recvmsg(65535, 256)
        header, start = decode(data)
        heard = Heard(self, client, header, data[start:], ancillary[0][2][0])
        self.heard.append(heard)
        self.arrived.set()
        if self.silent:
            return
        if header.type is Type.CANCEL:
            self.cancelled.put_nowait(header.request_id)
        elif header.index == 0 and header.cookie != COOKIE:
            heard.send(type=Type.CHALLENGE, cookie=COOKIE)
        elif header.type is Type.REQUEST:
            self.answer(heard)


@contextmanager
def udp_gateway(answer: Callable[[Heard], None], *, host: str = "127.0.0.1") -> Iterator[UdpGateway]:
    """Listen on a free port until the block ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        sock.bind((host, 0))
        gateway = UdpGateway(sock, answer)
        loop.add_reader(sock, gateway.readable)
        try:
            yield gateway
        finally:
            loop.remove_reader(sock)

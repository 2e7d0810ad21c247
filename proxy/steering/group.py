# SPDX-License-Identifier: Apache-2.0
"""A group of UDP sockets on one address, one for each place, and the program that spreads datagrams over them.

A socket's place is its number in the kernel's SO_REUSEPORT group, and that is the order in which they were bound, for
as long as none is closed: the kernel fills a gap with the last one. So whoever has a group closes all of it or nothing.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Protocol

from proxy.quic.connection_ids import PLACES
from proxy.steering.program import Instruction, Steering, assemble, program

__all__ = ["BindUdp", "Group"]

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h; Python's socket module has no name for it
_INSTRUCTION_BYTES = 8
_SIZES = f"a group has 1 to {PLACES}"


class BindUdp(Protocol):
    """How a socket is bound: `proxy.listeners.udp.bind`."""

    def __call__(self, host: str, port: int, *, shared: bool) -> socket.socket:
        """shared: SO_REUSEPORT is set before."""
        ...


class Group:
    """The sockets of one address, in the order of their places."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        if not 0 < len(sockets) <= PLACES:
            raise ValueError(f"{len(sockets)} sockets; {_SIZES}")
        self.sockets = list(sockets)

    def __repr__(self) -> str:
        return f"<Group of {len(self.sockets)} at {self.address[0]}:{self.address[1]}>"

    @classmethod
    def bind(cls, host: str, port: int, count: int, *, bind: BindUdp) -> Group:
        """`count` sockets on one address. Raises OSError, with nothing left bound.

        The first asks for the address alone, so that it fails where anybody has it: another gateway of the same user
        would else join this one's group unseen, and take a part of its clients.
        """
        if not 0 < count <= PLACES:
            raise ValueError(f"{count} sockets; {_SIZES}")
        group = cls([bind(host, port, shared=False)])
        try:
            group.grow(count, bind=bind)
        except OSError:
            group.close()
            raise
        return group

    @property
    def address(self) -> tuple[str, int]:
        """Where they are bound."""
        host, port = self.sockets[0].getsockname()[:2]
        return host, port

    def grow(self, count: int, *, bind: BindUdp) -> None:
        """Append places until there are `count`. A first place that gets company keeps everything until `steer`."""
        if count > PLACES:
            raise ValueError(f"{count} sockets; {_SIZES}")
        host, port = self.address
        alone = len(self.sockets) == 1
        if alone and count > 1:
            self.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        while len(self.sockets) < count:
            self.sockets.append(bind(host, port, shared=True))
            if alone:
                # Or the kernel would spread over both, and nobody reads the new one yet.
                self._attach(assemble([Instruction.always(0)]))
                alone = False

    def steer(self, steering: Steering) -> None:
        """Have the kernel deliver so from now on: one program gives way to the next between two datagrams.

        Raises OSError: it does not take the program. Needless, so nothing, for a single socket.
        """
        if not all(each.stop <= len(self.sockets) for each in (steering.current, *steering.live)):
            raise ValueError(f"{steering} goes beyond {len(self.sockets)} places")
        if len(self.sockets) == 1:
            return
        self._attach(program(steering))

    def close(self) -> None:
        """All of them."""
        for sock in self.sockets:
            sock.close()

    def _attach(self, code: bytes) -> None:
        buffer = ctypes.create_string_buffer(code, len(code))  # the kernel copies it before setsockopt returns
        fprog = struct.pack("HP", len(code) // _INSTRUCTION_BYTES, ctypes.addressof(buffer))
        self.sockets[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, fprog)

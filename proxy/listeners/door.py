# SPDX-License-Identifier: Apache-2.0
"""One listener of the config: its sockets, UDP and TCP of one port number, and the protocols that share the UDP one.

RFC 9443 section 3: a QUIC packet's first byte is 64 or more; 4 to 15 is nobody's, and 10 is ours (docs/wire.md).
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from inferlane.wire import MAGIC
from proxy.arrival import Walk
from proxy.keys import Keys
from proxy.listeners.alarms import Alarms
from proxy.listeners.bound import BoundAddress, Place, bind_address
from proxy.listeners.datagrams import DatagramExchanges
from proxy.listeners.http1 import Http1Door, Http1Plan
from proxy.listeners.http3 import Http3Session
from proxy.listeners.marks import Marks
from proxy.listeners.native import NativeSession
from proxy.listeners.quic import Peer, QuicListener, Session
from proxy.listeners.udp import Address, UdpSocket
from proxy.protocols.cookies import CookieJar
from proxy.protocols.holdings import Holdings
from proxy.quic.configuration import ALPN_H3, ALPN_NATIVE, QuicConfiguration
from proxy.quic.connection_ids import ConnectionIds
from qos.marking import Mark, usual_priority

__all__ = ["Door", "DoorPlan", "alpn_of"]

_QUIC_BIT = 0x40
_LONG_HEADER = 0x80
_HTTP1_TRANSPORT = "h1"


def alpn_of(accept: frozenset[str]) -> list[str]:
    """What a listener offers in TLS for what it accepts."""
    native = bool(accept & {"stream", "datagram"})
    return [ALPN_H3] * ("h3" in accept) + [ALPN_NATIVE] * native


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorPlan:
    """What a door needs to know of the config.

    accept: of h3, stream, datagram, udp, h1. tls: needed for the first three. http1_tls: for h1. cookie_secret:
    32 bytes, for udp. ids, keys: what a process that is one of several has of its own, and shares with the others.
    reflects: inference datagrams go back under the DSCP that came, for behind a gateway the marks are the gateway's to
    choose. slowest_bps: of the links that its packets may leave by, as far as somebody said.
    """

    name: str
    addresses: Sequence[tuple[str, int]]
    accept: frozenset[str]
    tls: QuicConfiguration | None
    max_body: int
    cookie_secret: bytes
    http1_tls: ssl.SSLContext | None = None
    ids: ConnectionIds | None = None
    keys: Keys | None = None
    reflects: bool = False
    slowest_bps: float | None = None


class Door:
    """The sockets of one listener on the running loop."""

    def __init__(self, plan: DoorPlan, walk: Walk, *, marks: Marks, alarms: Alarms, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._walk = walk
        self._marks = marks
        self._alarms = alarms
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._cookies = CookieJar(plan.cookie_secret)
        self._holdings = Holdings()
        self._sides: list[_Side] = []
        self._http1 = None if plan.http1_tls is None else self._http1_door(plan.http1_tls)
        self._bound: list[tuple[str, int]] = []

    def __repr__(self) -> str:
        return f"<Door {self._plan.name} {', '.join(map(str, self.bound))}: {self.connections} connections>"

    def start(self, given: Sequence[Place] | None = None, *, accepting: bool = True) -> None:
        """Bind every address, or none. Raises OSError with a line that names the address.

        given: sockets that are bound already, one place an address; they are the door's from now on. accepting: else
        it takes TCP connections from `accept` on.
        """
        for place in self._places() if given is None else given:
            self._bound.append(place.address)
            if place.udp is not None:
                self._sides.append(self._side(place.udp))
            if place.tcp is not None and self._http1 is not None:
                self._http1.start(place.tcp, accepting=accepting)

    def accept(self) -> None:
        """Take TCP connections, too."""
        if self._http1 is not None:
            self._http1.accept()

    def use_siblings(self, places: frozenset[int]) -> None:
        """At which other places somebody has connections."""
        for side in self._sides:
            if side.quic is not None:
                side.quic.siblings = places

    def retire(self) -> None:
        """Others take what is new: serve those who are here until they have moved."""
        for side in self._sides:
            if side.quic is not None:
                side.quic.retire()
        if self._http1 is not None:
            self._http1.retire()

    @property
    def deserted(self) -> bool:
        """Whether nobody is here any more."""
        return self.idle and not self.connections and (self._http1 is None or self._http1.deserted)

    def drain(self) -> None:
        """Take no new connections; those that are here finish."""
        for side in self._sides:
            if side.quic is not None:
                side.quic.drain()
        if self._http1 is not None:
            self._http1.drain()

    def close(self) -> None:
        """Say goodbye and let go of the sockets."""
        for side in self._sides:
            side.close()
        self._sides, self._bound = [], []
        if self._http1 is not None:
            self._http1.hang_up()

    async def wait_closed(self) -> None:
        """Until nobody works any more for the connections that `close` cut."""
        if self._http1 is not None:
            await self._http1.close()

    @property
    def bound(self) -> list[tuple[str, int]]:
        """Where it listens, UDP and TCP alike; port 0 has become a real one."""
        return list(self._bound)

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return all(side.idle for side in self._sides) and (self._http1 is None or self._http1.idle)

    @property
    def name(self) -> str:
        """The listener's name."""
        return self._plan.name

    @property
    def connections(self) -> int:
        """Open QUIC connections."""
        return sum(len(side.quic) for side in self._sides if side.quic is not None)

    @property
    def handshakes(self) -> int:
        """QUIC handshakes completed."""
        return sum(side.quic.counts["handshakes"] for side in self._sides if side.quic is not None)

    @property
    def http1(self) -> Http1Door | None:
        """The TCP side, where HTTP/1.1 is accepted."""
        return self._http1

    @property
    def datagrams_received(self) -> int:
        """Datagrams read."""
        return sum(side.socket.received for side in self._sides)

    @property
    def datagrams_sent(self) -> int:
        """Datagrams written."""
        return sum(side.socket.sent for side in self._sides)

    @property
    def datagrams_dropped(self) -> Mapping[str, int]:
        """Datagrams not used or not sent, by reason."""
        counts = Counter(self._counts)
        for side in self._sides:
            counts.update(side.socket.dropped)
            if side.quic is not None:
                counts.update({reason: n for reason, n in side.quic.counts.items() if reason != "handshakes"})
        return counts

    @property
    def kernel_drops(self) -> int:
        """Datagrams that came while a socket's receive buffer was full."""
        return sum(side.socket.kernel_drops for side in self._sides)

    @property
    def trains(self) -> Mapping[str, int]:
        """Messages of several datagrams each, by what became of them."""
        counts: Counter[str] = Counter()
        for side in self._sides:
            counts.update(side.socket.trains)
        return counts

    def _places(self) -> list[Place]:
        bound: list[BoundAddress] = []
        udp = self._plan.tls is not None or "udp" in self._plan.accept
        try:
            for host, port in self._plan.addresses:
                bound.append(bind_address(host, port, places=int(udp), tcp=self._http1 is not None))
        except OSError:
            for each in bound:
                each.close()
            raise
        return [each.at(0) for each in bound]

    def _http1_door(self, tls: ssl.SSLContext) -> Http1Door:
        plan = Http1Plan(
            listener=self._plan.name,
            transport=_HTTP1_TRANSPORT,
            max_body=self._plan.max_body,
            tls=tls,
            h3="h3" in self._plan.accept,
        )
        return Http1Door(self._walk, plan, clock=self._clock, marks=self._marks)

    def _side(self, sock: socket.socket) -> _Side:
        plan = self._plan
        quic = None
        if plan.tls is not None:
            with_datagrams = "datagram" in plan.accept
            quic = QuicListener(
                plan.tls,
                self._session_for,
                alarms=self._alarms,
                clock=self._clock,
                datagrams=with_datagrams,
                marks=self._marks,
                name=plan.name,
                ids=plan.ids,
                keys=None if plan.keys is None else plan.keys.at(sock.getsockname()[:2]),
            )
        side = _Side(sock, quic, self._counts, self._marks.at(plan.name), plan.slowest_bps)
        if "udp" in plan.accept:
            side.datagrams = DatagramExchanges(
                self._walk,
                partial(self._send_back, side),
                transport="udp",
                listener=plan.name,
                clock=self._clock,
                counts=self._counts,
                cookies=self._cookies,
                holdings=self._holdings,
            )
        return side

    def _send_back(self, side: _Side, datagram: bytes, peer: Hashable, class_name: str | None, dscp: int) -> None:
        reflected = Mark(dscp, usual_priority(dscp)) if self._plan.reflects else None
        mark = reflected or self._marks.datagram(self._plan.name, class_name)
        side.socket.send(datagram, cast(Address, peer), mark)

    def _session_for(self, peer: Peer, alpn: str) -> Session:
        plan = self._plan
        if alpn == ALPN_H3:
            return Http3Session(peer, self._walk, listener=plan.name, max_body=plan.max_body, clock=self._clock)
        return NativeSession(
            peer,
            self._walk,
            listener=plan.name,
            max_body=plan.max_body,
            clock=self._clock,
            counts=self._counts,
            streams="stream" in plan.accept,
            datagrams="datagram" in plan.accept,
            holdings=self._holdings,
        )


class _Side:
    """One UDP socket, and who gets its datagrams."""

    def __init__(
        self,
        sock: socket.socket,
        quic: QuicListener | None,
        counts: Counter[str],
        mark: Mark,
        slowest_bps: float | None,
    ) -> None:
        self.quic = quic
        self.datagrams: DatagramExchanges | None = None
        self._counts = counts
        self.socket = UdpSocket(sock, self._receive, burst_ended=self._burst_ended, mark=mark, slowest_bps=slowest_bps)
        if quic is not None:
            quic.attach(self.socket.send_all)

    @property
    def idle(self) -> bool:
        return (self.quic is None or self.quic.idle) and (self.datagrams is None or self.datagrams.idle)

    def close(self) -> None:
        if self.quic is not None:
            self.quic.close()
        if self.datagrams is not None:
            self.datagrams.cancel_all()
        self.socket.close()

    def _receive(self, datagram: bytes, address: Address, ds_field: int) -> None:
        first = datagram[0] if datagram else 0
        if first & (_QUIC_BIT | _LONG_HEADER) and self.quic is not None:
            self.quic.receive(datagram, address, ds_field)
        elif first == MAGIC and self.datagrams is not None:
            self.datagrams.receive(datagram, address, client=address[0], dscp=ds_field >> 2)
        else:
            self._counts["no_protocol"] += 1

    def _burst_ended(self) -> None:
        if self.quic is not None:
            self.quic.burst_ended()

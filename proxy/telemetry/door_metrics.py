# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of listeners: datagrams in, out and dropped, and connections of QUIC and TCP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from proxy.telemetry.families import Family

__all__ = ["DoorCounts", "TcpDoorCounts", "door_families", "tcp_door_families"]


class _ConnectionCounts(Protocol):
    """Connections of one kind."""

    @property
    def connections(self) -> int:
        """Open ones."""
        ...

    @property
    def handshakes(self) -> int:
        """TLS handshakes completed."""
        ...


class DoorCounts(_ConnectionCounts, Protocol):
    """A QUIC and datagram listener's own counts, as they stand."""

    @property
    def datagrams_received(self) -> int:
        """Datagrams read from its sockets."""
        ...

    @property
    def datagrams_sent(self) -> int:
        """Datagrams written to its sockets."""
        ...

    @property
    def datagrams_dropped(self) -> Mapping[str, int]:
        """Datagrams not used or not sent, by reason: a fixed list of names."""
        ...

    @property
    def kernel_drops(self) -> int:
        """Datagrams that came while a socket's receive buffer was full."""
        ...

    @property
    def trains(self) -> Mapping[str, int]:
        """Messages of several datagrams each, by what became of them."""
        ...


class TcpDoorCounts(_ConnectionCounts, Protocol):
    """The counts of a listener's HTTP/1.1 side, as they stand."""

    @property
    def connections_dropped(self) -> Mapping[str, int]:
        """Connections given up, by reason: a fixed list of names."""
        ...


def door_families(doors: Sequence[tuple[str, DoorCounts]]) -> Iterator[Family]:
    """Of all listeners, by name."""
    datagrams = Family("inferlane_datagrams", "Datagrams on a listener's sockets.", ("listener", "direction"), True)
    for listener, counts in doors:
        datagrams.samples.append(((listener, "in"), counts.datagrams_received))
        datagrams.samples.append(((listener, "out"), counts.datagrams_sent))
    yield datagrams
    dropped = ((listener, counts.datagrams_dropped) for listener, counts in doors)
    yield _dropped("inferlane_datagrams_dropped", "Datagrams not used or not sent.", dropped)
    lost = Family("inferlane_datagrams_kernel_drops", "Datagrams that found a full buffer.", ("listener",), True)
    trains = Family("inferlane_datagram_trains", "Datagrams sent many at once (GSO).", ("listener", "outcome"), True)
    for listener, counts in doors:
        lost.samples.append(((listener,), counts.kernel_drops))
        trains.samples.extend(((listener, outcome), count) for outcome, count in counts.trains.items())
    yield from (lost, trains)
    yield from _connections("inferlane_quic", doors)


def tcp_door_families(doors: Sequence[tuple[str, TcpDoorCounts]]) -> Iterator[Family]:
    """Of all listeners that take TCP connections, by name."""
    dropped = ((listener, counts.connections_dropped) for listener, counts in doors)
    yield _dropped("inferlane_tcp_connections_dropped", "TCP connections given up.", dropped)
    yield from _connections("inferlane_tcp", doors)


def _connections(prefix: str, doors: Sequence[tuple[str, _ConnectionCounts]]) -> Iterator[Family]:
    connections = Family(f"{prefix}_connections", "Open connections.", ("listener",))
    handshakes = Family(f"{prefix}_handshakes", "Handshakes completed.", ("listener",), True)
    for listener, counts in doors:
        connections.samples.append(((listener,), counts.connections))
        handshakes.samples.append(((listener,), counts.handshakes))
    yield from (connections, handshakes)


def _dropped(name: str, text: str, doors: Iterable[tuple[str, Mapping[str, int]]]) -> Family:
    family = Family(name, text, ("listener", "reason"), True)
    for listener, by_reason in doors:
        family.samples.extend(((listener, reason), count) for reason, count in by_reason.items())
    return family

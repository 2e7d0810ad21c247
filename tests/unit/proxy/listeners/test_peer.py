# SPDX-License-Identifier: Apache-2.0
"""Events go where they belong, in order; the listener around it is tested in test_quic.py."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

import pytest

from proxy.listeners.peer import Peer
from proxy.quic.connection import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
    StreamDataReceived,
)


class FakeQuic:
    def __init__(self, *events: QuicEvent) -> None:
        self.events = deque(events)
        self.ending = self.let_go_of = False
        self.validated_address = None
        self.timers: list[float] = []
        self.broken = False

    def next_event(self) -> QuicEvent | None:
        return self.events.popleft() if self.events else None

    def let_go(self) -> None:
        self.let_go_of = True

    def let_go_of_untaken(self, now: float, error_code: int) -> int:
        return int(now)

    def handle_timer(self, now: float) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        self.timers.append(now)


class FakeHome:
    """Writes down what its peer tells it, and is the session of every ALPN."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.marks: Any = None
        self.counts: Counter[str] = Counter()

    def session_for(self, peer: Peer, alpn: str) -> FakeHome:
        self.heard.append(("session", alpn))
        return self

    def learn(self, cid: bytes, peer: Peer) -> None:
        self.heard.append(("learn", cid))

    def forget(self, cid: bytes, peer: Peer) -> None:
        self.heard.append(("forget", cid))

    def completed(self, peer: Peer, *, resumed: bool) -> None:
        self.heard.append(("completed", resumed))

    def remove(self, peer: Peer) -> None:
        self.heard.append(("remove",))

    def schedule_flush(self, peer: Peer) -> None:
        self.heard.append(("flush",))

    def failed(self, peer: Peer) -> None:
        self.heard.append(("failed",))

    def handle(self, event: QuicEvent) -> None:
        self.heard.append(("event", type(event).__name__))

    def retire(self) -> None:
        self.retired = True

    def drain(self) -> None:
        raise AssertionError

    def closed(self) -> None:
        self.heard.append(("closed",))

    idle = True


def a_peer(*events: QuicEvent) -> tuple[FakeHome, FakeQuic, Peer]:
    home, quic = FakeHome(), FakeQuic(*events)
    return home, quic, Peer(home, quic, ("192.0.2.1", 40000), 0)  # type: ignore[arg-type]


DATA = StreamDataReceived(data=b"x", end_stream=False, stream_id=0)


def test_each_event_goes_where_it_belongs() -> None:
    home, _, peer = a_peer(
        DATA,  # before there is a session: nobody's
        ProtocolNegotiated(alpn_protocol="h3"),
        HandshakeCompleted(alpn_protocol="h3", early_data_accepted=False, session_resumed=True),
        ConnectionIdIssued(connection_id=b"new"),
        DATA,
        ConnectionIdRetired(connection_id=b"old"),
        ConnectionTerminated(error_code=0, frame_type=None, reason_phrase=""),
    )
    peer.pump()
    assert home.heard == [
        ("session", "h3"),
        ("completed", True),
        ("learn", b"new"),
        ("event", "StreamDataReceived"),
        ("forget", b"old"),
        ("remove",),
    ]


def test_a_session_ends_when_the_connection_begins_to_close() -> None:
    home, quic, peer = a_peer(ProtocolNegotiated(alpn_protocol="h3"))
    peer.pump()
    quic.ending = True
    quic.events.append(DATA)
    assert not quic.let_go_of
    peer.pump()
    assert quic.let_go_of
    peer.pump()
    assert home.heard == [("session", "h3"), ("event", "StreamDataReceived"), ("closed",)]
    assert peer.session is None and not peer.busy


@pytest.mark.parametrize("broken", [False, True])
def test_a_timer_that_fails_ends_one_connection(broken: bool) -> None:
    home, quic, peer = a_peer()
    quic.broken = broken
    peer.ring(5.0)
    assert home.heard == ([("failed",)] if broken else [("flush",)])
    assert quic.timers == ([] if broken else [5.0])


def test_a_peer_is_named_by_where_it_was_first() -> None:
    _, quic, peer = a_peer()
    assert repr(peer) == "<Peer 192.0.2.1:40000 None>"
    quic.validated_address = ("192.0.2.9", 5)  # type: ignore[assignment]
    assert peer.address == ("192.0.2.9", 5)


def test_replies_that_are_broken_off_are_counted_and_told_at_once() -> None:
    home, _, peer = a_peer()
    peer.let_go_of_untaken(0.0)
    assert (home.counts["untaken"], home.heard) == (0, [])
    peer.let_go_of_untaken(2.0)
    assert (home.counts["untaken"], home.heard) == (2, [("flush",)])

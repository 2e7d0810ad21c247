# SPDX-License-Identifier: Apache-2.0
"""Connections by id, one flush a wake-up, one alarm for all timers. A real client in memory, the loop's own clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from aioquic.tls import SessionTicket

from proxy.keys import Keys
from proxy.listeners import quic as quic_module
from proxy.listeners import strangers as strangers_module
from proxy.listeners.alarms import Alarms
from proxy.listeners.marks import Marks
from proxy.listeners.quic import Peer, QuicListener
from proxy.listeners.udp import Address
from proxy.quic.connection import QuicEvent
from proxy.quic.connection_ids import ConnectionIds
from proxy.quic.identity import reset_token
from qos.marking import Mark
from qos.traffic_class import ClassTable, TrafficClass
from tests.fakes.quic import CLIENT, SERVER, Pair

CLASSES = ClassTable(
    [
        realtime := TrafficClass(name="realtime", rank=0, dscp=46, deadline_s=1.0, queue_s=1.0, priority=6),
        interactive := TrafficClass(name="interactive", rank=1, dscp=18, deadline_s=1.0, queue_s=1.0, priority=4),
        batch := TrafficClass(name="batch", rank=2, dscp=10, deadline_s=1.0, queue_s=1.0),
    ],
    batch,
)
REALTIME, INTERACTIVE, BATCH = Mark(46, 6), Mark(18, 4), Mark(10, 0)


class FakeSession:
    goodbye = 0x100

    def __init__(self) -> None:
        self.events: list[QuicEvent] = []
        self.drained = self.gone = 0
        self.idle = True

    def handle(self, event: QuicEvent) -> None:
        self.events.append(event)

    def retire(self) -> None:
        self.retired = True

    def drain(self) -> None:
        self.drained += 1

    def closed(self) -> None:
        self.gone += 1


class Wire:
    """A listener, and a client whose datagrams the test carries."""

    def __init__(self, tmp_path: Path, keys: Keys | None = None, ticket: SessionTicket | None = None) -> None:
        spare = Pair(tmp_path)  # for its configurations
        spare.client.configuration.session_ticket = ticket
        self.tickets: list[SessionTicket] = []
        self.client = type(spare.client)(
            configuration=spare.client.configuration, session_ticket_handler=self.tickets.append
        )
        self.session = FakeSession()
        self.alarms = Alarms(time.monotonic)
        self.sent: list[bytes] = []
        self.marks: list[Mark] = []
        self.flushes: list[int] = []
        self.alpn = ""
        self.listener = QuicListener(
            spare.configuration,
            self._session_for,
            alarms=self.alarms,
            clock=time.monotonic,
            datagrams=True,
            marks=Marks(CLASSES, {"main": "interactive"}, clock=time.monotonic),
            name="main",
            keys=keys,
        )
        self.listener.attach(self._send)
        self.client.connect(SERVER, now=time.monotonic())

    def _session_for(self, peer: Peer, alpn: str) -> FakeSession:
        self.alpn = alpn
        return self.session

    def _send(self, datagrams: Sequence[bytes], address: Address, mark: Mark) -> None:
        assert address == CLIENT
        self.sent += datagrams
        self.marks += [mark] * len(datagrams)

    def begin(self) -> None:
        """Another client's first datagrams, and nothing more of it."""
        client = type(self.client)(configuration=self.client.configuration)
        client.connect(SERVER, now=time.monotonic())
        for datagram, _ in client.datagrams_to_send(time.monotonic()):
            self.listener.receive(datagram, CLIENT, 0)

    async def run(self, rounds: int = 10) -> None:
        for _ in range(rounds):
            for datagram, _ in self.client.datagrams_to_send(time.monotonic()):
                self.listener.receive(datagram, CLIENT, 46 << 2)
            self.listener.burst_ended()
            await asyncio.sleep(0.002)  # the loop's turn: flush and alarm
            for datagram in self.sent:
                self.client.receive_datagram(datagram, SERVER, time.monotonic())
            self.sent.clear()


@pytest.fixture
async def wire(tmp_path: Path) -> Wire:
    wire = Wire(tmp_path)
    await wire.run()
    return wire


async def test_a_handshake_makes_a_peer_with_the_alpn_s_session(wire: Wire) -> None:
    assert (len(wire.listener), wire.alpn, wire.listener.counts["handshakes"]) == (1, "h3", 1)
    (peer,) = wire.listener._peers
    assert peer.dscp == 46
    assert wire.listener.idle
    wire.listener.close()
    assert wire.session.gone == 1


async def test_all_that_a_connection_sends_has_one_mark(wire: Wire) -> None:
    (peer,) = wire.listener._peers
    assert set(wire.marks) == {INTERACTIVE}  # the handshake
    for traffic_class, mark in ((batch, BATCH), (realtime, REALTIME), (interactive, REALTIME)):
        wire.marks.clear()
        peer.judged(traffic_class)
        peer.quic.send_ping(1)
        peer.touch()
        await wire.run(4)
        assert set(wire.marks) == {mark}
    wire.marks.clear()
    wire.listener.close()
    assert wire.marks == [REALTIME]  # the goodbye


async def test_what_is_sent_again_has_the_mark_of_now(wire: Wire) -> None:
    (peer,) = wire.listener._peers
    wire.client.send_stream_data(0, b"x")
    await wire.run(2)
    peer.judged(realtime)
    wire.marks.clear()
    peer.quic.send_stream_data(0, bytes(5000))
    peer.touch()
    async with asyncio.timeout(20):
        while not peer.quic.silent:
            await asyncio.sleep(0.01)  # nobody carries them to the client: the alarm sends them again
    assert len(wire.marks) > 5 and set(wire.marks) == {REALTIME}
    wire.listener.close()


async def test_an_unknown_version_is_answered_under_the_listener_s_mark(wire: Wire) -> None:
    wire.marks.clear()
    wire.listener.receive(b"\xc0\x0a\x1a\x2a\x3a\x08" + bytes(8) + b"\x08" + bytes(1200), CLIENT, 0)
    assert wire.marks == [INTERACTIVE]
    assert wire.listener.counts["version_negotiations"] == 1
    wire.listener.close()


async def test_many_writes_in_one_turn_are_one_flush(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    (peer,) = wire.listener._peers
    flushes = 0
    original = peer.quic.datagrams_to_send

    def counted(now: float) -> list[tuple[bytes, Address]]:
        nonlocal flushes
        flushes += 1
        return original(now)

    monkeypatch.setattr(peer.quic, "datagrams_to_send", counted)
    for _ in range(5):
        peer.quic.send_ping(1)
        peer.touch()
    await asyncio.sleep(0)
    assert flushes == 1
    wire.listener.close()


async def test_events_reach_the_session_and_a_closed_connection_is_forgotten(wire: Wire) -> None:
    wire.client.send_stream_data(0, b"hello", end_stream=True)
    await wire.run(3)
    assert [type(each).__name__ for each in wire.session.events][-1] == "StreamDataReceived"
    wire.client.close()
    for datagram, _ in wire.client.datagrams_to_send(time.monotonic()):
        wire.listener.receive(datagram, CLIENT, 0)
    wire.listener.burst_ended()
    async with asyncio.timeout(20):
        while len(wire.listener):
            await asyncio.sleep(0.01)  # the draining period: three probe timeouts, by the alarm
    assert wire.session.gone == 1
    assert not wire.listener._by_cid


async def test_a_writer_waits_until_the_client_acknowledged(wire: Wire) -> None:
    (peer,) = wire.listener._peers
    wire.client.send_stream_data(0, b"x")
    await wire.run(2)
    peer.quic.send_stream_data(0, bytes(5000))
    peer.touch()
    waiting = asyncio.create_task(peer.room(0, 1000))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert not wire.listener.idle
    await wire.run(20)
    await asyncio.wait_for(waiting, 20)
    wire.listener.close()


async def test_a_client_that_is_gone_without_a_goodbye_is_not_waited_for(wire: Wire) -> None:
    (peer,) = wire.listener._peers
    wire.client.send_stream_data(0, b"x")
    await wire.run(2)
    peer.quic.send_stream_data(0, bytes(5000), True)
    peer.touch()
    assert not wire.listener.idle
    async with asyncio.timeout(20):
        while not wire.listener.idle:
            await asyncio.sleep(0.01)  # the alarm sends probes, which nobody carries to the client
    assert not peer.quic.all_acknowledged
    wire.listener.close()


async def test_draining_tells_sessions_and_takes_no_new_connection(wire: Wire, tmp_path: Path) -> None:
    wire.listener.drain()
    assert wire.session.drained == 1
    other = type(wire.client)(configuration=wire.client.configuration)
    other.connect(SERVER, now=time.monotonic())
    for datagram, _ in other.datagrams_to_send(time.monotonic()):
        wire.listener.receive(datagram, CLIENT, 0)
    assert len(wire.listener) == 1
    assert wire.listener.counts["draining"] == 1
    wire.listener.close()


async def test_handshakes_that_nobody_goes_on_with_are_bounded_and_give_up_their_place(wire, monkeypatch):
    monkeypatch.setattr(quic_module, "MOST_HANDSHAKES", 2)
    listener = wire.listener
    known = set(listener._by_cid)
    for _ in range(4):
        wire.begin()
    assert (len(listener), listener.counts["too_many_handshakes"]) == (3, 2)
    monkeypatch.setattr(quic_module, "HANDSHAKE_S", 0.0)
    for _ in range(4):
        wire.begin()
    assert (len(listener), listener.counts["slow_handshake"]) == (3, 4)
    listener.burst_ended()  # with datagrams of connections that are gone in it
    assert len(listener._by_cid) == len(known) + 4
    monkeypatch.setattr(quic_module, "HANDSHAKE_S", 10.0)
    await wire.run()
    assert listener.counts["handshakes"] == 1  # whoever was here before is not counted among them
    listener.close()
    assert not listener._by_cid


async def test_whoever_comes_after_a_crash_ends_the_connections_that_were_there(wire: Wire, tmp_path: Path) -> None:
    keys = Keys.fresh()
    before = Wire(tmp_path, keys)
    await before.run()
    after = Wire(tmp_path, Keys.from_bytes(keys.to_bytes()))
    before.client.send_ping(1)
    for listener in (after.listener, wire.listener):
        wire.sent.clear()
        for datagram, _ in before.client.datagrams_to_send(time.monotonic()):
            listener.receive(datagram, CLIENT, 0)
    assert [each[-16:] for each in after.sent] == [before.client._peer_cid.stateless_reset_token]
    assert after.listener.counts == {"stateless_resets": 1}
    assert not wire.sent  # that gateway has other keys
    for each in (before, after, wire):
        each.listener.close()


async def test_a_sibling_s_connection_is_left_alone(wire: Wire) -> None:
    keys = wire.listener._identity.reset_key
    cid = ConnectionIds(3, 0, Keys(keys, keys, keys, keys).steering).issue(bytes(7))
    wire.listener.siblings = frozenset({2, 3})
    assert wire.listener.siblings == {2, 3}
    wire.listener.receive(b"\x41" + cid + bytes(40), CLIENT, 0)
    assert not wire.sent and wire.listener.counts["misdirected"] == 1
    wire.listener.siblings = frozenset()
    wire.listener.receive(b"\x41" + cid + bytes(40), CLIENT, 0)
    assert [each[-16:] for each in wire.sent] == [reset_token(keys, cid)]
    wire.sent.clear()
    wire.listener.close()


async def test_a_ticket_of_one_listener_is_good_at_another(wire: Wire, tmp_path: Path) -> None:
    keys = Keys.fresh()
    first = Wire(tmp_path, keys)
    await first.run()
    (ticket,) = first.tickets
    second, third = Wire(tmp_path, keys, ticket), Wire(tmp_path, None, ticket)
    for each in (second, third):
        await each.run()
    assert [each.listener.resumed for each in (first, second, third)] == [0, 1, 0]
    assert all(each.listener.counts["handshakes"] == 1 for each in (first, second, third))
    for each in (first, second, third, wire):
        each.listener.close()


async def test_a_handshake_goes_on_behind_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers_module, "RETRY_FROM", 0)
    wire = Wire(tmp_path)
    await wire.run()
    assert wire.listener.counts == {"retries": 1, "handshakes": 1} and wire.alpn == "h3"
    (peer,) = wire.listener._peers
    assert peer.quic._retried_from == peer.address, "its token has proved it, so no answer is held back"
    wire.listener.close()
    assert not wire.listener._by_cid


async def test_a_client_that_moves_is_answered_where_it_is(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its new address is validated while replies go on; what goes there and what goes to the old one is told apart."""
    sent: list[tuple[bytes, Address]] = []
    wire.listener.attach(lambda datagrams, address, mark: sent.extend((each, address) for each in datagrams))
    moved = ("192.0.2.77", 4711)
    wire.client.change_connection_id()
    for turn in range(6):
        wire.client.send_ping(turn)
        for datagram, _ in wire.client.datagrams_to_send(time.monotonic()):
            wire.listener.receive(datagram, moved, 0)
        wire.listener.burst_ended()
        await asyncio.sleep(0.002)
        for datagram, _ in sent[:]:
            wire.client.receive_datagram(datagram, SERVER, time.monotonic())
    (peer,) = wire.listener._peers
    assert peer.address == moved and sent[-1][1] == moved
    assert wire.listener.counts == {"handshakes": 1}
    wire.listener.close()


@pytest.mark.parametrize("step", ["receive_datagram", "next_event", "quiet", "handle_timer"])
async def test_a_fault_ends_one_connection_wherever_it_shows(wire: Wire, monkeypatch, step: str) -> None:
    first = wire.client
    wire.client = type(first)(configuration=first.configuration)
    wire.client.connect(SERVER, now=time.monotonic())
    await wire.run()
    peer = next(each for each in wire.listener._peers if wire.client._peer_cid.cid in each.cids)

    def fault(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(peer.quic, step, fault)
    if step == "handle_timer":
        peer.ring(time.monotonic())
    else:
        wire.client.send_ping(1)
        for datagram, _ in wire.client.datagrams_to_send(time.monotonic()):
            wire.listener.receive(datagram, CLIENT, 0)
        wire.listener.burst_ended()
        await asyncio.sleep(0)
    assert wire.listener.counts["failed"] == 1
    (left,) = wire.listener._peers
    assert first._peer_cid.cid in left.cids
    wire.listener.close()

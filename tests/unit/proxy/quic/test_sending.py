# SPDX-License-Identifier: Apache-2.0
"""Our short way and aioquic's own deliver the same bytes over any path, and leave nothing behind."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived, StreamDataReceived
from aioquic.tls import Epoch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.certificate import development_certificate
from proxy.quic import sending
from proxy.quic.frames import varint
from proxy.quic.sending import ACK_DELAY_S, Packet
from tests.fakes.lossy_link import LossyLink
from tests.fakes.quic import CLIENT, SERVER, Pair


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One certificate for all links."""
    folder = tmp_path_factory.mktemp("state")
    development_certificate(folder)
    return folder


@pytest.fixture
def pair(state_dir: Path) -> Pair:
    return Pair(state_dir)


def pattern(stream_id: int, size: int) -> bytes:
    return (bytes(range(stream_id % 7, 251)) * (size // 244 + 1))[:size]


SIZES = st.sampled_from([0, 1, 63, 230, 1150, 4000, 20_000, 70_000])
DEEDS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "reset", "stop", "ping", "keys", "id", "ours"]), SIZES, SIZES),
    max_size=14,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds=DEEDS, seed=st.integers(0, 1 << 30), rate=st.sampled_from([0.0, 0.05, 0.2]))
def test_over_any_path_both_sides_end_with_the_same_bytes(
    state_dir: Path, deeds: list[tuple[str, int, int]], seed: int, rate: float
) -> None:
    link = LossyLink(state_dir, seed, rate)
    talk = Talk(link)
    for kind, up, down in deeds:
        talk.do(kind, up, down)
        link.run(3)
        talk.answer()
    for _ in range(3000):
        if all(each in link.ended["server"] or each in talk.given_up for each in talk.asked):
            break
        link.run(1)
        talk.answer()
    for stream_id in talk.given_up:
        link.pair.server.stop_sending(stream_id, 1)
    link.settle()
    talk.check()
    link.run(20)
    left_behind(link, talk.given_up)


class Talk:
    """What both sides do, and what each has to have heard in the end."""

    def __init__(self, link: LossyLink) -> None:
        self.asked: dict[int, tuple[int, int]] = {}
        self.given_up: set[int] = set()
        self._link, self._client, self._server = link, link.pair.client, link.pair.server
        self._own: dict[int, int] = {}
        self._updated = False

    def do(self, kind: str, up: int, down: int) -> None:
        if kind == "ask":
            stream_id = self._client.get_next_available_stream_id()
            self._client.send_stream_data(stream_id, pattern(stream_id, up), end_stream=True)
            self.asked[stream_id] = (up, down)
        elif kind == "ours":
            stream_id = self._server.get_next_available_stream_id(is_unidirectional=True)
            self._server.send_stream_data(stream_id, pattern(stream_id, up), True)
            self._own[stream_id] = up
        elif kind in {"reset", "stop"}:
            self._give_up(kind)
        else:
            self._disturb(kind)

    def _disturb(self, kind: str) -> None:
        if kind == "ping":
            self._client.send_ping(1)
            self._server.send_ping(1)
        elif kind == "keys" and not self._updated:
            self._updated = True  # a second one may follow only when the first is acknowledged: RFC 9001 section 6.1
            self._client.request_key_update()
        elif kind == "id":
            self._client.change_connection_id()

    def _give_up(self, kind: str) -> None:
        stream_id = max(self.asked, default=None)
        if stream_id in self._client._streams:
            self.given_up.add(stream_id)
            (self._client.reset_stream if kind == "reset" else self._client.stop_stream)(stream_id, 9)

    def answer(self) -> None:
        """Every request that is whole gets its reply, in two writes."""
        for stream_id in self._link.ended["server"]:
            if not self._server.replied(stream_id):
                reply = pattern(stream_id, self.asked[stream_id][1])
                self._server.send_stream_data(stream_id, reply[: len(reply) // 2])
                self._server.send_stream_data(stream_id, reply[len(reply) // 2 :], True)

    def check(self) -> None:
        """Whatever was not given up came whole, both ways."""
        got = self._link.received
        for stream_id, (up, down) in self.asked.items():
            if stream_id not in self.given_up:
                assert bytes(got["server"][stream_id]) == pattern(stream_id, up)
                assert bytes(got["client"][stream_id]) == pattern(stream_id, down)
                assert stream_id in self._link.ended["client"]
        for stream_id, size in self._own.items():
            assert bytes(got["client"][stream_id]) == pattern(stream_id, size)


def left_behind(link: LossyLink, given_up: set[int]) -> None:
    """What a connection holds that has nothing to do."""
    server = link.pair.server
    assert not server.ending
    assert set(server._streams) <= given_up
    assert not set(server._due) - set(server._streams.values())
    assert server._loss.bytes_in_flight == 0
    assert all(space.ack_eliciting_in_flight == 0 for space in server._loss.spaces)
    assert server._local_max_streams_bidi.value - server._local_max_streams_bidi.used + len(server._streams) == 128


def test_a_reply_and_its_acknowledgement_are_one_packet(pair: Pair) -> None:
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, bytes(1000), end_stream=True)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, CLIENT, pair.now)
    assert pair.server.quiet(pair.now), "the acknowledgement waits for the reply"
    pair.server.send_stream_data(stream_id, bytes(200), True)
    (sent,) = pair.server.datagrams_to_send(pair.now)
    assert len(sent[0]) < 260
    assert pair.server.quiet(pair.now + ACK_DELAY_S)
    pair.client.receive_datagram(sent[0], ("192.0.2.2", 4433), pair.now)
    assert not pair.client._loss.spaces[2].ack_eliciting_in_flight


def test_a_datagram_that_leaves_no_room_for_an_acknowledgement_does_not_wait_for_it(state_dir: Path) -> None:
    pair = Pair(state_dir, alpn="inferlane/1", step_s=0.002)
    pair.client.send_datagram_frame(b"ask")
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, CLIENT, pair.now)
    assert pair.server._spaces[Epoch.ONE_RTT].ack_at is not None
    reply = [bytes([each]) * pair.server.datagram_capacity for each in range(3)]
    for each in reply:
        pair.server.send_datagram_frame(each)
    for datagram, _ in pair.server.datagrams_to_send(pair.now):
        assert len(datagram) <= 1200
        pair.client.receive_datagram(datagram, SERVER, pair.now)
    pair.take()
    assert [each.data for each in pair.client_events if isinstance(each, DatagramFrameReceived)] == reply


def test_keys_change_long_before_their_cipher_wears_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9001 section 6.6: AES-GCM protects 2^23 packets at most; a gateway's clients stay for weeks."""
    monkeypatch.setattr(sending, "PACKETS_OF_A_KEY", 20)
    server, phases = pair.server, []
    server._renew_keys_at = 20
    for _ in range(80):
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(stream_id, b"x", end_stream=True)
        pair.run(2)
        server.send_stream_data(stream_id, b"y", True)
        pair.run(2)
        phases.append(server._cryptos[Epoch.ONE_RTT].send.key_phase)
    changes = sum(before != after for before, after in itertools.pairwise(phases))
    assert changes >= 3
    assert server.all_acknowledged
    assert not pair.client._close_event and not server.ending


def test_a_client_that_has_moved_is_answered_the_short_way_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that it left is kept, in case that it comes back; nothing is to be said there."""
    moved = ("192.0.2.9", 40001)

    def ask() -> int:
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(stream_id, b"x", end_stream=True)
        for _ in range(12):
            pair.now += 0.002
            for datagram, _ in pair.client.datagrams_to_send(pair.now):
                pair.server.receive_datagram(datagram, moved, pair.now)
            if not pair.server.quiet(pair.now):
                for datagram, _ in pair.server.datagrams_to_send(pair.now):
                    pair.client.receive_datagram(datagram, SERVER, pair.now)
            pair.take()
        return stream_id

    ask()
    assert (pair.server.validated_address, len(pair.server._network_paths)) == (moved, 2)
    stream_id = ask()
    monkeypatch.setattr(QuicConnection, "datagrams_to_send", None)
    pair.server.send_stream_data(stream_id, b"y", True)
    assert [address for _, address in pair.server.datagrams_to_send(pair.now)] == [moved]


def test_an_acknowledgement_goes_alone_once_its_delay_is_over(pair: Pair) -> None:
    pair.client.send_ping(1)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.server.receive_datagram(datagram, CLIENT, pair.now)
    assert pair.server.quiet(pair.now)
    due = pair.server.get_timer()
    assert due == pair.now + ACK_DELAY_S
    assert len(pair.server.datagrams_to_send(due)) == 1


def test_connections_that_have_ended_are_forgotten_together_and_none_too_soon(state_dir: Path) -> None:
    instants = set()
    for wait_s in (0.0, 0.01, 0.02):
        pair = Pair(state_dir, step_s=0.002)
        pair.now += wait_s
        pair.client.close()
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            pair.server.receive_datagram(datagram, CLIENT, pair.now)
        due = pair.server.get_timer()
        assert due is not None
        assert pair.server.quiet(pair.now)
        assert pair.now + 3 * pair.server._loss.get_probe_timeout() <= due < pair.now + 1
        pair.server.handle_timer(due)
        pair.take()
        assert isinstance(pair.server_events[-1], ConnectionTerminated)
        instants.add(due)
    assert len(instants) == 1


def test_hundreds_of_streams_that_wait_are_not_looked_at(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(state_dir, step_s=0.002)  # too short for anything to be sent twice
    for _ in range(100):
        pair.client.send_stream_data(pair.client.get_next_available_stream_id(), b"waits")
    pair.run(40)
    looks: list[int] = []
    monkeypatch.setattr(pair.server, "_look_at_streams", lambda: looks.append(1))
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x", end_stream=True)
    pair.run(2)
    pair.server.send_stream_data(stream_id, b"y", True)
    pair.run(4)
    assert any(isinstance(each, StreamDataReceived) and each.stream_id == stream_id for each in pair.client_events)
    assert not looks
    assert len(pair.server._streams) == 100


def test_a_client_may_go_on_opening_streams_of_its_own_both_ways(pair: Pair) -> None:
    for _ in range(300):
        stream_id = pair.client.get_next_available_stream_id()
        pair.client.send_stream_data(stream_id, b"x", end_stream=True)
        one_way = pair.client.get_next_available_stream_id(is_unidirectional=True)
        pair.client.send_stream_data(one_way, b"x", end_stream=True)
        pair.run(2)
        pair.server.send_stream_data(stream_id, b"y", True)
        pair.run(2)
    ended = [each for each in pair.server_events if isinstance(each, StreamDataReceived) and each.end_stream]
    assert len(ended) == 600
    assert not [each for each in pair.server._streams if each % 4 == 0]


def test_nothing_is_sent_beyond_the_client_s_windows(state_dir: Path) -> None:
    pair = Pair(state_dir)
    stream_id = pair.client.get_next_available_stream_id()
    pair.client.send_stream_data(stream_id, b"x", end_stream=True)
    pair.run(2)
    pair.client._local_max_stream_data_bidi_local = 0
    stream = pair.server._streams[stream_id]
    stream.max_stream_data_remote = 5000
    pair.server.send_stream_data(stream_id, bytes(9000), True)
    pair.run(20)
    assert stream.sender.highest_offset == 5000
    assert not pair.server.datagrams_to_send(pair.now)
    pair.server.receive_datagram(b"", CLIENT, pair.now)
    stream.max_stream_data_remote = 9000
    pair.run(20)
    assert pair.server.all_acknowledged


def test_a_packet_takes_what_fits() -> None:
    packet = Packet(5)
    assert packet.add(b"abc", print, (1,))
    assert not packet.add(b"abc")
    assert packet.add(varint(300))
    assert (packet.room, packet.handlers) == (0, [(print, (1,))])


def test_the_privates_we_use_are_what_they_were() -> None:
    source = inspect.getsource(QuicConnection)
    for name in (
        "_ack_eliciting_sent_since_receipt",
        "_local_ack_delay_exponent",
        "_on_ack_delivery",
        "_on_connection_limit_delivery",
        "_pacing_at",
        "_packet_number",
        "_ping_pending",
        "_probe_pending",
        "_remote_max_data_used",
        "_streams_queue",
    ):
        assert f"self.{name}" in source

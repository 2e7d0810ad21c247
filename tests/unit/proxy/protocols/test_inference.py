# SPDX-License-Identifier: Apache-2.0
"""The server's half of the datagram protocol: addresses, fragments, duplicates, kept replies, bounds."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason, Refused
from inferlane.transfer import Exchange
from inferlane.wire import MAX_DATAGRAM, MAX_FRAGMENTS, Header, Type, decode, encode, fragments
from proxy.protocols import inference
from proxy.protocols.cookies import CookieJar
from proxy.protocols.holdings import Holdings, Shelf
from proxy.protocols.inference import Cancelled, Dropped, InferenceServer, Message, Send

PEER = ("192.0.2.1", 40000)


def request(request_id: int = 7, body: bytes = b"{}", *, cookie: bytes | None = None, **fields: int) -> list[bytes]:
    header = Header(type=Type.REQUEST, request_id=request_id, model="m", cookie=cookie, **fields)
    return fragments(header, body)


def reply(request_id: int = 7, **fields: int) -> Header:
    return Header(type=Type.REPLY, request_id=request_id, status=200, **fields)


@pytest.fixture
def server() -> InferenceServer:
    """As inside QUIC: no cookies."""
    return InferenceServer(cookies=None)


def test_one_datagram_is_a_message(server: InferenceServer) -> None:
    outcome = server.receive(request()[0], PEER, 0.0)
    assert isinstance(outcome, Message)
    assert (outcome.key, outcome.header.model, outcome.body) == ((PEER, 7), "m", b"{}")


def test_without_a_cookie_only_a_challenge_no_longer_than_the_request_and_no_state() -> None:
    server = InferenceServer(cookies=CookieJar(bytes(32)))
    datagram = request(body=b"x" * 100)[0]
    outcome = server.receive(datagram, PEER, 0.0)
    assert isinstance(outcome, Send)
    (challenge,) = outcome.datagrams
    assert len(challenge) <= len(datagram)
    header, _ = decode(challenge)
    assert header.type is Type.CHALLENGE
    assert repr(server).startswith("<InferenceServer 0 exchanges")
    accepted = server.receive(request(body=b"x" * 100, cookie=header.cookie)[0], PEER, 1.0)
    assert isinstance(accepted, Message)
    spoofed = server.receive(request(8, body=b"x" * 100, cookie=header.cookie)[0], ("192.0.2.9", 1), 1.0)
    assert isinstance(spoofed, Send)  # another challenge, to the address that the datagram claims


def test_without_a_cookie_later_fragments_and_short_datagrams_get_silence() -> None:
    server = InferenceServer(cookies=CookieJar(bytes(32)))
    later = request(body=b"x" * 3000)[1]
    assert server.receive(later, PEER, 0.0) == Dropped("no_cookie")
    tiny = encode(Header(type=Type.PING, request_id=1))
    assert server.receive(tiny, PEER, 0.0) == Dropped("no_cookie")


def test_a_ping_is_answered_and_what_servers_say_never_is(server: InferenceServer) -> None:
    pong = server.receive(encode(Header(type=Type.PING, request_id=3)), PEER, 0.0)
    assert isinstance(pong, Send)
    assert decode(pong.datagrams[0])[0].type is Type.PONG
    for said_by_servers in (encode(reply()), pong.datagrams[0]):
        assert server.receive(said_by_servers, PEER, 0.0) == Dropped("reply_to_server")


def test_fragments_in_any_order_make_one_message(server: InferenceServer) -> None:
    body = bytes(range(256)) * 20
    pieces = request(body=body)
    random.Random(1).shuffle(pieces)
    outcomes = [server.receive(each, PEER, 0.0) for each in pieces]
    message = outcomes[-1]
    assert isinstance(message, Message)
    assert message.body == body
    assert message.header.model == "m"


def test_a_gap_is_told_once_the_last_fragment_is_here(server: InferenceServer) -> None:
    pieces = request(body=bytes(5000))
    assert server.receive(pieces[0], PEER, 0.0) == Send([])
    outcome = server.receive(pieces[-1], PEER, 0.0)
    assert isinstance(outcome, Send)
    header, _ = decode(outcome.datagrams[0])
    assert header.type is Type.ACK
    assert header.bitmap == 1 | 1 << (len(pieces) - 1)


def test_a_duplicate_is_executed_once_and_answered_again(server: InferenceServer) -> None:
    (datagram,) = request()
    assert isinstance(server.receive(datagram, PEER, 0.0), Message)
    working = server.receive(datagram, PEER, 0.1)
    assert isinstance(working, Send)
    assert decode(working.datagrams[0])[0].type is Type.ACK
    sent = server.answer((PEER, 7), reply(), b"answer")
    assert server.receive(datagram, PEER, 0.2) == Send(sent)
    assert isinstance(server.receive(datagram, PEER, 40.0), Message)  # forgotten by then


def test_what_is_sent_again_says_the_class_that_it_was_served_in(server: InferenceServer) -> None:
    (datagram,) = request()
    server.receive(datagram, PEER, 0.0)
    assert server.receive(datagram, PEER, 0.0).class_name is None  # type: ignore[union-attr]  # an ack: not judged yet
    sent = server.answer((PEER, 7), reply(class_name="batch"), bytes(2000))
    assert server.receive(datagram, PEER, 0.1) == Send(sent, "batch")
    missing = encode(Header(type=Type.RECEIVED, request_id=7, bitmap=1))
    assert server.receive(missing, PEER, 0.2) == Send(sent[1:], "batch")
    error = Header(type=Type.ERROR, request_id=8, status=503, reason=Reason.QUEUE_FULL.code, class_name="realtime")
    server.receive(request(8)[0], PEER, 0.3)
    refused = server.refuse((PEER, 8), error, b"{}")
    assert server.receive(request(8)[0], PEER, 0.4) == Send(refused, "realtime")


def test_the_same_id_from_another_peer_is_another_request(server: InferenceServer) -> None:
    (datagram,) = request()
    assert isinstance(server.receive(datagram, PEER, 0.0), Message)
    assert isinstance(server.receive(datagram, ("192.0.2.2", 1), 0.0), Message)


def test_missing_reply_fragments_are_sent_again(server: InferenceServer) -> None:
    server.receive(request()[0], PEER, 0.0)
    sent = server.answer((PEER, 7), reply(), bytes(4000))
    assert len(sent) == 4
    received = Header(type=Type.RECEIVED, request_id=7, bitmap=0b1001)
    assert server.receive(encode(received), PEER, 0.1) == Send(sent[1:3])


def test_cancel_reaches_the_work_and_a_repeat_waits_for_its_end(server: InferenceServer) -> None:
    (datagram,) = request()
    server.receive(datagram, PEER, 0.0)
    cancel = encode(Header(type=Type.CANCEL, request_id=7))
    assert server.receive(cancel, PEER, 0.0) == Cancelled((PEER, 7))
    assert isinstance(server.receive(datagram, PEER, 0.0), Send)  # an ack: the walk has not ended yet
    server.forget((PEER, 7))
    assert server.receive(cancel, PEER, 0.0) == Dropped("unknown_exchange")
    assert isinstance(server.receive(datagram, PEER, 0.0), Message)


def test_a_length_that_its_own_fragment_belies_books_nothing(server: InferenceServer) -> None:
    liar = encode(Header(type=Type.REQUEST, request_id=1, model="m", total_length=32 << 20)) + b"x"
    outcome = server.receive(liar, PEER, 0.0)
    assert isinstance(outcome, Dropped)
    assert outcome.reason.startswith("malformed")
    assert server.receive(request(2, bytes(5000))[0], ("192.0.2.2", 1), 0.0) == Send([])


def test_a_refusal_is_one_datagram_and_its_document_goes_if_it_does_not_fit(server: InferenceServer) -> None:
    server.receive(request()[0], PEER, 0.0)
    header = Header(type=Type.ERROR, request_id=7, reason=Reason.QUEUE_FULL.code, status=503, retry_after_ms=50)
    (short,) = server.refuse((PEER, 7), header, b"{}")
    (cut,) = server.refuse((PEER, 7), header, b"x" * 5000)
    assert short.endswith(b"{}")
    assert decode(cut)[0].total_length == 0
    assert max(len(short), len(cut)) <= MAX_DATAGRAM


def test_an_answer_that_fits_no_sixteen_fragments_asks_for_a_stream(server: InferenceServer) -> None:
    server.receive(request()[0], PEER, 0.0)
    with pytest.raises(Refused) as refused:
        server.answer((PEER, 7), reply(), bytes(50_000))
    assert refused.value.reason is Reason.USE_STREAM


def test_unanswered_requests_of_one_peer_are_bounded_and_others_unaffected(server: InferenceServer) -> None:
    for number in range(inference.MAX_UNANSWERED_A_PEER):
        assert isinstance(server.receive(request(number)[0], PEER, 0.0), Message)
    assert server.receive(request(1 << 40)[0], PEER, 0.0) == Dropped("too_many_exchanges")
    assert isinstance(server.receive(request()[0], ("192.0.2.2", 1), 0.0), Message)
    server.answer((PEER, 0), reply(0), b"")
    assert isinstance(server.receive(request(1 << 40)[0], PEER, 0.0), Message)


def test_half_arrived_bodies_are_bounded_and_make_room_when_they_are_stale() -> None:
    server = InferenceServer(cookies=None, holdings=Holdings(arriving=Shelf(10_000)))
    for number in range(2):
        assert server.receive(request(number, bytes(5000), remaining_us=1_000_000)[0], PEER, 0.0) == Send([])
    assert server.receive(request(9, bytes(5000))[0], PEER, 0.0) == Dropped("reassembly_full")
    for now in (0.0, 0.9):
        assert server.receive(request(9, bytes(5000))[0], PEER, now) == Dropped("reassembly_full")
    assert server.receive(request(9, bytes(5000), remaining_us=60_000_000)[0], PEER, 1.5) == Send([])
    assert server.receive(request(10, bytes(5000))[0], PEER, 2.0) == Send([])
    assert server.receive(request(11, bytes(5000))[0], PEER, 2.0) == Dropped("reassembly_full")
    assert server.receive(request(11, bytes(5000))[0], PEER, 3.0) == Send([])
    assert server.receive(request(12, bytes(5000))[0], PEER, 3.0) == Dropped("reassembly_full")


def test_no_host_has_all_the_room_for_half_arrived_bodies(server: InferenceServer) -> None:
    length = MAX_FRAGMENTS * 1000
    most = inference.MAX_ARRIVING_A_HOST // length
    for number in range(most):
        assert server.receive(request(number, bytes(length))[0], ("192.0.2.9", number), 0.0) == Send([])
    assert server.receive(request(0, bytes(length))[0], ("192.0.2.9", 1 << 15), 0.0) == Dropped("reassembly_full")
    assert server.receive(request(0, bytes(length))[0], PEER, 0.0) == Send([])
    for each in request(1, bytes(length))[1:]:
        last = server.receive(each, ("192.0.2.9", 1), 0.0)
    assert isinstance(last, Message)
    assert server.receive(request(0, bytes(length))[0], ("192.0.2.9", 1 << 15), 0.0) == Send([])


def test_servers_of_one_listener_share_what_they_hold() -> None:
    holdings = Holdings(kept=Shelf(2 * (1100 + inference.KEPT_OVERHEAD)))
    one, other = (InferenceServer(cookies=None, holdings=holdings) for _ in range(2))
    for number, server in enumerate((one, other, one)):
        server.receive(request(number)[0], PEER, 0.0)
        server.answer((PEER, number), reply(number), bytes(1000))
    assert isinstance(other.receive(request(1)[0], PEER, 0.0), Send)
    assert isinstance(one.receive(request(2)[0], PEER, 0.0), Send)
    assert isinstance(one.receive(request(0)[0], PEER, 0.0), Message)
    one.receive(request(7, bytes(5000))[0], PEER, 0.0)
    one.close()
    assert (len(holdings.kept), len(holdings.arriving), holdings.arriving.bytes) == (1, 0, 0)
    assert one.answer((PEER, 0), reply(0), b"late")
    one.forget((PEER, 0))
    other.close()
    assert holdings.kept.bytes == 0


def test_a_fragment_of_another_message_changes_nothing(server: InferenceServer) -> None:
    good, bad = request(7, bytes(5000)), request(7, bytes(6000))
    server.receive(good[1], PEER, 0.0)
    assert server.receive(bad[0], PEER, 0.0) == Dropped("malformed_mismatch")
    outcomes = [server.receive(each, PEER, 0.0) for each in good]
    (message,) = (each for each in outcomes if isinstance(each, Message))
    assert message.header.total_length == 5000
    assert "arriving <Shelf of 0, 0 of" in repr(server)


def test_kept_replies_are_bounded_and_the_oldest_leaves_first() -> None:
    server = InferenceServer(cookies=None, holdings=Holdings(kept=Shelf(2 * (1100 + inference.KEPT_OVERHEAD))))
    for number in (1, 2, 3):
        server.receive(request(number)[0], PEER, 0.0)
        server.answer((PEER, number), reply(number), bytes(1000))
    assert isinstance(server.receive(request(3)[0], PEER, 0.0), Send)
    assert isinstance(server.receive(request(1)[0], PEER, 0.0), Message)


def test_work_that_outlives_its_kept_time_is_not_started_twice(server: InferenceServer) -> None:
    (datagram,) = request()
    assert isinstance(server.receive(datagram, PEER, 0.0), Message)
    assert isinstance(server.receive(datagram, PEER, 100.0), Send)
    server.forget((PEER, 7))
    assert isinstance(server.receive(datagram, PEER, 100.0), Message)


@given(st.lists(st.binary(max_size=200), max_size=20), st.booleans())
def test_any_bytes_are_dropped_without_a_trace(datagrams: list[bytes], with_cookies: bool) -> None:
    server = InferenceServer(cookies=CookieJar(bytes(32)) if with_cookies else None)
    for each in datagrams:
        outcome = server.receive(each, PEER, 0.0)
        if isinstance(outcome, Send):
            assert sum(map(len, outcome.datagrams)) <= len(each)


class _Lossy:
    """A network that loses, repeats and reorders by a seed, between an Exchange and the server."""

    def __init__(self, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss

    def carry(self, datagrams: list[bytes]) -> list[bytes]:
        arrived = [each for each in datagrams if self.random.random() >= self.loss]
        arrived += [each for each in arrived if self.random.random() < 0.1]
        self.random.shuffle(arrived)
        return arrived


@given(
    seed=st.integers(0, 1 << 32),
    loss=st.sampled_from([0.0, 0.2, 0.5]),
    size=st.sampled_from([2, 1000, 8300, 15_000]),
    answer=st.sampled_from([0, 900, 9000]),
    remaining_us=st.sampled_from([0, 1]),
)
def test_with_the_real_client_half_every_exchange_ends_and_runs_once(
    seed: int, loss: float, size: int, answer: int, remaining_us: int
) -> None:
    network, server = _Lossy(seed, loss), InferenceServer(cookies=CookieJar(bytes(32)))
    body, runs, now = bytes(size), 0, 0.0
    header = Header(type=Type.REQUEST, request_id=7, model="m", remaining_us=remaining_us)
    exchange = Exchange(header, body, now=now, deadline=20.0)
    to_server = exchange.start(now)
    while exchange.reply is None and exchange.failed is None:
        to_client: list[bytes] = []
        for datagram in network.carry(to_server):
            outcome = server.receive(datagram, PEER, now)
            if isinstance(outcome, Send):
                to_client += outcome.datagrams
            elif isinstance(outcome, Message):
                assert outcome.body == body
                runs += 1
                to_client += server.answer(outcome.key, reply(json_length=0), bytes(answer))
        to_server = []
        for datagram in network.carry(to_client):
            header, offset = decode(datagram)
            to_server += exchange.receive(header, datagram[offset:], now)
        if not to_server:
            now = max(now + 0.001, exchange.timer())
            to_server = exchange.on_timer(now)
    assert runs <= 1
    if exchange.reply is not None:
        assert exchange.reply[1] == bytes(answer)
        assert runs == 1
    else:
        assert isinstance(exchange.failed, Refused)
        assert loss > 0

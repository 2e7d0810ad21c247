# SPDX-License-Identifier: Apache-2.0
"""One request over datagrams: the conversations of docs/wire.md, and each of its rules."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from inferlane.errors import Reason, Refused
from inferlane.transfer import NO_COOKIE, Exchange, refusal
from inferlane.wire import MAX_FRAGMENTS, UNTIL_FIN, Header, Type, decode, encode, fragments
from tests.fakes.wire_page import header_of, unhex, vectors

ID = 0x0123456789ABCDEF
COOKIE = b"c" * 16
REQUEST = Header(type=Type.REQUEST, request_id=ID, model="m", remaining_us=1)
REPLY = Header(type=Type.REPLY, request_id=ID, status=200)
SMALL = 128
"""Small datagrams, so that small bodies have fragments."""


def an_exchange(body=b"{}", *, deadline=10.0, **path):
    path.setdefault("max_datagram", SMALL)
    return Exchange(REQUEST, body, now=0.0, deadline=deadline, **path)


def read(datagrams):
    """What was sent, decoded, without the payloads."""
    return [decode(each)[0] for each in datagrams]


def shown(datagrams):
    return [(each.type, each.index) for each in read(datagrams)]


def receive(exchange, message, now, payload=b""):
    return exchange.receive(message, payload, now)


def challenge(cookie=COOKIE):
    return Header(type=Type.CHALLENGE, request_id=ID, cookie=cookie)


def ack(bitmap):
    return Header(type=Type.ACK, request_id=ID, bitmap=bitmap)


def fragments_of(header, body):
    return [(*decode(each), each) for each in fragments(header, body, max_datagram=SMALL)]


def deliver(exchange, header, body, now, only=range(MAX_FRAGMENTS)):
    for each, length, datagram in fragments_of(header, body):
        if each.index in only:
            assert exchange.receive(each, datagram[length:], now) == []


def step_of(exchange, step):
    """One step of a conversation on the page: what the client sends then."""
    if "start" in step:
        return exchange.start(step["at"])
    if "timer" in step:
        assert exchange.timer() == pytest.approx(step["at"])
        return exchange.on_timer(exchange.timer())
    message = unhex(step["receive"])
    header, length = decode(message)
    return exchange.receive(header, message[length:], step["at"])


class TestThePage:
    @pytest.mark.parametrize("story", vectors("conversations"), ids=lambda story: story["name"])
    def test_the_client_says_what_it_shows(self, story):
        exchange = Exchange(
            header_of(story["header"]),
            unhex(story["body"]),
            now=0.0,
            deadline=story["deadline"],
            max_datagram=story["max_datagram"],
            cookie=story["cookie"] and unhex(story["cookie"]),
        )
        for step in story["steps"]:
            assert [each.hex(" ") for each in step_of(exchange, step)] == [
                unhex(each).hex(" ") for each in step["send"]
            ]
        ends = story["ends"]
        assert exchange.rtt_s == (ends["rtt_s"] and pytest.approx(ends["rtt_s"]))
        if "failed" in ends:
            assert (exchange.failed.reason.label, exchange.reply) == (ends["failed"], None)
        else:
            assert (exchange.failed, exchange.reply[1]) == (None, unhex(ends["reply"]))


class TestHostileServers:
    def test_a_reply_for_another_request_is_none(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        deliver(exchange, replace(REPLY, request_id=ID + 1), b"theirs", 0.01)
        assert not exchange.done
        deliver(exchange, REPLY, b"ours", 0.02)
        assert exchange.reply[1] == b"ours"

    def test_a_message_that_only_clients_send_is_ignored(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        assert exchange.receive(REQUEST, b"{}", 0.01) == []
        assert not exchange.done

    def test_a_reply_whose_length_lies_is_dropped_and_counted(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        receive(exchange, replace(REPLY, total_length=4), 0.01, b"123")
        receive(exchange, replace(REPLY, total_length=UNTIL_FIN), 0.01, b"123")
        assert (exchange.done, exchange.dropped) == (False, 2)

    def test_fragments_of_two_replies_are_not_mixed(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        deliver(exchange, REPLY, bytes(300), 0.01, only=[0])
        deliver(exchange, REPLY, bytes(301), 0.01, only=[1, 2, 3])
        assert not exchange.done
        deliver(exchange, REPLY, bytes(300), 0.02)
        assert exchange.reply[1] == bytes(300)

    def test_between_two_timers_one_answer_is_all_it_gets(self):
        exchange = an_exchange(bytes(300), cookie=COOKIE)
        exchange.start(0.0)
        assert shown(receive(exchange, ack(0b1101), 0.01)) == [(Type.REQUEST, 1)]
        assert receive(exchange, ack(0b1001), 0.02) == []
        assert shown(exchange.on_timer(exchange.timer())) == [(Type.REQUEST, 1), (Type.REQUEST, 2), (Type.REQUEST, 0)]
        assert shown(receive(exchange, ack(0b1101), 0.06)) == [(Type.REQUEST, 1)]

    def test_so_is_one_more_challenge(self):
        exchange = an_exchange()
        exchange.start(0.0)
        assert len(receive(exchange, challenge(b"1" * 16), 0.01)) == 1
        assert len(receive(exchange, challenge(b"2" * 16), 0.02)) == 1
        assert receive(exchange, challenge(b"3" * 16), 0.03) == []
        assert exchange.cookie == b"3" * 16
        assert read(exchange.on_timer(exchange.timer()))[0].cookie == b"3" * 16


class TestFirstFlight:
    def test_without_a_cookie_it_is_the_first_fragment_alone_and_long_enough_for_a_challenge(self):
        exchange = Exchange(replace(REQUEST, model="m"), b"", now=0.0, deadline=1.0)
        flight = exchange.start(0.0)
        assert [each.cookie for each in read(flight)] == [NO_COOKIE]
        assert len(flight[0]) >= len(encode(challenge()))
        assert len(an_exchange(bytes(500)).start(0.0)) == 1

    def test_the_challenge_brings_all_of_it_with_the_cookie_and_cut_as_before(self):
        exchange = an_exchange(bytes(300))
        first = exchange.start(0.0)
        rest = receive(exchange, challenge(), 0.02)
        assert shown(rest) == [(Type.REQUEST, index) for index in range(4)]
        assert {each.cookie for each in read(rest)} == {COOKIE}
        assert len(rest[0]) == len(first[0]) == SMALL
        assert exchange.rtt_s == 0.02
        assert exchange.timer() == pytest.approx(0.02 + 3 * 0.02)

    def test_a_repeated_challenge_is_not_answered_twice(self):
        exchange = an_exchange()
        exchange.start(0.0)
        assert receive(exchange, challenge(), 0.02)
        assert receive(exchange, challenge(), 0.03) == []

    def test_with_a_cookie_it_is_all_of_it(self):
        assert len(an_exchange(bytes(300), cookie=COOKIE).start(0.0)) == 4

    def test_a_cookie_that_is_old_is_replaced_and_all_is_sent_again(self):
        exchange = an_exchange(bytes(300), cookie=b"old" + bytes(13))
        exchange.start(0.0)
        assert len(receive(exchange, challenge(), 0.02)) == 4
        assert exchange.cookie == COOKIE

    def test_inside_quic_it_is_all_of_it_and_no_cookie_ever(self):
        exchange = an_exchange(bytes(300), cookies=False)
        flight = exchange.start(0.0)
        assert len(flight) > 1
        assert receive(exchange, challenge(), 0.01) == []
        everything = [*flight, *exchange.on_timer(0.05), *exchange.cancel()]
        assert {each.cookie for each in read(everything)} == {None}

    def test_every_fragment_tells_what_is_left_of_the_time(self):
        exchange = an_exchange(bytes(300), cookie=COOKIE, deadline=0.2)
        assert {each.remaining_us for each in read(exchange.start(0.0))} == {200_000}
        assert {each.remaining_us for each in read(exchange.on_timer(0.05))} == {150_000}

    def test_unless_the_request_leaves_the_deadline_to_its_class(self):
        exchange = Exchange(replace(REQUEST, remaining_us=0), b"{}", now=0.0, deadline=1.0)
        assert {each.remaining_us for each in read(exchange.start(0.0))} == {0}

    def test_a_body_for_more_than_sixteen_datagrams_is_refused_before_anything_is_sent(self):
        with pytest.raises(Refused) as caught:
            an_exchange(bytes(MAX_FRAGMENTS * SMALL))
        assert caught.value.reason is Reason.USE_STREAM


class TestRepeats:
    def test_they_come_at_growing_intervals_until_the_deadline(self):
        exchange = an_exchange(deadline=4.0)
        exchange.start(0.0)
        times = []
        while not exchange.done:
            times.append(round(exchange.timer(), 3))
            exchange.on_timer(exchange.timer())
        assert times == [0.05, 0.15, 0.35, 0.75, 1.55, 2.55, 3.55, 4.0]
        assert (exchange.failed.reason, exchange.timer()) == (Reason.DEADLINE, inf)

    @pytest.mark.parametrize(("rtt_s", "first"), [(None, 0.05), (0.01, 0.05), (0.1, 0.3), (5.0, 1.0)])
    def test_the_first_waits_for_three_round_trips(self, rtt_s, first):
        exchange = an_exchange(rtt_s=rtt_s)
        exchange.start(0.0)
        assert exchange.timer() == pytest.approx(first)

    def test_before_its_time_the_timer_does_nothing(self):
        exchange = an_exchange()
        exchange.start(0.0)
        assert exchange.on_timer(0.049) == []

    def test_without_an_ack_the_last_and_the_first_fragment_ask_for_one(self):
        exchange = an_exchange(bytes(300), cookie=COOKIE)
        exchange.start(0.0)
        assert shown(exchange.on_timer(0.05)) == [(Type.REQUEST, 3), (Type.REQUEST, 0)]

    def test_when_all_is_acked_fragment_0_asks_for_the_reply(self):
        exchange = an_exchange(bytes(300), cookie=COOKIE)
        exchange.start(0.0)
        assert receive(exchange, ack(0b1111), 0.01) == []
        assert shown(exchange.on_timer(0.05)) == [(Type.REQUEST, 0)]
        assert shown(receive(exchange, challenge(b"n" * 16), 0.06)) == [(Type.REQUEST, 0)]

    def test_a_reply_with_gaps_is_asked_for_without_repeating_the_request(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        deliver(exchange, REPLY, bytes(300), 0.01, only=[0, 2])
        first = read(exchange.on_timer(exchange.timer()))
        assert [(each.type, each.bitmap, each.cookie) for each in first] == [(Type.RECEIVED, 0b101, COOKIE)]
        assert shown(exchange.on_timer(exchange.timer())) == [(Type.RECEIVED, 0), (Type.PING, 0)]
        deliver(exchange, REPLY, bytes(300), 0.9, only=[0])
        assert shown(exchange.on_timer(exchange.timer())) == [(Type.RECEIVED, 0), (Type.PING, 0)]
        anew = read(receive(exchange, challenge(b"n" * 16), 1.0))
        assert [(each.type, each.bitmap, each.cookie) for each in anew] == [(Type.RECEIVED, 0b101, b"n" * 16)]
        assert receive(exchange, ack(0), 1.0) == []
        deliver(exchange, REPLY, bytes(300), 1.1, only=[1, 3])
        assert exchange.reply == (replace(REPLY, count=4, total_length=300), bytes(300))

    def test_after_a_repeat_nothing_is_measured(self):
        exchange = an_exchange()
        exchange.start(0.0)
        exchange.on_timer(0.05)
        receive(exchange, challenge(), 0.06)
        assert exchange.rtt_s is None

    @pytest.mark.parametrize(("backend_us", "rtt_s"), [(60_000, 0.02), (200_000, 0.0), (None, None)])
    def test_of_a_reply_only_the_way_is_measured_not_the_work(self, backend_us, rtt_s):
        exchange = an_exchange(cookie=COOKIE, rtt_s=None)
        exchange.start(0.0)
        receive(exchange, replace(REPLY, queue_us=20_000, backend_us=backend_us), 0.1 - 1e-9)
        assert exchange.done
        assert exchange.rtt_s == (None if rtt_s is None else pytest.approx(rtt_s, abs=1e-6))


class TestEndings:
    PROBLEM = b'{"title": "Service Unavailable", "detail": "waited 20 ms", "reason": "queue_timeout"}'
    ERROR = Header(type=Type.ERROR, request_id=ID, reason=Reason.QUEUE_TIMEOUT.code, status=503, retry_after_ms=250)

    def test_an_error_is_a_refusal_with_its_reason_detail_and_retry_after(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        deliver(exchange, REPLY, bytes(300), 0.01, only=[0])
        receive(exchange, replace(self.ERROR, total_length=len(self.PROBLEM)), 0.01, self.PROBLEM)
        failed = exchange.failed
        assert (failed.reason, failed.detail) == (Reason.QUEUE_TIMEOUT, "waited 20 ms")
        assert (failed.retry_after_s, failed.status) == (0.25, 503)
        assert exchange.reply is None

    @pytest.mark.parametrize(
        ("document", "detail"),
        [
            (b"", ""),
            (b"[1]", ""),
            (b'{"detail": 7}', ""),
            (b'{"detail": "half a pair \\ud800"}', "half a pair ?"),
            (b'{"title": "no detail"}', ""),
            (b'{"detail": "cut off', '{"detail": "cut off'),
            (b"\xff\xfe", "\ufffd\ufffd"),
            (b"[" * 5000, "[" * 2000),
        ],
    )
    def test_whatever_stands_in_the_place_of_the_document(self, document, detail):
        refused = refusal(replace(self.ERROR, reason=200, retry_after_ms=None), document)
        assert (refused.reason, refused.detail, refused.retry_after_s) == (Reason.INTERNAL, detail, None)

    def test_what_comes_at_the_deadline_comes_too_late(self):
        exchange = an_exchange(cookie=COOKIE, deadline=1.0)
        exchange.start(0.0)
        deliver(exchange, REPLY, b"late", 1.0)
        assert exchange.reply is None
        assert exchange.failed.reason is Reason.DEADLINE

    def test_after_the_deadline_nothing_starts(self):
        exchange = an_exchange(deadline=1.0)
        assert exchange.start(1.0) == []
        assert exchange.failed.reason is Reason.DEADLINE

    def test_after_the_end_nothing_is_said_any_more(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        deliver(exchange, REPLY, b"{}", 0.01)
        assert (receive(exchange, ack(0), 0.02), exchange.on_timer(99.0), exchange.cancel()) == ([], [], [])
        assert (exchange.failed, exchange.timer()) == (None, inf)

    def test_cancelling_tells_the_server_once(self):
        exchange = an_exchange(cookie=COOKIE)
        exchange.start(0.0)
        assert read(exchange.cancel()) == [Header(type=Type.CANCEL, request_id=ID, cookie=COOKIE)]
        assert (exchange.failed.reason, exchange.cancel(), exchange.start(0.1)) == (Reason.CANCELLED, [], [])

    def test_a_server_that_has_stored_nothing_need_not_be_told(self):
        exchange = an_exchange()
        exchange.start(0.0)
        assert exchange.cancel() == []

    def test_it_shows_where_it_stands(self):
        exchange = an_exchange(cookie=COOKIE)
        assert repr(exchange) == "<Exchange 0123456789abcdef asking>"
        exchange.start(0.0)
        deliver(exchange, REPLY, bytes(300), 0.01, only=[0])
        assert repr(exchange) == "<Exchange 0123456789abcdef receiving>"
        deliver(exchange, REPLY, bytes(300), 0.01)
        assert repr(exchange) == "<Exchange 0123456789abcdef replied>"

# SPDX-License-Identifier: Apache-2.0
"""An exchange through networks that lose, double and reorder, and with servers that mean no good."""

from __future__ import annotations

from itertools import cycle
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason
from inferlane.transfer import Exchange
from inferlane.wire import MAX_FRAGMENTS, Header, Type
from tests.fakes.datagram_server import DatagramServer, converse, then_perfect

ID = 0x0123456789ABCDEF
SMALL = 160
"""Bytes of a datagram, so that small bodies have fragments."""
BODY = bytes(range(256)) * 6
ANSWER = bytes(reversed(range(256))) * 6

travel_s = st.floats(0.001, 0.3)
# For each datagram the delays of its copies, none: it is lost.
fates = st.lists(travel_s, max_size=2)
# Inside QUIC, cookies that are old before the exchange ends, cookies that last.
epochs_s = st.sampled_from([None, 0.4, 60.0])


def an_exchange(body, *, deadline, cookies=True, **path):
    request = Header(type=Type.REQUEST, request_id=ID, model="m", remaining_us=1)
    return Exchange(request, body, now=0.0, deadline=deadline, max_datagram=SMALL, cookies=cookies, **path)


def most_datagrams(seconds):
    """Three phases of six doublings, then a timer each second; at each a flight, fragment 0 and one answer."""
    return (3 * 6 + ceil(seconds) + 2) * (2 * MAX_FRAGMENTS + 2)


class TestBadNetworks:
    @given(
        st.lists(fates, max_size=30), st.integers(0, 1500), st.integers(0, 1200), epochs_s, st.sampled_from([0, 0.7])
    )
    def test_once_the_network_recovers_the_reply_comes(self, fates, asked, answered, epoch_s, compute_s):
        server = DatagramServer(ANSWER[:answered], compute_s=compute_s, epoch_s=epoch_s, max_datagram=SMALL)
        exchange = an_exchange(BODY[:asked], deadline=200.0, cookies=epoch_s is not None)
        converse(exchange, server, then_perfect(fates), now=0.0)
        assert exchange.failed is None
        assert exchange.reply[1] == ANSWER[:answered]
        assert server.bodies == [BODY[:asked]]

    @given(st.lists(fates, min_size=1, max_size=30), st.integers(0, 1500), epochs_s, st.floats(0.01, 5))
    def test_in_any_network_it_ends_in_time_and_is_no_flood(self, fates, asked, epoch_s, deadline):
        server = DatagramServer(ANSWER, compute_s=0.1, epoch_s=epoch_s, max_datagram=SMALL)
        exchange = an_exchange(BODY[:asked], deadline=deadline, cookies=epoch_s is not None)
        sent, ended = converse(exchange, server, cycle(fates), now=0.0)
        assert ended <= deadline
        assert sent <= most_datagrams(deadline)
        if exchange.reply:
            assert exchange.reply[1] == ANSWER
        else:
            assert exchange.failed.reason is Reason.DEADLINE

    @given(st.floats(0.001, 0.02), st.booleans())
    def test_in_a_good_one_it_measures_the_path(self, one_way, known):
        server = DatagramServer(b"{}", compute_s=0.0, epoch_s=60.0, max_datagram=SMALL)
        exchange = an_exchange(b"{}", deadline=10.0, rtt_s=0.3, cookie=server.cookie(0.0) if known else None)
        converse(exchange, server, cycle([[one_way]]), now=0.0)
        assert exchange.rtt_s == pytest.approx(0.3 + (2 * one_way - 0.3) / 8)


@st.composite
def server_messages(draw):
    """What a server may say that has its reasons to confuse: well-formed headers, payloads that may fit."""
    kind = draw(st.sampled_from([Type.REPLY, Type.CHALLENGE, Type.ACK, Type.PONG, Type.ERROR]))
    count = draw(st.integers(1, 4)) if kind is Type.REPLY else 1
    header = Header(
        type=kind,
        request_id=draw(st.sampled_from([ID, ID, ID, ID + 1])),
        index=draw(st.integers(0, count - 1)),
        count=count,
        status=200 if kind in (Type.REPLY, Type.ERROR) else 0,
        reason=int(kind is Type.ERROR),
        total_length=count * draw(st.sampled_from([2, 2, 3])),
        cookie=draw(st.binary(min_size=16, max_size=16)) if kind is Type.CHALLENGE else None,
        bitmap=draw(st.integers(0, 0xFFFF)) if kind is Type.ACK else None,
    )
    return header, draw(st.binary(max_size=3))


@given(st.lists(st.tuples(st.floats(0, 0.2), server_messages()), max_size=60), st.booleans())
def test_whatever_a_server_says_the_client_neither_breaks_nor_floods(said, cookies):
    exchange = an_exchange(bytes(800), deadline=5.0, cookies=cookies)
    now, sent = 0.0, len(exchange.start(0.0))
    for wait_s, (header, payload) in said:
        now += wait_s
        while exchange.timer() <= now:
            sent += len(exchange.on_timer(exchange.timer()))
        was_done = exchange.done
        answer = exchange.receive(header, payload, now)
        if header.request_id != ID:
            assert (answer, exchange.done) == ([], was_done)
        sent += len(answer)
    assert sent <= most_datagrams(now)
    while not exchange.done:
        exchange.on_timer(exchange.timer())
    assert exchange.reply is None or exchange.reply[0].request_id == ID

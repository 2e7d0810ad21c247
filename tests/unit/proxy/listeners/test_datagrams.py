# SPDX-License-Identifier: Apache-2.0
"""Inference datagrams become walks; replies, refusals and answers too long for datagrams go back to their peer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable

import msgspec

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from inferlane.wire import Header, Type, decode, encode, fragments
from proxy.arrival import Arrival
from proxy.listeners.datagrams import DatagramExchanges
from tests.fakes.walk import Answer, FakeWalk, echo, never, pieces

PEER = ("192.0.2.1", 40000)


class Door:
    """Exchanges whose datagrams back are written down."""

    def __init__(self, answer: Answer) -> None:
        self.walk = FakeWalk(answer)
        self.sent: list[tuple[bytes, Hashable]] = []
        self.marks: list[tuple[str | None, int]] = []
        self.counts: Counter[str] = Counter()
        self.now = 5.0
        self.exchanges = DatagramExchanges(
            self.walk,
            self._send,
            transport="udp",
            listener="main",
            clock=lambda: self.now,
            counts=self.counts,
            cookies=None,
        )

    def _send(self, datagram: bytes, peer: Hashable, class_name: str | None, dscp: int) -> None:
        self.sent.append((datagram, peer))
        self.marks.append((class_name, dscp))

    async def say(self, *datagrams: bytes) -> None:
        for each in datagrams:
            self.exchanges.receive(each, PEER, client=PEER[0], dscp=46)
            self.now += 0.5
        for _ in range(10):
            await asyncio.sleep(0)

    def answers(self) -> list[tuple[Header, bytes]]:
        decoded = [(*decode(each), each) for each, peer in self.sent if peer == PEER]
        return [(header, each[length:]) for header, length, each in decoded]


def request(body: bytes = b"{}", request_id: int = 3) -> list[bytes]:
    header = Header(type=Type.REQUEST, request_id=request_id, model="m", class_name="realtime", remaining_us=9_000_000)
    return fragments(header, body)


async def test_a_request_and_its_reply_with_class_and_the_dscp_seen() -> None:
    door = Door(echo)
    await door.say(*request())
    (arrival,) = door.walk.arrivals
    assert (arrival.transport, arrival.client, arrival.dscp, arrival.asked_class) == ("udp", PEER[0], 46, "realtime")
    ((header, body),) = door.answers()
    assert (header.type, header.status, header.dscp) == (Type.REPLY, 200, 46)
    assert (header.class_name, body) == ("interactive", b"{}")
    assert door.exchanges.idle
    assert door.walk.answered[0].bytes_out == 2


async def test_the_remaining_time_of_a_fragmented_request_runs_from_its_first_fragment() -> None:
    door = Door(echo)
    await door.say(*request(bytes(3000)))
    assert door.walk.arrivals[0].timeline.received == 5.0
    assert door.now > 6.0


async def test_a_refusal_says_the_same_as_over_http() -> None:
    async def refuse(_: Arrival) -> Reply:
        raise Refused(Reason.QUEUE_FULL, "full", retry_after_s=0.05)

    door = Door(refuse)
    await door.say(*request())
    ((header, body),) = door.answers()
    assert (header.type, header.status, header.reason) == (Type.ERROR, 429, Reason.QUEUE_FULL.code)
    assert header.retry_after_ms == 50
    assert msgspec.json.decode(body)["reason"] == "queue_full"


async def test_a_piecewise_reply_is_gathered_and_one_that_is_too_long_asks_for_a_stream() -> None:
    replies = [Reply(body=pieces(b"one", b"two")), Reply(body=pieces(*[bytes(1000)] * 30)), Reply(body=bytes(30_000))]

    async def answer(_: Arrival) -> Reply:
        return replies.pop(0)

    door = Door(answer)
    await door.say(*request(request_id=1), *request(request_id=2), *request(request_id=3))
    (whole, body), (long, _), (also_long, _) = door.answers()
    assert (whole.type, body) == (Type.REPLY, b"onetwo")
    assert [each.reason for each in (long, also_long)] == [Reason.USE_STREAM.code] * 2


async def test_cancelling_reaches_the_walk_and_the_request_may_come_again() -> None:
    door = Door(never)
    await door.say(*request())
    await door.say(encode(Header(type=Type.CANCEL, request_id=3)))
    assert door.walk.cancelled == 1
    assert door.exchanges.idle
    await door.say(*request())
    assert len(door.walk.arrivals) == 2
    door.exchanges.cancel_all()
    await asyncio.sleep(0)


async def test_each_datagram_goes_back_with_its_class_and_the_dscp_that_came() -> None:
    door = Door(echo)
    await door.say(encode(Header(type=Type.PING, request_id=1)), *request())
    await door.say(*request())
    assert door.marks == [(None, 46), ("interactive", 46), ("interactive", 46)]  # a pong, a reply, and it again


async def test_what_is_dropped_is_counted_by_reason() -> None:
    door = Door(echo)
    await door.say(b"\x0a\x01rubbish", encode(Header(type=Type.PONG, request_id=1)))
    assert door.counts["reply_to_server"] == 1
    assert sum(door.counts.values()) == 2
    assert not door.sent

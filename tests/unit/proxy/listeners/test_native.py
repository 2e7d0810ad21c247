# SPDX-License-Identifier: Apache-2.0
"""ALPN inferlane/1: a request a stream, or in DATAGRAM frames, over one real connection in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from aioquic.quic.events import DatagramFrameReceived, StreamDataReceived, StreamReset

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from inferlane.wire import UNTIL_FIN, Header, Type, decode, encode, fragments
from proxy.arrival import Arrival
from proxy.listeners.marks import Marks
from proxy.listeners.native import BROKEN_OFF, CANCELLED, MALFORMED, NOT_ACCEPTED, NativeSession
from tests.fakes.walk import Answer, Conversation, FakeWalk, by_name, echo, never, pieces, policing


class Talk(Conversation):
    def __init__(
        self,
        tmp_path: Path,
        answer: Answer,
        *,
        streams: bool = True,
        datagrams: bool = True,
        marks: Marks | None = None,
    ) -> None:
        self.walk = FakeWalk(answer) if marks is None else FakeWalk(answer, by_name)
        self.counts: Counter[str] = Counter()
        super().__init__(
            tmp_path,
            "inferlane/1",
            lambda peer: NativeSession(
                peer,
                self.walk,
                listener="main",
                max_body=10_000,
                clock=lambda: 1.0,
                counts=self.counts,
                streams=streams,
                datagrams=datagrams,
            ),
            marks=marks,
        )

    def send(self, data: bytes, *, end: bool = True) -> int:
        stream_id = self.pair.client.get_next_available_stream_id()
        self.pair.client.send_stream_data(stream_id, data, end)
        return stream_id

    def answer_to(self, stream_id: int) -> tuple[Header, bytes]:
        said = [each for each in self.pair.client_events if isinstance(each, StreamDataReceived)]
        data = b"".join(each.data for each in said if each.stream_id == stream_id)
        assert any(each.end_stream for each in said if each.stream_id == stream_id)
        header, length = decode(data)
        return header, data[length:]

    def resets(self) -> list[int]:
        return [each.error_code for each in self.pair.client_events if isinstance(each, StreamReset)]


def request(
    body: bytes = b"{}", *, total: int | None = None, json_length: int = 0, cls: str = "realtime", request_id: int = 9
) -> bytes:
    length = len(body) if total is None else total
    header = Header(
        type=Type.REQUEST,
        request_id=request_id,
        model="m",
        class_name=cls,
        remaining_us=50_000,
        total_length=length,
        json_length=json_length,
    )
    return encode(header) + body


async def test_a_request_on_a_stream(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    stream_id = talk.send(request(b"{}tensor", json_length=2))
    await talk.run()
    (arrival,) = talk.walk.arrivals
    assert (arrival.transport, arrival.model, arrival.asked_class, arrival.timeout_s) == (
        "stream",
        "m",
        "realtime",
        0.05,
    )
    header, body = talk.answer_to(stream_id)
    assert (header.type, header.status, header.request_id, header.class_name) == (Type.REPLY, 200, 9, "interactive")
    assert (body, header.total_length, header.json_length) == (b"{}tensor", 8, 2)
    assert talk.session.idle


async def test_a_request_byte_by_byte_and_until_fin(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    data = request(b"{}", total=UNTIL_FIN)
    stream_id = talk.send(data[:1], end=False)
    for at in range(1, len(data)):
        talk.pair.client.send_stream_data(stream_id, data[at : at + 1], at == len(data) - 1)
        await talk.run(1)
    await talk.run()
    assert talk.answer_to(stream_id)[1] == b"{}"


async def test_a_body_that_lies_about_its_length_or_is_too_long(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    short, long = talk.send(request(b"{}", total=5)), talk.send(request(b"{}xxxx", total=5))
    huge = talk.send(request(bytes(20_000)))
    await talk.run()
    reasons = [Reason.from_code(talk.answer_to(each)[0].reason) for each in (short, long, huge)]
    assert reasons == [Reason.BAD_REQUEST, Reason.BAD_REQUEST, Reason.TOO_LARGE]


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x02" + bytes(40), b"\x0a", b"", bytes(2000)])
async def test_rubbish_on_a_stream_is_reset_and_counted(tmp_path: Path, rubbish: bytes) -> None:
    talk = Talk(tmp_path, echo)
    talk.send(rubbish)
    await talk.run()
    assert talk.resets() == [MALFORMED]
    assert sum(talk.counts.values()) == 1
    assert not talk.walk.arrivals


async def test_a_reply_header_on_a_stream_is_no_request(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    talk.send(encode(Header(type=Type.REPLY, request_id=1, status=200)))
    await talk.run()
    assert talk.resets() == [MALFORMED]


async def test_refusals_and_replies_that_break_off(tmp_path: Path) -> None:
    broken = Refused(Reason.BACKEND_FAILED, "closed half-way")

    async def answer(arrival: Arrival) -> Reply:
        if arrival.body.received == 1:
            raise Refused(Reason.QUEUE_TIMEOUT, "busy", retry_after_s=0.25)
        return Reply(body=pieces(b"one", b"two", error=broken if arrival.body.received == 2 else None))

    talk = Talk(tmp_path, answer)
    refused, piecewise = talk.send(request(b"1")), talk.send(request(b"333"))
    await talk.run()
    header, body = talk.answer_to(refused)
    assert (header.type, header.status, header.retry_after_ms) == (Type.ERROR, 429, 250)
    assert b"queue_timeout" in body
    header, body = talk.answer_to(piecewise)
    assert (header.total_length, body) == (UNTIL_FIN, b"onetwo")
    talk.send(request(b"22"))
    await talk.run()
    assert talk.resets() == [BROKEN_OFF]


async def test_a_reset_stream_cancels_its_walk_and_a_closed_connection_all(tmp_path: Path) -> None:
    talk = Talk(tmp_path, never)
    stream_id = talk.send(request())
    talk.send(request(b"{}", total=UNTIL_FIN), end=False)
    await talk.run()
    talk.pair.client.stop_stream(stream_id, 1)
    await talk.run()
    assert talk.walk.cancelled == 1
    assert talk.resets() == [CANCELLED] or talk.resets()
    talk.session.closed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 2


async def test_what_the_listener_does_not_accept_is_reset(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo, streams=False)
    talk.send(request())
    await talk.run()
    assert talk.resets() == [NOT_ACCEPTED]
    assert not talk.walk.arrivals


async def test_a_request_in_datagram_frames_both_ways_fragmented(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    body = bytes(range(256)) * 16
    head = Header(type=Type.REQUEST, request_id=11, model="m")
    for each in fragments(head, body, max_datagram=1100):
        talk.pair.client.send_datagram_frame(each)
    await talk.run(20)
    said = [
        (*decode(each.data), each.data) for each in talk.pair.client_events if isinstance(each, DatagramFrameReceived)
    ]
    replies = sorted(((h.index, d[n:]) for h, n, d in said if h.type is Type.REPLY))
    assert b"".join(payload for _, payload in replies) == body
    assert talk.walk.arrivals[0].transport == "datagram"
    assert talk.session.idle


async def test_rubbish_in_datagram_frames_is_counted(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    talk.pair.client.send_datagram_frame(b"\x0arubbish")
    await talk.run()
    assert sum(talk.counts.values()) == 1


async def test_refused_streams_leave_the_connection_as_it_was(tmp_path: Path) -> None:
    async def refuse(arrival: Arrival) -> Reply:
        raise Refused(Reason.UNKNOWN_MODEL, "nobody")

    talk = Talk(tmp_path, refuse)
    for number in range(400):
        talk.send(request(bytes(9000)))
        talk.send(request(bytes(9000), total=UNTIL_FIN), end=number % 2 == 0)
        talk.send(b"rubbish" * 20, end=False)
        await talk.run(4)
    await talk.run(40)
    session, quic = talk.session, talk.pair.server
    assert session._refused == set()  # type: ignore[attr-defined]
    assert (session._bodies, session._heads, session._exchanges._tasks) == ({}, {}, {})  # type: ignore[attr-defined]
    assert len(quic._streams) < 80
    assert len(quic._consumed) < 200


async def test_a_length_over_the_cap_is_refused_before_a_byte_of_it_came(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    stream_id = talk.send(request(b"", total=2 << 30), end=False)
    await talk.run()
    assert Reason.from_code(talk.answer_to(stream_id)[0].reason) is Reason.TOO_LARGE


async def test_a_lower_class_waits_on_a_higher_mark_and_the_higher_one_does_not(tmp_path: Path) -> None:
    async def answer(_: Arrival) -> Reply:
        return Reply(body=bytes(40_000))

    talk = Talk(tmp_path, answer, marks=policing())
    talk.send(request())
    await talk.run()
    held = talk.send(request(cls="batch"))
    await talk.run()
    said = [each for each in talk.pair.client_events if isinstance(each, StreamDataReceived)]
    data = b"".join(each.data for each in said if each.stream_id == held)
    header, length = decode(data)
    assert (header.class_name, header.total_length, len(data) - length) == ("batch", 40_000, 16_384)
    also = talk.send(request())
    await talk.run()
    assert len(talk.answer_to(also)[1]) == 40_000
    talk.session.closed()
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 1


async def test_datagrams_of_a_lower_class_wait_too_and_what_is_repeated_counts(tmp_path: Path) -> None:
    async def answer(_: Arrival) -> Reply:
        return Reply(body=bytes(8_000))

    talk = Talk(tmp_path, answer, marks=policing())

    def replies() -> list[int]:
        said = [each.data for each in talk.pair.client_events if isinstance(each, DatagramFrameReceived)]
        return [decode(each)[0].request_id for each in said if decode(each)[0].index == 0]

    talk.pair.client.send_datagram_frame(request(request_id=1))
    await talk.run()
    talk.pair.client.send_datagram_frame(request(cls="batch", request_id=2))
    await talk.run()
    talk.pair.client.send_datagram_frame(request(cls="batch", request_id=2))
    await talk.run()
    assert replies() == [1, 2, 2]
    talk.pair.client.send_datagram_frame(request(cls="batch", request_id=3))
    talk.pair.client.send_datagram_frame(request(request_id=4))
    await talk.run()
    talk.pair.client.send_datagram_frame(request(cls="batch", request_id=2))
    await talk.run()
    assert replies() == [1, 2, 2, 4]  # the bucket is empty: a kept reply does not go out at will
    assert talk.counts["policed"] == 1
    talk.session.closed()
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 1

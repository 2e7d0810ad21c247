# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 requests become arrivals; replies, refusals, resets and slow readers are met on the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from aioquic.h3.connection import ErrorCode
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.events import StopSendingReceived, StreamReset

from backends.messages import Reply
from inferlane.errors import Reason, Refused
from proxy.arrival import Arrival, Operation
from proxy.listeners.http3 import WRITE_AHEAD, Http3Session
from proxy.listeners.marks import Marks
from proxy.quic.configuration import STREAM_WINDOW
from tests.fakes.quic import Http3Client
from tests.fakes.walk import Answer, Conversation, FakeWalk, by_name, echo, never, pieces, policing

INFER = b"/v2/models/m/infer"


class Talk(Conversation):
    def __init__(self, tmp_path: Path, answer: Answer, max_body: int = 1 << 20, *, marks: Marks | None = None) -> None:
        self.walk = FakeWalk(answer) if marks is None else FakeWalk(answer, by_name)
        super().__init__(
            tmp_path,
            "h3",
            lambda peer: Http3Session(peer, self.walk, listener="main", max_body=max_body, clock=lambda: 1.0),
            marks=marks,
        )
        self.client = Http3Client(self.pair)

    def send(
        self,
        path: bytes,
        body: bytes | None = None,
        *fields: tuple[bytes, bytes],
        method: bytes = b"POST",
        end: bool = True,
    ) -> int:
        stream_id = self.pair.client.get_next_available_stream_id()
        head = [(b":method", method), (b":scheme", b"https"), (b":authority", b"localhost"), (b":path", path), *fields]
        self.client.http.send_headers(stream_id, head, end_stream=body is None)
        if body is not None:
            self.client.http.send_data(stream_id, body, end_stream=end)
        return stream_id

    def answer_to(self, stream_id: int) -> tuple[dict[bytes, bytes], bytes]:
        head: dict[bytes, bytes] = {}
        body = b""
        kept = [each for each in self.pair.client_events if isinstance(each, StreamReset | StopSendingReceived)]
        for event in self.client.events():
            if isinstance(event, HeadersReceived) and event.stream_id == stream_id:
                head = dict(event.headers)
            elif isinstance(event, DataReceived) and event.stream_id == stream_id:
                body += event.data
        self.pair.client_events += kept
        return head, body


async def test_a_request_arrives_with_what_its_head_says_and_the_reply_goes_back(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    stream_id = talk.send(
        INFER,
        b"{}tensor",
        (b"inferlane-class", b"realtime"),
        (b"inferlane-timeout", b"50ms"),
        (b"priority", b"u=1"),
        (b"inference-header-content-length", b"2"),
        (b"x-request-id", b"mine-1"),
    )
    await talk.run()
    (arrival,) = talk.walk.arrivals
    assert (arrival.operation, arrival.model, arrival.transport) == (Operation.INFER, "m", "h3")
    assert (arrival.asked_class, arrival.timeout_s, arrival.urgency, arrival.json_length) == ("realtime", 0.05, 1, 2)
    head, body = talk.answer_to(stream_id)
    assert head[b":status"] == b"200"
    assert head[b"x-request-id"] == b"mine-1"
    assert head[b"inferlane-class"] == b"interactive"
    assert b"network;dur=" in head[b"server-timing"]
    assert body == b"{}tensor"
    assert talk.walk.answered[0].bytes_out == 8
    assert talk.session.idle


async def test_what_the_door_finds_wrong_is_an_arrival_with_a_refusal(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo, max_body=100)
    cases = {
        talk.send(b"/nowhere", b""): Reason.NOT_FOUND,
        talk.send(INFER, None, method=b"GET"): Reason.METHOD_NOT_ALLOWED,
        talk.send(INFER, b"", (b"inferlane-timeout", b"50")): Reason.BAD_REQUEST,
        talk.send(INFER, b"xx", (b"content-length", b"1000"), end=False): Reason.TOO_LARGE,
        talk.send(INFER, b"", (b"bad(name", b"x")): Reason.BAD_REQUEST,
        talk.send(INFER, b"", *((b"x", b"y"),) * 101): Reason.FIELDS_TOO_LARGE,
    }
    await talk.run()
    assert [each.refusal.reason for each in talk.walk.arrivals if each.refusal] == list(cases.values())
    head, body = talk.answer_to(12)
    assert head[b":status"] == b"413"
    assert head[b"content-type"] == b"application/problem+json"
    assert msgspec.json.decode(body)["reason"] == "too_large"


@pytest.mark.parametrize(("declared", "sent"), [(b"3", b"12345"), (b"9", b"12345")])
async def test_a_body_that_is_not_as_long_as_declared_is_never_read_as_whole(
    tmp_path: Path, declared: bytes, sent: bytes
) -> None:
    talk = Talk(tmp_path, echo)
    stream_id = talk.send(INFER, sent, (b"content-length", declared))
    await talk.run()
    head, body = talk.answer_to(stream_id)
    assert head[b":status"] == b"400"
    assert b"content-length" in body


async def test_a_body_over_the_cap_without_a_length_is_413(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo, max_body=1000)
    stream_id = talk.send(INFER, bytes(5000))
    await talk.run()
    assert talk.answer_to(stream_id)[0][b":status"] == b"413"


async def test_an_answer_before_the_end_of_the_body_asks_the_client_to_stop(tmp_path: Path) -> None:
    async def refuse(_: Arrival) -> Reply:
        raise Refused(Reason.QUEUE_FULL, "full", retry_after_s=0.2)

    talk = Talk(tmp_path, refuse, max_body=8 * STREAM_WINDOW)
    stream_id = talk.send(INFER, bytes(3 * STREAM_WINDOW))
    await talk.run(60)
    head, body = talk.answer_to(stream_id)
    assert (head[b":status"], head[b"retry-after"]) == (b"429", b"1")
    assert msgspec.json.decode(body)["retry_after_ms"] == 200
    stops = [each for each in talk.pair.client_events if isinstance(each, StopSendingReceived)]
    assert [each.error_code for each in stops] == [ErrorCode.H3_NO_ERROR]


async def test_a_client_that_resets_its_stream_cancels_the_walk(tmp_path: Path) -> None:
    talk = Talk(tmp_path, never)
    stream_id = talk.send(INFER, b"part", end=False)
    await talk.run()
    assert not talk.session.idle
    talk.pair.client.reset_stream(stream_id, ErrorCode.H3_REQUEST_CANCELLED)
    await talk.run()
    assert talk.walk.cancelled == 1
    assert talk.session.idle
    assert (
        stream_id not in talk.pair.server._streams or talk.pair.server._streams[stream_id].sender.reset_pending is False
    )


async def test_a_client_that_stops_reading_cancels_the_walk(tmp_path: Path) -> None:
    talk = Talk(tmp_path, never)
    stream_id = talk.send(INFER, b"whole")
    await talk.run()
    talk.pair.client.stop_stream(stream_id, ErrorCode.H3_REQUEST_CANCELLED)
    await talk.run()
    assert talk.walk.cancelled == 1


async def test_a_connection_that_goes_away_cancels_everything(tmp_path: Path) -> None:
    talk = Talk(tmp_path, never)
    talk.send(INFER, b"one")
    talk.send(INFER, b"two", end=False)
    await talk.run()
    talk.session.closed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 2


async def test_a_piecewise_reply_and_one_that_breaks_off(tmp_path: Path) -> None:
    broken = Refused(Reason.BACKEND_FAILED, "closed half-way")
    replies = [Reply(body=pieces(b"one", b"two")), Reply(body=pieces(b"one", error=broken))]

    async def answer(_: Arrival) -> Reply:
        return replies.pop(0)

    talk = Talk(tmp_path, answer)
    whole = talk.send(INFER, b"{}")
    await talk.run()
    head, body = talk.answer_to(whole)
    assert (head[b":status"], body) == (b"200", b"onetwo")
    assert b"content-length" not in head
    talk.send(INFER, b"{}")
    await talk.run()
    resets = [each for each in talk.pair.client_events if isinstance(each, StreamReset)]
    assert [each.error_code for each in resets] == [ErrorCode.H3_INTERNAL_ERROR]


async def test_a_client_that_does_not_read_slows_its_own_reply(tmp_path: Path) -> None:
    taken = 0

    async def endless(_: Arrival) -> Reply:
        async def body() -> AsyncGenerator[bytes, None]:
            nonlocal taken
            while True:
                taken += 64 * 1024
                yield bytes(64 * 1024)

        return Reply(body=body())

    talk = Talk(tmp_path, endless)
    talk.pair.client._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
    talk.pair.client._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
    talk.send(INFER, b"{}")
    await talk.run(400)
    window = talk.pair.client.configuration.max_data
    assert window <= taken <= window + WRITE_AHEAD + 128 * 1024
    talk.session.closed()
    await asyncio.sleep(0)


async def test_head_gets_the_head_only(tmp_path: Path) -> None:
    async def describe(_: Arrival) -> Reply:
        return Reply(body=b'{"name":"inferlane"}')

    talk = Talk(tmp_path, describe)
    stream_id = talk.send(b"/v2", None, method=b"HEAD")
    await talk.run()
    head, body = talk.answer_to(stream_id)
    assert (head[b":status"], body) == (b"200", b"")
    refused = talk.send(INFER, None, method=b"HEAD")
    await talk.run()
    head, body = talk.answer_to(refused)
    assert (head[b":status"], body) == (b"405", b"")


async def test_drain_sends_goaway_once(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    talk.session.drain()
    talk.session.drain()
    control = talk.session._http._local_control_stream_id  # type: ignore[attr-defined]
    assert bytes(talk.pair.server._streams[control].sender._buffer).count(b"\x07\x01\x00") == 1


async def test_retiring_says_that_there_will_be_a_goaway_and_then_which(tmp_path: Path) -> None:
    """RFC 9114 section 5.2: the first names the largest id, so that what is on its way is served."""
    talk = Talk(tmp_path, echo)
    talk.session.retire()
    control = talk.session._http._local_control_stream_id  # type: ignore[attr-defined]
    sent = talk.pair.server._streams[control].sender
    assert not bytes(sent._buffer).endswith(b"\xfc")  # its client has just come, and would have nowhere to go
    talk.send(INFER, b"{}")
    await talk.run()
    for _ in range(2):
        talk.session.retire()
    largest = b"\x07\x08" + ((3 << 62) | (1 << 62) - 4).to_bytes(8, "big")
    assert bytes(sent._buffer).endswith(largest) and bytes(sent._buffer).count(largest) == 1
    talk.session.drain()
    talk.session.retire()
    assert bytes(sent._buffer).endswith(largest + b"\x07\x01\x04")


async def test_refused_bodies_leave_the_connection_as_it_was(tmp_path: Path) -> None:
    """A thousand refused uploads, complete and not, then one that counts: nothing of them may stay behind."""

    async def refuse_small(arrival: Arrival) -> Reply:
        if arrival.path == "/v2/models/m/infer":
            return await echo(arrival)
        raise Refused(Reason.UNKNOWN_MODEL, "nobody")

    talk = Talk(tmp_path, refuse_small, max_body=8 * STREAM_WINDOW)
    for number in range(600):
        talk.send(b"/v2/models/nobody/infer", bytes(16_000), end=number % 2 == 0)
        talk.send(b"/nowhere", bytes(2000))
        await talk.run(4)
    stream_id = talk.send(INFER, bytes(3 * STREAM_WINDOW))
    await talk.run(200)
    assert len(talk.answer_to(stream_id)[1]) == 3 * STREAM_WINDOW
    await talk.run(20)
    session, quic = talk.session, talk.pair.server
    assert (session._incoming, session._exchanges._tasks) == ({}, {})  # type: ignore[attr-defined]
    assert len(quic._streams) < 80  # finished ones are let go in bundles
    assert len(session._http._stream) < 10  # type: ignore[attr-defined]


async def test_a_client_that_obeys_stop_sending_still_gets_its_reply(tmp_path: Path) -> None:
    """RFC 9000 section 3.5: it answers with RESET_STREAM, which must not cost the reply that is on its way."""
    size = 4 * STREAM_WINDOW

    async def early(_: Arrival) -> Reply:
        return Reply(body=bytes(size))

    talk = Talk(tmp_path, early, max_body=8 * STREAM_WINDOW)
    stream_id = talk.send(INFER, bytes(100), end=False)
    await talk.run(400)
    head, body = talk.answer_to(stream_id)
    assert (head[b":status"], len(body)) == (b"200", size)
    assert not [each for each in talk.pair.client_events if isinstance(each, StreamReset)]


async def test_a_malformed_head_with_a_body_behind_it_is_asked_to_stop(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    stream_id = talk.send(INFER, bytes(1000), (b"bad(name", b"x"), end=False)
    await talk.run()
    assert talk.answer_to(stream_id)[0][b":status"] == b"400"
    assert [each for each in talk.pair.client_events if isinstance(each, StopSendingReceived)]


async def test_a_client_that_stops_our_qpack_stream_only_hurts_itself(tmp_path: Path) -> None:
    talk = Talk(tmp_path, echo)
    talk.send(INFER, b"{}")
    await talk.run()
    for stream_id in (7, 11):  # our QPACK encoder and decoder streams
        talk.pair.client.stop_stream(stream_id, 1)
    await talk.run(2)
    talk.session.drain()
    talk.send(INFER, b"{}")
    await talk.run(4)
    assert talk.pair.server.ending


async def test_a_connection_that_the_client_closes_ends_its_walks_at_once(tmp_path: Path) -> None:
    talk = Talk(tmp_path, never)
    talk.send(INFER, b"{}")
    await talk.run()
    talk.pair.client.close()
    await talk.run(2)
    assert talk.walk.cancelled == 1


@pytest.mark.parametrize("piecewise", [False, True])
async def test_a_lower_class_waits_on_a_higher_mark_and_the_higher_one_does_not(
    tmp_path: Path, piecewise: bool
) -> None:
    long = bytes(40_000)

    async def answer(arrival: Arrival) -> Reply:
        if arrival.asked_class == "batch" and piecewise:
            return Reply(body=pieces(long[:16_384], long[16_384:]))
        return Reply(body=long)

    talk = Talk(tmp_path, answer, marks=policing())
    first = talk.send(INFER, None, (b"inferlane-class", b"realtime"))
    await talk.run()
    assert talk.peer.mark.carried == "realtime"
    assert len(talk.answer_to(first)[1]) == 40_000
    held = talk.send(INFER, None, (b"inferlane-class", b"batch"))
    await talk.run()
    head, body = talk.answer_to(held)
    assert head[b":status"] == b"200"
    assert len(body) == 16_384  # the bucket, and the next byte is a second away
    also = talk.send(INFER, None, (b"inferlane-class", b"realtime"))
    await talk.run()
    assert len(talk.answer_to(also)[1]) == 40_000
    assert not talk.session.idle
    talk.session.closed()
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 1


async def test_what_was_there_before_the_mark_rose_does_not_ride_it_at_will(tmp_path: Path) -> None:
    async def answer(arrival: Arrival) -> Reply:
        return Reply(body=bytes(16 * WRITE_AHEAD) if arrival.asked_class == "batch" else b"{}")

    talk = Talk(tmp_path, answer, marks=policing())
    held = talk.send(INFER, None, (b"inferlane-class", b"batch"))
    talk.send(INFER, None, (b"inferlane-class", b"realtime"))
    await talk.run(400)
    assert talk.peer.mark.carried == "realtime"
    assert len(talk.answer_to(held)[1]) < 2 * WRITE_AHEAD
    talk.session.closed()
    await asyncio.sleep(0)
    assert talk.walk.cancelled == 1


async def test_what_is_not_sent_waits_for_nobody(tmp_path: Path) -> None:
    async def answer(_: Arrival) -> Reply:
        return Reply(body=bytes(40_000))

    talk = Talk(tmp_path, answer, marks=policing())
    talk.send(INFER, None, (b"inferlane-class", b"realtime"))
    await talk.run()
    head_only = talk.send(b"/v2", None, (b"inferlane-class", b"batch"), method=b"HEAD")
    await talk.run()
    assert talk.answer_to(head_only)[0][b":status"] == b"200"
    assert talk.session.idle

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import socket
from time import monotonic

import pytest

from backends.remote.lane import Answer, Lane, Path
from inferlane.errors import Reason, Refused
from inferlane.transfer import NO_COOKIE
from inferlane.wire import MAX_DATAGRAM, Header, Type, WireError, encode
from qos.marking import Mark
from tests.fakes.raw_udp import COOKIE, RawUdpServer

EF, LE = Mark(46, 6), Mark(1, 2)
SOON = 0.02  # a deadline that a test waits for


@pytest.fixture
async def path(udp):
    path = Path("127.0.0.1", udp.port)
    yield path
    for lane in tuple(path.lanes):
        lane.close(Refused(Reason.CANCELLED))


@pytest.fixture
async def lane(path) -> Lane:
    return await new_lane(path)


async def new_lane(path: Path) -> Lane:
    return Lane("realtime", await path.open(monotonic() + 10), path)


def asking(lane: Lane, request_id: int = 1, body: bytes = b"{}", *, timeout_s: float = 60) -> asyncio.Task[Answer]:
    header = Header(type=Type.REQUEST, request_id=request_id, model="m", remaining_us=1)
    return asyncio.ensure_future(lane.ask(header, body, deadline=monotonic() + timeout_s))


def carried(sock: socket.socket) -> Mark:
    return Mark(sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2, sock.getsockopt(socket.SOL_SOCKET, 12))


async def test_a_lane_carries_its_class_s_mark_and_what_becomes_of_it(path):
    sock = await path.open(monotonic() + 10, EF)
    lane = Lane("realtime", sock, path, EF)
    assert carried(sock) == EF
    lane.carry(LE)
    assert carried(sock) == LE


async def test_a_closed_lane_has_nothing_to_mark(lane):
    lane.close(Refused(Reason.CANCELLED))
    lane.carry(EF)


async def greeted(lane: Lane, udp: RawUdpServer) -> None:
    """Let the lane learn its cookie."""
    task = asking(lane, 0xFFFF)
    header, _ = await udp.greet()
    udp.reply(header, b"welcome")
    await task


async def test_the_first_exchange_proves_its_address_and_the_next_needs_not(lane, udp):
    task = asking(lane, 1)
    header, _ = await udp.receive()
    assert header.cookie == NO_COOKIE
    udp.challenge(header)
    header, body = await udp.receive()
    assert (header.cookie, body) == (COOKIE, b"{}")
    before = monotonic()
    udp.reply(header, b"one")
    answer = await task
    assert (answer.header.status, answer.body) == (200, b"one")
    assert before <= answer.first_byte <= monotonic()

    task = asking(lane, 2)
    header, _ = await udp.receive()
    assert (header.request_id, header.cookie) == (2, COOKIE)
    udp.reply(header, b"two")
    assert (await task).body == b"two"


async def test_many_are_in_flight_at_once_and_each_gets_its_own_reply(lane, udp):
    await greeted(lane, udp)
    tasks = [asking(lane, number) for number in range(1, 9)]
    asked = [(await udp.receive())[0] for _ in tasks]
    for header in reversed(asked):
        udp.reply(header, b"%d" % header.request_id)
    assert [(await task).body for task in tasks] == [b"%d" % number for number in range(1, 9)]


async def test_what_was_lost_is_repeated(lane, udp):
    await greeted(lane, udp)
    task = asking(lane)
    lost, _ = await udp.receive()
    repeated, body = await udp.receive()
    assert (repeated.request_id, body) == (lost.request_id, b"{}")
    udp.reply(repeated, b"late")
    assert (await task).body == b"late"


async def test_long_bodies_both_ways(lane, udp):
    await greeted(lane, udp)
    task = asking(lane, body=b"x" * 3000)
    arrived = [await udp.receive() for _ in range(3)]
    assert b"".join(payload for _, payload in arrived) == b"x" * 3000
    for index, payload in ((1, b"b" * 1100), (0, b"a" * 1100)):
        udp.reply(arrived[0][0], payload, index=index, count=2, total_length=2200)
    assert (await task).body == b"a" * 1100 + b"b" * 1100


async def test_the_lanes_of_a_path_share_its_round_trip_time_but_not_the_cookie(lane, path, udp):
    await greeted(lane, udp)
    assert path.rtt_s is not None
    other = await new_lane(path)
    task = asking(other)
    header, _ = await udp.receive()
    assert header.cookie == NO_COOKIE
    task.cancel()


async def test_a_refusal_of_the_server_is_raised_as_it_is(lane, udp):
    await greeted(lane, udp)
    task = asking(lane)
    header, _ = await udp.receive()
    error = Header(
        type=Type.ERROR,
        request_id=header.request_id,
        status=503,
        reason=Reason.QUEUE_FULL.code,
        retry_after_ms=250,
        total_length=17,
    )
    udp.say(encode(error) + b'{"detail":"full"}')
    with pytest.raises(Refused) as refused:
        await task
    assert (refused.value.reason, refused.value.status) == (Reason.QUEUE_FULL, 503)
    assert (refused.value.retry_after_s, refused.value.detail) == (0.25, "full")


async def test_what_makes_no_sense_changes_nothing(lane, udp):
    await greeted(lane, udp)
    task = asking(lane, 7)
    header, _ = await udp.receive()
    udp.say(b"\x16garbage")
    udp.say(b"\x0a")
    udp.say(encode(Header(type=Type.REPLY, request_id=99, status=200)))
    udp.say(encode(Header(type=Type.PING, request_id=7)))
    udp.say(encode(Header(type=Type.REPLY, request_id=7, status=200, total_length=MAX_DATAGRAM)) + b"x" * MAX_DATAGRAM)
    udp.reply(header, b"good")
    assert (await task).body == b"good"
    assert lane.dropped == 3
    assert not lane.retired


async def test_silence_until_the_deadline_retires_the_lane(lane, path):
    with pytest.raises(Refused) as refused:
        await asking(lane, timeout_s=SOON)
    assert refused.value.reason is Reason.DEADLINE
    assert lane.retired
    assert path.lanes == set()


async def test_a_server_that_is_heard_keeps_its_lane(lane, path, udp):
    task = asking(lane, timeout_s=10 * SOON)
    await udp.greet()
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DEADLINE
    assert not lane.retired
    assert path.lanes == {lane}


async def test_a_retired_lane_still_brings_what_is_in_flight(lane, path, udp):
    long = asking(lane, 1)
    header, _ = await udp.receive()
    with pytest.raises(Refused):
        await asking(lane, 2, timeout_s=SOON)
    assert lane.retired
    udp.reply(header, b"after all")
    assert (await long).body == b"after all"
    assert path.lanes == set()


async def test_a_deadline_that_has_passed_sends_nothing(lane, udp):
    with pytest.raises(Refused) as refused:
        await asking(lane, timeout_s=-1)
    assert refused.value.reason is Reason.DEADLINE
    assert udp.waiting == 0


async def test_a_closed_port_fails_everything_in_flight_at_once(lane, path, udp):
    await greeted(lane, udp)
    udp.close()
    await asyncio.sleep(0)
    results = await asyncio.gather(asking(lane, 1), asking(lane, 2), return_exceptions=True)
    for refused in results:
        assert isinstance(refused, Refused)
        assert (refused.reason, refused.status) == (Reason.BACKEND_FAILED, 503)
        assert "Connection refused" in refused.detail
    assert path.lanes == set()


async def test_cancelling_tells_the_server(lane, udp):
    await greeted(lane, udp)
    task = asking(lane, 5)
    await udp.receive()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    header, _ = await udp.receive()
    assert (header.type, header.request_id) == (Type.CANCEL, 5)


async def test_closing_fails_what_is_in_flight(lane, path, udp):
    task = asking(lane)
    await udp.receive()
    lane.close(Refused(Reason.DRAINING))
    with pytest.raises(Refused) as refused:
        await task
    assert refused.value.reason is Reason.DRAINING
    lane.close(Refused(Reason.DRAINING))
    assert path.lanes == set()


async def test_a_header_that_cannot_be_written(lane):
    header = Header(type=Type.REQUEST, request_id=1, model="m", json_length=3)
    with pytest.raises(WireError, match="json_length"):
        await lane.ask(header, b"{}", deadline=monotonic() + 60)
    assert repr(lane) == "<Lane realtime, 0 in flight>"


async def test_a_name_that_leads_nowhere():
    with pytest.raises(Refused, match="cannot be resolved") as refused:
        await Path("nowhere.invalid", 4434).open(monotonic() + 60)
    assert refused.value.status == 503


def pinging(lane: Lane, *, timeout_s: float = 60) -> asyncio.Task[None]:
    return asyncio.ensure_future(lane.ping(deadline=monotonic() + timeout_s))


async def test_a_ping_is_as_long_as_the_challenge_that_answers_it_and_keeps_the_cookie(lane, udp):
    first = pinging(lane)
    header, body = await udp.receive()
    assert (header.type, header.cookie, body) == (Type.PING, NO_COOKIE, b"")
    udp.challenge(header)
    await first
    second = pinging(lane)
    header, _ = await udp.receive()
    assert header.cookie == COOKIE
    udp.say(encode(Header(type=Type.PONG, request_id=header.request_id)))
    await second


async def test_a_lost_ping_is_repeated_and_late_answers_change_nothing(lane, udp):
    task = pinging(lane)
    lost, _ = await udp.receive()
    again, _ = await udp.receive()
    assert again == lost
    for _ in range(2):
        udp.say(encode(Header(type=Type.PONG, request_id=again.request_id)))
    await task
    assert not lane.retired


async def test_noise_is_no_sign_of_life_and_silence_retires_the_lane(lane, path, udp):
    task = pinging(lane, timeout_s=0.3)
    header, _ = await udp.receive()
    udp.say(b"hello")
    udp.say(encode(Header(type=Type.PONG, request_id=header.request_id ^ 1)))
    udp.say(encode(Header(type=Type.ERROR, request_id=header.request_id, reason=Reason.QUEUE_FULL.code, status=429)))
    with pytest.raises(Refused, match="no answer to a ping") as caught:
        await task
    assert (caught.value.reason, caught.value.status) == (Reason.BACKEND_FAILED, 503)
    assert lane.retired and not path.lanes


async def test_a_silent_ping_leaves_the_requests_in_flight_alone(lane, udp):
    asked = asking(lane)
    header, _ = await udp.receive()
    with pytest.raises(Refused):
        await pinging(lane, timeout_s=SOON)
    assert lane.retired
    udp.reply(header, b"late")
    assert (await asked).body == b"late"


async def test_a_port_that_closed_fails_a_ping_at_once(lane, udp):
    udp.close()
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="refused"):
        await pinging(lane)
    assert lane.retired


async def test_a_ping_given_up_leaves_nothing(lane, path, udp):
    task = pinging(lane)
    await udp.receive()
    task.cancel()
    lane.close(Refused(Reason.BACKEND_FAILED))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not path.lanes


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
async def test_a_datagram_for_which_there_is_no_room_is_lost_and_repeated(lane, udp, number):
    await greeted(lane, udp)
    sock = lane._sock
    lane._sock = Full(sock, number)
    task = asking(lane, 1)
    await asyncio.sleep(0)
    assert (lane._sock.refused, task.done(), lane.retired) == (1, False, False)
    lane._sock = sock
    header, _ = await udp.receive()
    udp.reply(header, b"after all")
    assert (await task).body == b"after all"


class Full:
    """A socket whose device takes nothing now."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.refused = 0
        self._sock = sock
        self._number = number

    def send(self, data: bytes) -> int:
        self.refused += 1
        raise OSError(self._number, "no room")

    def recv(self, size: int) -> bytes:
        return self._sock.recv(size)

# SPDX-License-Identifier: Apache-2.0
"""Anything at all on the gateway's port: silence, or one version negotiation no longer than what caused it; counted."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferlane.wire import Header, Type, WireError, decode, encode, fragments
from tests.fakes.live_gateway import PATIENCE_S, LiveGateway, live_gateway, oip_pool, write_config
from tests.fakes.raw_quic import http3, section

SIZES = (0, 1, 2, 6, 7, 20, 21, 47, 48, 100, 1199, 1200, 1201, 1472, 9000, 65_507)
CHALLENGE_BYTES = 48
PING_ID = 0x50494E47
LONG_HEADER = 0x80
INITIAL = 0xC0
QUIC_V1 = b"\0\0\0\x01"
GREASE = b"\x1a\x2a\x3a\x4a"  # a version that nobody speaks (RFC 9000 section 15)


class Stranger:
    """A socket that sends one datagram after the other and sees what each of them brings."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.connect(address)
        self.sent = 0

    async def answers_to(self, datagram: bytes) -> list[bytes]:
        """A ping goes behind it, and the gateway answers in order: with a challenge, for its cookie is none."""
        loop = asyncio.get_running_loop()
        self.sent += 1
        await loop.sock_sendall(self._sock, datagram)
        await loop.sock_sendall(self._sock, encode(Header(type=Type.PING, request_id=PING_ID, cookie=bytes(16))))
        answers = []
        async with asyncio.timeout(PATIENCE_S):
            while not _is_challenge(answer := await loop.sock_recv(self._sock, 65_535), PING_ID):
                answers.append(answer)
        return answers

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[LiveGateway]:
    async with live_gateway(write_config(tmp_path, oip_pool(9))) as started:
        yield started


@pytest.fixture
async def stranger(gateway: LiveGateway) -> AsyncIterator[Stranger]:
    """Afterwards every datagram was counted, and those who speak the protocol are served as before."""
    before = await gateway.value("inferlane_datagrams_dropped_total")
    one = Stranger(gateway.address)
    yield one
    one.close()
    assert await gateway.value("inferlane_datagrams_dropped_total") == before + one.sent
    async with http3(gateway.address) as client:
        assert (await client.ask(section(b"/v2/health/live", method=b"GET"))).status == 200


def _is_challenge(answer: bytes, request_id: int) -> bool:
    try:
        header, _ = decode(answer)
    except WireError:
        return False
    return header.type is Type.CHALLENGE and header.request_id == request_id


def _is_version_negotiation(answer: bytes) -> bool:
    return bool(answer[0] & LONG_HEADER) and answer[1:5] == bytes(4)


def long_header(version: bytes, destination: bytes, source: bytes, size: int, *, first: int = INITIAL) -> bytes:
    """A packet with a long header (RFC 8999 section 5.1) and something behind it."""
    head = bytes([first]) + version + bytes([len(destination)]) + destination + bytes([len(source)]) + source
    return head + random.Random(1).randbytes(max(0, size - len(head)))


@pytest.mark.parametrize("size", SIZES)
async def test_random_bytes_of_any_length(stranger: Stranger, size: int) -> None:
    rng = random.Random(size)
    for first in range(0, 256, 1 if size < 9000 else 17):
        datagram = (bytes([first]) + rng.randbytes(size))[:size]
        answers = await stranger.answers_to(datagram)
        assert len(answers) <= 1
        for answer in answers:
            assert _is_version_negotiation(answer)
            assert len(answer) <= len(datagram)


async def test_an_unknown_version_is_told_which_ones_there_are_and_only_when_it_paid_for_it(stranger: Stranger) -> None:
    destination, source = bytes(range(8)), bytes(range(100, 120))
    (answer,) = await stranger.answers_to(long_header(GREASE, destination, source, 1200))
    assert _is_version_negotiation(answer)
    assert answer[5:35] == b"\x14" + source + b"\x08" + destination
    assert QUIC_V1 in [answer[at : at + 4] for at in range(35, len(answer), 4)]
    assert await stranger.answers_to(long_header(GREASE, destination, source, 1199)) == []


async def test_what_could_start_a_loop_is_not_answered(stranger: Stranger) -> None:
    negotiation = long_header(bytes(4), bytes(8), bytes(8), 1200)
    assert await stranger.answers_to(negotiation) == []
    for kind in (each for each in Type if each >= Type.REPLY):
        cookie = bytes(16) if kind is Type.CHALLENGE else None
        bitmap = 1 if kind is Type.ACK else None
        status = 200 if kind in (Type.REPLY, Type.ERROR) else 0
        header = Header(type=kind, request_id=1, status=status, reason=kind is Type.ERROR, cookie=cookie, bitmap=bitmap)
        assert await stranger.answers_to(encode(header)) == [], kind


async def test_an_initial_packet_that_nobody_can_read_is_not_answered(gateway: LiveGateway) -> None:
    """Such a packet may be the first of a handshake, so it is not counted as a stray."""
    stranger = Stranger(gateway.address)
    for destination in (bytes(8), bytes(20), b"\xff" * 8):
        assert await stranger.answers_to(long_header(QUIC_V1, destination, bytes(8), 1200)) == []
    assert await stranger.answers_to(long_header(QUIC_V1, bytes(8), bytes(8), 1199)) == []
    assert await stranger.answers_to(long_header(QUIC_V1, bytes(7), bytes(8), 1200)) == []
    stranger.close()
    async with http3(gateway.address) as client:
        assert (await client.ask(section(b"/v2/health/live", method=b"GET"))).status == 200


async def test_a_request_with_any_byte_wrong_draws_at_most_a_challenge(gateway: LiveGateway) -> None:
    """The cookie of an address that nobody has proved: so nothing is stored, whatever is in the datagram."""
    header = Header(type=Type.REQUEST, request_id=7, model="m", class_name="batch", cookie=bytes(16))
    (good,) = fragments(header, b'{"inputs":[]}')
    stranger = Stranger(gateway.address)
    for at in range(len(good)):
        for value in {0, 1, good[at] ^ 1, good[at] ^ 0x80, 0x7F, 0xFF}:
            datagram = good[:at] + bytes([value]) + good[at + 1 :]
            answers = await stranger.answers_to(datagram)
            assert len(answers) <= 1
            for answer in answers:
                assert decode(answer)[0].type is Type.CHALLENGE, datagram
                assert len(answer) <= len(datagram)
    for cut in range(len(good)):
        assert [len(each) for each in await stranger.answers_to(good[:cut])] in ([], [CHALLENGE_BYTES][: cut // 48])
    stranger.close()
    assert gateway.gateway.pipeline.in_flight == 0
    assert await gateway.value("inferlane_requests_total") == 0

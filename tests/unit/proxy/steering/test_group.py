# SPDX-License-Identifier: Apache-2.0
"""Real sockets on loopback: every kind of datagram comes out where the reference says."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from proxy.listeners.udp import bind
from proxy.quic.connection_ids import ConnectionIds
from proxy.steering.group import Group
from proxy.steering.program import Steering, decide

KEY = b"shared by all workers"


@pytest.fixture(params=["127.0.0.1", "::1"])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    group = Group.bind(request.param, 0, 4, bind=bind)
    yield group
    group.close()


@pytest.fixture
def client(group: Group) -> Iterator[socket.socket]:
    with socket.socket(group.sockets[0].family, socket.SOCK_DGRAM) as sock:
        yield sock


def arrived(group: Group) -> list[tuple[int, bytes]]:
    """What waits in each socket: loopback delivers before `sendto` returns."""
    found = []
    for place, sock in enumerate(group.sockets):
        while True:
            try:
                found.append((place, sock.recv(65535)))
            except BlockingIOError:
                break
    return found


def some_datagram(rng: random.Random) -> bytes:
    cid = ConnectionIds(rng.randrange(6), rng.randrange(20), KEY).issue(rng.randbytes(7))
    foreign = rng.randbytes(rng.choice((0, 4, 8, 10, 18, 20)))
    return rng.choice(
        (
            b"\xc3\x00\x00\x00\x01\x0a" + cid + rng.randbytes(1180),
            b"\x40" + cid + rng.randbytes(rng.randrange(0, 1180)),
            b"\xe3\x00\x00\x00\x01" + bytes([len(foreign)]) + foreign + rng.randbytes(1170),
            b"\x41" + rng.randbytes(rng.randrange(60)),
            b"\x0a\x01" + rng.randbytes(rng.randrange(100)),
            rng.randbytes(rng.randrange(30)),
            b"",
        )
    )


def test_every_kind_of_datagram_lands_where_the_reference_says(group: Group, client: socket.socket) -> None:
    rng = random.Random(5)
    for steering in (
        Steering(KEY, range(4)),
        Steering(KEY, range(2)),
        Steering(KEY, range(2, 4), [range(2)]),
        Steering(KEY, range(3, 4)),
    ):
        group.steer(steering)
        for _ in range(250):
            datagram = some_datagram(rng)
            client.sendto(datagram, group.address)
            assert arrived(group) == [(decide(steering, datagram), datagram)]


def test_a_program_gives_way_to_the_next_while_datagrams_flow(group: Group, client: socket.socket) -> None:
    """No datagram is lost or doubled meanwhile, and the ids of the old bank keep their places."""
    old, new = Steering(KEY, range(2)), Steering(KEY, range(2, 4), [range(2)])
    group.steer(old)
    rng = random.Random(6)
    for turn in range(200):
        steering = (old, new)[turn % 2]
        cid = ConnectionIds(turn % 2, 0, KEY).issue(rng.randbytes(7))
        known, fresh = b"\x40" + cid + bytes(20), b"\xc3\x00\x00\x00\x01\x08" + rng.randbytes(1200)
        client.sendto(known, group.address)
        group.steer(steering)
        client.sendto(fresh, group.address)
        assert sorted(arrived(group)) == sorted([(turn % 2, known), (decide(steering, fresh), fresh)])


def test_an_address_changes_and_the_worker_does_not(group: Group) -> None:
    """NAT rebinding: each datagram of a connection comes from another port."""
    group.steer(Steering(KEY, range(4)))
    packet = b"\x40" + ConnectionIds(3, 1, KEY).issue(bytes(7)) + bytes(20)
    for _ in range(50):
        with socket.socket(group.sockets[0].family, socket.SOCK_DGRAM) as moved:
            moved.sendto(packet, group.address)
    assert arrived(group) == [(3, packet)] * 50


def test_a_group_grows_and_the_old_places_stay(group: Group, client: socket.socket) -> None:
    group.steer(Steering(KEY, range(4)))
    group.grow(6, bind=bind)
    steering = Steering(KEY, range(4, 6), [range(4)])
    group.steer(steering)
    rng = random.Random(7)
    for _ in range(100):
        datagram = some_datagram(rng)
        client.sendto(datagram, group.address)
        assert arrived(group) == [(decide(steering, datagram), datagram)]


def test_one_socket_is_a_group_that_needs_no_program() -> None:
    group = Group.bind("127.0.0.1", 0, 1, bind=bind)
    try:
        group.steer(Steering(KEY, range(1)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x" * 40, group.address)
        assert arrived(group) == [(0, b"x" * 40)]
        group.grow(2, bind=bind)  # an upgrade of a single worker
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"y" * 40, group.address)
        assert arrived(group) == [(0, b"y" * 40)]
        group.steer(Steering(KEY, range(1, 2)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x" * 40, group.address)
        assert arrived(group) == [(1, b"x" * 40)]
    finally:
        group.close()


def test_until_it_is_steered_everything_goes_to_the_first_place(group: Group, client: socket.socket) -> None:
    """Who reads the others is not there yet."""
    rng = random.Random(8)
    for _ in range(50):
        datagram = some_datagram(rng)
        client.sendto(datagram, group.address)
        assert arrived(group) == [(0, datagram)]


def test_nobody_joins_the_group_of_another_gateway(group: Group) -> None:
    host, port = group.address
    for count in (1, 2):
        with pytest.raises(OSError, match="cannot listen on udp"):
            Group.bind(host, port, count, bind=bind)


def test_a_group_that_cannot_be_whole_leaves_nothing_bound() -> None:
    bound: list[socket.socket] = []

    def failing(host: str, port: int, *, shared: bool) -> socket.socket:
        if len(bound) == 2:
            raise OSError("no more descriptors")
        bound.append(bind(host, port, shared=shared))
        return bound[-1]

    with pytest.raises(OSError, match="no more descriptors"):
        Group.bind("127.0.0.1", 0, 3, bind=failing)
    assert [sock.fileno() for sock in bound] == [-1, -1]


@pytest.mark.parametrize(
    "wrong",
    [partial(Group, []), partial(Group.bind, "127.0.0.1", 0, 257, bind=bind)],
)
def test_a_group_has_1_to_256_places(wrong: partial[Group]) -> None:
    with pytest.raises(ValueError, match="256"):
        wrong()


def test_no_program_for_places_that_are_not_there(group: Group) -> None:
    with pytest.raises(ValueError, match="goes beyond 4 places"):
        group.steer(Steering(KEY, range(3, 5)))
    with pytest.raises(ValueError, match="goes beyond 4 places"):
        group.steer(Steering(KEY, range(4), [range(4, 8)]))

# SPDX-License-Identifier: Apache-2.0
"""One address as workers share it. Port numbers that TCP cannot have: test_door.py."""

from __future__ import annotations

import socket

import pytest

from proxy.bind import bind_tcp
from proxy.listeners.bound import bind_address


def test_places_have_udp_sockets_of_their_own_and_one_tcp_socket_at_one_port() -> None:
    bound = bind_address("127.0.0.1", 0, places=3, tcp=True)
    places = [bound.at(place) for place in range(3)]
    assert len({place.address for place in places}) == 1
    assert len({place.udp.fileno() for place in places if place.udp is not None}) == 3
    assert {place.tcp for place in places} == {bound.tcp}
    address = places[0].address
    socket.create_connection(address).close()
    bound.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@pytest.mark.parametrize(("places", "tcp"), [(1, False), (0, True)])
def test_what_is_not_spoken_is_not_bound(places: int, tcp: bool) -> None:
    bound = bind_address("::1", 0, places=places, tcp=tcp)
    place = bound.at(0)
    assert (place.udp is None, place.tcp is None) == (places == 0, not tcp)
    assert place.address[0] == "::1" and place.address[1] > 0
    bound.close()


def test_a_port_that_is_only_held_refuses_clients() -> None:
    bound = bind_address("127.0.0.1", 0, places=1, tcp=True, listening=False)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.at(0).address)
    bound.close()


def test_udp_is_given_back_when_tcp_is_taken() -> None:
    with bind_tcp("127.0.0.1", 0, listening=True) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on tcp 127.0.0.1:{number}"):
            bind_address("127.0.0.1", number, places=2, tcp=True)
        bind_address("127.0.0.1", number, places=2, tcp=False).close()

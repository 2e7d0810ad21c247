# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

import pytest

from proxy.bind import bind_tcp
from proxy.config.settings import Bind, ListenerSettings
from proxy.steering.program import Steering
from proxy.supervise.sockets import Sockets


def listener(name: str, *accept: str, hosts: tuple[str, ...] = ("127.0.0.1",), port: int = 0) -> ListenerSettings:
    return ListenerSettings(
        name=name, bind=tuple(Bind(host, port) for host in hosts), accept=frozenset(accept), tls="development"
    )


def test_every_place_has_its_own_udp_socket_and_all_share_tcp() -> None:
    sockets = Sockets.bind([listener("a", "h3", "h1", hosts=("127.0.0.1", "::1")), listener("b", "udp")], places=2)
    first, second = sockets.at(0), sockets.at(1)
    assert list(first) == ["a", "b"] and [len(each) for each in first.values()] == [2, 1]
    for name, addresses in first.items():
        for (udp, tcp), (other_udp, other_tcp) in zip(addresses, second[name], strict=True):
            assert udp is not None and other_udp is not None and udp != other_udp
            assert tcp == other_tcp and (tcp is None) is (name == "b")
    (v4, v6), (udp_only,) = sockets.addresses.values()
    assert v4[0] == "127.0.0.1" and v6[0] == "::1" and 0 not in (v4[1], v6[1], udp_only[1])
    sockets.steer(Steering(key=b"x" * 32, current=range(2)))
    sockets.close()


def test_a_door_for_http_1_1_alone_has_no_udp() -> None:
    sockets = Sockets.bind([listener("a", "h1")], places=2)
    ((udp, tcp),) = sockets.at(1)["a"]
    assert udp is None and tcp is not None
    sockets.close()


def test_nobody_can_connect_before_a_worker_listens_nor_after_hanging_up() -> None:
    sockets = Sockets.bind([listener("a", "h1", "h3")], places=1)
    ((_, tcp),) = sockets.at(0)["a"]
    (address,) = sockets.addresses["a"]
    assert tcp is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with socket.socket(fileno=socket.dup(tcp)) as its:
        its.listen()
        socket.create_connection(address).close()
        sockets.hang_up()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    sockets.close()


def test_nothing_stays_bound_when_one_address_is_taken() -> None:
    with bind_tcp("127.0.0.1", 0, listening=True) as taken, bind_tcp("127.0.0.1", 0) as free:
        number, other = taken.getsockname()[1], free.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match=f"cannot listen on tcp 127.0.0.1:{number}"):
            Sockets.bind([listener("a", "h1", port=other), listener("b", "h1", port=number)], places=2)
        bind_tcp("127.0.0.1", other, listening=True).close()

# SPDX-License-Identifier: Apache-2.0
"""What an upgrade refuses before it starts anything. Upgrades themselves: tests/integration/test_upgrade.py."""

from __future__ import annotations

import pytest

from proxy.config.settings import Bind, ListenerSettings
from proxy.supervise.upgrading import moved_addresses


def listener(name: str, *accept: str, port: int = 443) -> ListenerSettings:
    return ListenerSettings(
        name=name, bind=(Bind("127.0.0.1", port),), accept=frozenset(accept or {"h3"}), tls="development"
    )


def test_what_needs_no_other_socket_may_change() -> None:
    assert moved_addresses((listener("a", "h3"),), (listener("a", "stream", "udp"),)) == []


@pytest.mark.parametrize(
    ("new", "wrong"),
    [
        ((listener("a", port=444),), ["a was at 127.0.0.1:443 and would be at 127.0.0.1:444"]),
        ((listener("a", "h1"),), ["a would need TCP, and has UDP"]),
        ((listener("a", "h3", "h1"),), ["a would need UDP and TCP, and has UDP"]),
        ((listener("a"), listener("b")), ["b is new"]),
        ((listener("b"),), ["b is new", "a is gone"]),
    ],
)
def test_what_the_bound_sockets_cannot_do_is_told(new: tuple[ListenerSettings, ...], wrong: list[str]) -> None:
    assert moved_addresses((listener("a"),), new) == wrong

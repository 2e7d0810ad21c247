# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.holdings import Key, Shelf


class _Server:
    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.dropped: list[Key] = []

    def drop(self, key: Key) -> None:
        self.shelf.take(self, key)
        self.dropped.append(key)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 60)), max_size=20))
def test_the_oldest_make_room_whoever_s_they_are(sizes: list[tuple[int, int]]) -> None:
    shelf = Shelf(100)
    servers = [_Server(shelf), _Server(shelf)]
    expected: list[int] = []
    for now, (which, size) in enumerate(sizes):
        assert shelf.make_room(size, before=now)
        while sum(expected) + size > 100:
            expected.pop(0)
        expected.append(size)
        shelf.put(servers[which], ("peer", now), size, now)
        assert (shelf.bytes, len(shelf)) == (sum(expected), len(expected))
    assert sum(len(each.dropped) for each in servers) == len(sizes) - len(expected)


def test_what_is_young_makes_no_room() -> None:
    shelf = Shelf(100)
    server = _Server(shelf)
    shelf.put(server, ("peer", 1), 60, 1.0)
    shelf.put(server, ("peer", 2), 40, 2.0)
    assert not shelf.make_room(10, before=1.0)
    assert shelf.make_room(10, before=1.5)
    assert not shelf.make_room(100, before=1.5)
    assert server.dropped == [("peer", 1)]
    assert shelf.take(server, ("peer", 2)) == 40
    assert "0 of 100 bytes" in repr(shelf)


def test_what_never_fits_is_told() -> None:
    assert not Shelf(10).make_room(11, before=1e9)

# SPDX-License-Identifier: Apache-2.0
"""The backlog is bounded in bytes and in time, whatever is put there, and what it drops is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.sockets.backlog import LONGEST_S, Backlog, Waiting
from qos.marking import UNMARKED

PEER = ("127.0.0.1", 9)


def waiting(*datagrams: bytes, since: float = 0.0) -> Waiting:
    return Waiting(datagrams, PEER, UNMARKED, since)


def test_first_in_first_out():
    backlog = Backlog()
    for each in (b"1", b"2"):
        backlog.put(waiting(each))
    for expected in (b"1", b"2"):
        first = backlog.first(0.0)
        assert first is not None
        assert first.datagrams == (expected,)
        backlog.take()
    assert backlog.first(0.0) is None
    assert (len(backlog), backlog.dropped) == (0, 0)


def test_what_has_waited_too_long_is_dropped():
    backlog = Backlog()
    backlog.put(waiting(b"1", b"2"))
    backlog.put(waiting(b"3", since=LONGEST_S))
    first = backlog.first(LONGEST_S * 1.5)
    assert first is not None
    assert first.datagrams == (b"3",)
    assert backlog.dropped == 2


@given(st.lists(st.lists(st.integers(0, 300), min_size=1, max_size=5), max_size=60))
def test_the_newest_stay_within_the_bound(trains):
    backlog, put = Backlog(1000), []
    for sizes in trains:
        put.append(waiting(*(bytes(size) for size in sizes)))
        backlog.put(put[-1])
    kept = []
    while (first := backlog.first(0.0)) is not None:
        kept.append(first)
        backlog.take()
    assert sum(each.size for each in kept) <= 1000
    assert kept == put[len(put) - len(kept) :]
    assert backlog.dropped == sum(len(each.datagrams) for each in put[: len(put) - len(kept)])

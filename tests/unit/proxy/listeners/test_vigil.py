# SPDX-License-Identifier: Apache-2.0
"""Clients that vanish while something works for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from proxy.listeners.vigil import ASKED_S, GONE_S, Vigil, verdict
from tests.fakes.fake_time import FakeTimeLoop


@pytest.fixture
def loop() -> Iterator[FakeTimeLoop]:
    loop = FakeTimeLoop()
    yield loop
    loop.finish()


@dataclass(eq=False)
class Client:
    """One that answers when asked, as long as it is there."""

    loop: FakeTimeLoop
    heard: float = 0.0
    busy: bool = True
    there: bool = True
    asked: int = 0
    looked_at: list[float] = field(default_factory=list)

    def let_go_of_untaken(self, now: float) -> None:
        self.looked_at.append(now)

    def ask(self) -> None:
        self.asked += 1
        if self.there:
            self.heard = self.loop.now


def vigil(loop: FakeTimeLoop, *clients: Client) -> tuple[Vigil, set[Client], list[Client]]:
    peers, gone = set(clients), list[Client]()

    def give_up(client: Client) -> None:
        gone.append(client)
        peers.discard(client)

    watching = Vigil(peers, give_up, clock=loop.time)
    for each in clients:
        each.heard = loop.now
    loop.call_soon(watching.begin)
    loop.settle()
    return watching, peers, gone


def test_a_client_that_is_there_is_asked_and_kept(loop):
    client = Client(loop)
    _, peers, gone = vigil(loop, client)
    for _ in range(40):
        loop.advance(0.5)
    assert (gone, peers) == ([], {client})
    assert 10 <= client.asked <= 40


def test_one_that_vanished_is_asked_in_vain_and_given_up(loop):
    client = Client(loop, there=False)
    watching, _, gone = vigil(loop, client)
    for _ in range(9):
        loop.advance(0.5)
    assert (gone, client.asked) == ([], 8)
    loop.advance(0.5)
    assert gone == [client]
    assert repr(watching) == "<Vigil at rest>"


def test_nobody_is_asked_for_whom_nothing_works(loop):
    client = Client(loop, there=False, busy=False)
    _, _, gone = vigil(loop, client)
    for _ in range(40):
        loop.advance(0.5)
    assert (gone, client.asked) == ([], 0)


def test_it_ends_when_it_is_closed(loop):
    client = Client(loop, there=False)
    watching, _, gone = vigil(loop, client)
    watching.close()
    for _ in range(40):
        loop.advance(0.5)
    assert (gone, client.asked) == ([], 0)


def test_the_verdict_by_silence():
    assert [verdict(each) for each in (0.0, ASKED_S, GONE_S)] == ["", "ask", "gone"]

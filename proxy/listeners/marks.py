# SPDX-License-Identifier: Apache-2.0
"""The mark of every packet to clients, by class and by listener, and the rate at which a mark may be borrowed.

Connections outlive a reload, so they keep names and ask here each time: `replace` is all that a reload does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from qos.connection_mark import ConnectionMark
from qos.marking import Mark, mark_of
from qos.token_bucket import TokenBucket
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["Marks", "slices"]

_SLICE = 16 * 1024
"""Bytes of a policed reply that go at once: 1.3 ms on a link of 100 Mbit/s."""
_BURST_S = 0.02
_LOOK_AGAIN_S = 0.5


class Marks:
    """One for all listeners. listeners: the max_class of each by its name; None is the default class."""

    def __init__(self, classes: ClassTable, listeners: Mapping[str, str | None], *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._policed: dict[str, _Policed] = {}
        self.replace(classes, listeners)

    def __repr__(self) -> str:
        return f"<Marks of {self._classes!r} at {', '.join(self._at)}>"

    def replace(self, classes: ClassTable, listeners: Mapping[str, str | None]) -> None:
        """What the config says now; the next packet of every connection obeys."""
        self._classes = classes
        self._of = {each.name: mark_of(each) for each in classes}
        self._default = mark_of(classes.default)
        self._at = {
            listener: self._default if highest is None else self.of(highest) for listener, highest in listeners.items()
        }

    def of(self, class_name: str) -> Mark:
        """A class's mark; the default class's, where a reload took that class away."""
        return self._of.get(class_name, self._default)

    def at(self, listener: str) -> Mark:
        """The mark of what a listener sends before any request has its class."""
        return self._at.get(listener, self._default)

    def datagram(self, listener: str, class_name: str | None) -> Mark:
        """The mark of one inference datagram; class_name is None before its request has one."""
        return self.at(listener) if class_name is None else self.of(class_name)

    def connection(self, listener: str, mark: ConnectionMark) -> Mark:
        """The mark of all that a connection sends."""
        return self.at(listener) if mark.carried is None else self.of(mark.carried)

    def judged(self, mark: ConnectionMark, traffic_class: TrafficClass) -> None:
        """A request of a connection got its class."""
        mark.request(traffic_class, self._rank)

    def polices(self, mark: ConnectionMark, served: str) -> bool:
        """Whether replies of a class ride the mark of a higher one that limits them."""
        return self._policed_by(mark, served) is not None

    def may_police(self, mark: ConnectionMark, served: str) -> bool:
        """Whether they yet may: the connection's mark can still rise to one with a limit, before a reply is out."""
        if mark.carried is None or mark.raised:
            return False
        rank = min(self._rank(mark.carried), self._rank(served))
        return any(each.police is not None and each.rank < rank for each in self._classes)

    async def admit(self, mark: ConnectionMark, served: str, count: int) -> None:
        """Wait until `count` reply bytes of a class may ride this connection's mark. The caller owns the deadline."""
        policed = self._policed_by(mark, served)
        if policed is None:
            return
        async with policed.turn:  # one after another: the first to come waits for its own bytes alone
            # Asked before each sleep: when a reload has lifted this limit, or set another one, which the next bytes
            # will meet, all who wait go at once, and not one every _LOOK_AGAIN_S.
            while self._policed_by(mark, served) is policed:
                wait_s = policed.bucket.wait_s(count, self._clock())
                if wait_s <= 0:
                    break
                await asyncio.sleep(min(wait_s, _LOOK_AGAIN_S))
            policed.bucket.take(count, self._clock())

    def spares(self, mark: ConnectionMark, served: str, count: int) -> bool:
        """Whether reply bytes that do not wait may go now. They overtake nobody who waits, and leave no debt: else one
        client that asks for a kept reply again and again would hold up everybody's."""
        policed = self._policed_by(mark, served)
        if policed is None:
            return True
        now = self._clock()
        if policed.turn.locked() or policed.bucket.wait_s(count, now) > 0:
            return False
        policed.bucket.take(count, now)
        return True

    def _policed_by(self, mark: ConnectionMark, served: str) -> _Policed | None:
        if mark.carried is None or mark.carried == served:
            return None
        carried = self._named(mark.carried)
        if carried.police is None or self._rank(served) <= carried.rank:
            return None
        rate = carried.police / 8
        policed = self._policed.get(carried.name)
        if policed is None or policed.bucket.rate != rate:
            policed = self._policed[carried.name] = _Policed(TokenBucket(rate, max(rate * _BURST_S, _SLICE)))
        return policed

    def _named(self, class_name: str) -> TrafficClass:
        return self._classes.get(class_name) or self._classes.default

    def _rank(self, class_name: str) -> int:
        return self._named(class_name).rank


@dataclass(slots=True)
class _Policed:
    """What may be borrowed of one class's mark, and whose turn it is."""

    bucket: TokenBucket
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


async def slices(body: bytes) -> AsyncGenerator[bytes, None]:
    """A whole body in pieces that a bucket lets through one by one."""
    for start in range(0, len(body), _SLICE):
        yield body[start : start + _SLICE]

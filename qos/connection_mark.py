# SPDX-License-Identifier: Apache-2.0
"""Which class's mark one QUIC connection carries: one for all of its packets, whatever its streams are.

Streams share one congestion window, and packets of several marks overtake each other, which loss detection takes for
loss (RFC 7657 section 5.1; RFC 9308, "Quality of Service (QoS) and DSCP"): so the mark changes as seldom as it can.
"""

from __future__ import annotations

from collections.abc import Callable

from qos.traffic_class import TrafficClass

__all__ = ["ConnectionMark"]


class ConnectionMark:
    """The listener's class until the first request, then that request's class; it rises once at most, and never falls.

    A client that wants a lower mark again opens a connection for it. Classes are kept by name and looked up for each
    use, so that a reload's new mark or rank counts at once.
    """

    __slots__ = ("carried", "raised")

    def __init__(self) -> None:
        self.carried: str | None = None
        """The class's name; None: the listener's class."""
        self.raised = False
        """Whether it has risen: it will not again."""

    def __repr__(self) -> str:
        return f"<ConnectionMark {self.carried}{', raised' if self.raised else ''}>"

    def request(self, judged: TrafficClass, rank_of: Callable[[str], int]) -> None:
        """A request got its class. rank_of: a class's present rank by its name."""
        if self.carried is None:
            self.carried = judged.name
        elif not self.raised and judged.rank < rank_of(self.carried):
            self.carried, self.raised = judged.name, True

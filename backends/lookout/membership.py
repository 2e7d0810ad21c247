# SPDX-License-Identifier: Apache-2.0
"""Who belongs to a pool by its settings, its watched file and the addresses of its names; what changed since.

Deciding only: the look-ups and the reading of files are `discovery`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from backends.remote.origin import parse_origin
from backends.settings import (
    DatagramSettings,
    EndpointSettings,
    OipSettings,
    OnnxSettings,
    OpenAiSettings,
    parse_host_port,
)

__all__ = ["MOST_ADDRESSES", "Member", "Membership", "Name", "first_family", "name_of"]

MOST_ADDRESSES = 256
"""Of one name; an answer may hold thousands."""

Name = tuple[str, int]
"""Host and port to look up."""


@dataclass(frozen=True, slots=True)
class Member:
    """One endpoint to be. Equal members are the same endpoint, with all that was learned of it."""

    settings: EndpointSettings
    address: str | None = None
    """The IP address its name was resolved to; None: it is not looked up."""
    copy: int = 0
    """Among members written alike, which are endpoints of their own."""


def name_of(settings: EndpointSettings) -> Name | None:
    """What to look up again and again for this endpoint; None: nothing."""
    match settings:
        case OipSettings(oip=url) | OpenAiSettings(openai=url) if settings.resolve is not None:
            origin = parse_origin(url)
            return origin.host, origin.port
        case DatagramSettings(datagram=address) if settings.resolve is not None:
            return parse_host_port(address)
    return None


def first_family(found: Iterable[tuple[int, Sequence[object]]]) -> tuple[str, ...]:
    """The addresses of the family that the system prefers, each once and in order.

    Of one family only: a server that has both would be two endpoints, with twice its places.
    found: (family, socket address) as getaddrinfo has them, best first (RFC 6724).
    """
    answers = list(found)
    same = (str(address[0]) for family, address in answers if family == answers[0][0])
    return tuple(sorted(set(same))[:MOST_ADDRESSES])


@dataclass(slots=True)
class Membership:
    """What is known now; `members` says what follows from it."""

    listed: Sequence[EndpointSettings]
    """From the config."""
    filed: Sequence[EndpointSettings] = ()
    """From the watched file, as it was when it last made sense."""
    addresses: dict[Name, tuple[str, ...]] = field(default_factory=dict)
    """As last resolved."""

    def names(self) -> dict[Name, float]:
        """What is to be looked up, with its interval in seconds: the shortest that anybody wants."""
        wanted: dict[Name, float] = {}
        for each in (*self.listed, *self.filed):
            if not isinstance(each, OnnxSettings) and each.resolve is not None and (name := name_of(each)):
                wanted[name] = min(each.resolve, wanted.get(name, each.resolve))
        return wanted

    def members(self) -> list[Member]:
        """Everybody, in the order written; a name that was never resolved has nobody."""
        copies: Counter[tuple[EndpointSettings, str | None]] = Counter()
        found = []
        for each in (*self.listed, *self.filed):
            name = name_of(each)
            for address in (None,) if name is None else self.addresses.get(name, ()):
                found.append(Member(each, address, copies[each, address]))
                copies[each, address] += 1
        return found

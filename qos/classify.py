# SPDX-License-Identifier: Apache-2.0
"""Which traffic class a request gets, and why: rules, else what a trusted client asked, else the default class.

Pure, and on the hot path: `Policy` prepares every verdict that can be told beforehand; `classify` only looks up.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Protocol

from qos.dscp import dscp_name
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["Facts", "Policy", "Rule", "Verdict", "classify", "urgency_ranks"]

Networks = Sequence[IPv4Network | IPv6Network]

# Clients whose trust is remembered: working it out costs microseconds per network, looking it up 0.1.
_CLIENTS = 4096
_BELIEVES_DSCP = 1
_BELIEVES_CLASS = 2


class Facts(Protocol):
    """What a request tells of itself; `proxy.arrival.Arrival` does."""

    @property
    def listener(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def client(self) -> str:
        """The peer's IP address."""
        ...

    @property
    def dscp(self) -> int: ...
    @property
    def asked_class(self) -> str | None: ...
    @property
    def urgency(self) -> int | None:
        """RFC 9218 urgency, 0..7."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """All conditions that are given must hold; path and model are fnmatch patterns, case matters."""

    traffic_class: TrafficClass
    listener: str | None = None
    path: str | None = None
    model: str | None = None
    dscp: int | None = None
    """Believed only from `dscp_from`."""

    def __str__(self) -> str:
        dscp = None if self.dscp is None else dscp_name(self.dscp)
        conditions = {"listener": self.listener, "path": self.path, "model": self.model, "dscp": dscp}
        return ", ".join(f"{word} {value}" for word, value in conditions.items() if value is not None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The class a request got."""

    traffic_class: TrafficClass
    why: str
    """One short sentence, fit for a log."""
    trusted: bool
    """Whether the client may choose a class itself."""
    rule: int | None = None
    """The place of the rule that matched, 0 is the first."""


class Policy:
    """Everything `classify` needs, prepared once.

    max_class: by listener, the highest class it may carry; every listener is in it.
    dscp_from, class_from: networks whose inbound DSCP, whose asked class is believed.
    """

    def __init__(
        self,
        classes: ClassTable,
        *,
        max_class: Mapping[str, TrafficClass],
        rules: Sequence[Rule] = (),
        dscp_from: Networks = (),
        class_from: Networks = (),
    ) -> None:
        self.classes = classes
        matcher = lru_cache(maxsize=None)(_matcher)  # a pattern is compiled once, not for every door and trust
        self._doors = {
            listener: tuple(_door(classes, rules, matcher, listener, ceiling, trust) for trust in range(4))
            for listener, ceiling in max_class.items()
        }
        self._trust = lru_cache(maxsize=_CLIENTS)(partial(_trust, tuple(dscp_from), tuple(class_from)))

    def door(self, listener: str, client: str) -> _Door:
        """The verdicts that a client can get at a listener."""
        return self._doors[listener][self._trust(client)]


def classify(facts: Facts, policy: Policy) -> Verdict:
    """The first rule that matches; else a trusted wish: class, urgency, inbound DSCP; else the default class."""
    door = policy.door(facts.listener, facts.client)
    if door.rules:
        path, model, dscp = facts.path.partition("?")[0], facts.model, facts.dscp
        for rule in door.rules:
            if rule.matches(path, model, dscp):
                return rule.verdict
    asked = facts.asked_class
    if asked is None:
        return _by_hint(facts, door)
    verdict = door.by_name.get(asked)
    if verdict is None:
        verdict = _by_hint(facts, door)
        if door.default.trusted:
            # The name is the client's text: quoted and cut, so that no log line is forged or flooded by it.
            return replace(verdict, why=f"{verdict.why}; no class is named {asked!r:.40}")
    return verdict


def urgency_ranks(default: int, count: int) -> tuple[int, ...]:
    """Ranks for the urgencies 0..7 of RFC 9218 section 4.1: 0 is the first class, 3 the default one, 7 the last.

    Linear between; half-way between two classes, the one nearer to the default class.
    """
    more_urgent = [(2 * default * urgency + 3) // 6 for urgency in range(3)]
    less_urgent = [default + ((count - 1 - default) * step + 1) // 4 for step in range(5)]
    return (*more_urgent, *less_urgent)


@dataclass(frozen=True, slots=True)
class _PreparedRule:
    path: Callable[[str], object] | None
    model: Callable[[str], object] | None
    dscp: int | None
    verdict: Verdict

    def matches(self, path: str, model: str, dscp: int) -> bool:
        return (
            (self.path is None or bool(self.path(path)))
            and (self.model is None or bool(self.model(model)))
            and (self.dscp is None or self.dscp == dscp)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Door:
    """What can come out for clients of one degree of trust at one listener; empty where they are not believed."""

    rules: tuple[_PreparedRule, ...]
    by_name: Mapping[str, Verdict]
    by_urgency: tuple[Verdict, ...]
    by_dscp: Mapping[int, Verdict]
    default: Verdict
    unheeded: Verdict
    """The default class for one who asked for something and may not."""


def _by_hint(facts: Facts, door: _Door) -> Verdict:
    urgency = facts.urgency
    if urgency is not None and door.by_urgency:
        return door.by_urgency[urgency]
    verdict = door.by_dscp.get(facts.dscp)
    if verdict is not None:
        return verdict
    if door.default.trusted or (urgency is None and facts.asked_class is None):
        return door.default
    return door.unheeded


def _door(
    classes: ClassTable,
    rules: Sequence[Rule],
    matcher: Callable[[str | None], Callable[[str], object] | None],
    listener: str,
    ceiling: TrafficClass,
    trust: int,
) -> _Door:
    believes_class, believes_dscp = bool(trust & _BELIEVES_CLASS), bool(trust & _BELIEVES_DSCP)
    verdict = partial(_verdict, ceiling, listener, believes_class)
    ranks = tuple(classes)
    prepared = [
        _PreparedRule(matcher(rule.path), matcher(rule.model), rule.dscp, verdict(rule.traffic_class, str(rule), place))
        for place, rule in enumerate(rules)
        if rule.listener in (None, listener) and (rule.dscp is None or believes_dscp)
    ]
    named = {each.name: verdict(each, "a trusted client asked for it") for each in ranks}
    urgent = [
        verdict(ranks[rank], f"a trusted client's urgency {urgency}")
        for urgency, rank in enumerate(urgency_ranks(classes.default.rank, len(ranks)))
    ]
    # Reversed, so that of two classes with one DSCP the first served gets it.
    marked = {each.dscp: verdict(each, f"inbound DSCP {dscp_name(each.dscp)}, trusted") for each in reversed(ranks)}
    return _Door(
        rules=tuple(prepared),
        by_name=named if believes_class else {},
        by_urgency=tuple(urgent) if believes_class else (),
        by_dscp=marked if believes_dscp else {},
        default=verdict(classes.default, "default class"),
        unheeded=verdict(classes.default, "default class; what the client asked for is not trusted"),
    )


def _verdict(
    ceiling: TrafficClass, listener: str, trusted: bool, wanted: TrafficClass, why: str, rule: int | None = None
) -> Verdict:
    if rule is not None:
        why = f"rules[{rule}]: {why}"
    if wanted.rank >= ceiling.rank:
        return Verdict(wanted, why, trusted, rule)
    return Verdict(ceiling, f"{why}; held at {ceiling.name}, the max_class of listener {listener}", trusted, rule)


def _matcher(pattern: str | None) -> Callable[[str], object] | None:
    return None if pattern is None else re.compile(fnmatch.translate(pattern)).match


def _trust(dscp_from: Networks, class_from: Networks, client: str) -> int:
    try:
        address = ip_address(client)
    except ValueError:
        return 0  # a peer without an IP address is in no network
    if address.version == 6 and address.ipv4_mapped is not None:
        # An IPv4 client at a dual-stack socket (RFC 4291 section 2.5.5.2).
        address = address.ipv4_mapped
    believes_dscp = any(address in network for network in dscp_from)
    believes_class = any(address in network for network in class_from)
    return believes_dscp * _BELIEVES_DSCP | believes_class * _BELIEVES_CLASS

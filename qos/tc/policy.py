# SPDX-License-Identifier: Apache-2.0
"""The policy: all that traffic control needs of a config, as data that can be kept, compared and sent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from qos.settings import BUILT_IN_CLASSES, ClassSettings, LinkSettings
from qos.tc.settings import FlowSettings, InterfaceSettings, SafetySettings
from qos.traffic_class import queue_priority

__all__ = ["Flow", "Interface", "LinkClass", "LinkPolicy", "Safety", "built_in_policy", "link_policy"]


class LinkClass(msgspec.Struct, frozen=True, kw_only=True):
    """A traffic class on a link."""

    name: str
    rank: int
    """0 borrows first."""
    dscp: int
    owns_dscp: bool
    """Whether packets with this mark are taken for this class: of classes with one mark, the first served."""
    priority: int
    """0..6, of its packets in queues without classes; the low 4 bits of its tc class's minor."""
    share: float
    """Guaranteed part of the link's rate; 0: no tc class of its own, because no packet can be told to be its."""
    ceiling: float
    queue_s: float
    """Longest queue at the guaranteed rate, seconds."""
    default: bool


class Interface(msgspec.Struct, frozen=True, kw_only=True):
    """A link to shape. Rates in bits per second."""

    name: str
    netns: str | None
    egress: int
    ingress: int | None
    overhead: int
    engine: str
    refuse_degraded: bool
    adopt: bool


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """Packets to put into a class; what is None or empty is not compared. The first that matches decides."""

    traffic_class: str
    proto: int | None
    """6 or 17."""
    src: str | None
    """A network, `10.0.0.0/8`."""
    dst: str | None
    sport: tuple[tuple[int, int], ...]
    dport: tuple[tuple[int, int], ...]
    dscp: int | None
    before_nat: bool


class Safety(msgspec.Struct, frozen=True, kw_only=True):
    """How changes are made, kept and undone."""

    confirm_s: float
    drift: str
    repairs_per_10m: int
    on_exit: str


class LinkPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What was promised on which links."""

    classes: tuple[LinkClass, ...]
    interfaces: tuple[Interface, ...]
    flows: tuple[Flow, ...]
    safety: Safety

    @property
    def digest(self) -> str:
        """Twelve hex digits that change when anything in it does."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]

    @property
    def default(self) -> LinkClass:
        """The class of packets that nothing else classifies."""
        return next(each for each in self.classes if each.default)


def link_policy(
    classes: Sequence[ClassSettings],
    interfaces: Sequence[InterfaceSettings],
    flows: Sequence[FlowSettings],
    safety: SafetySettings,
) -> LinkPolicy:
    """The policy of a verified config."""
    return LinkPolicy(
        classes=_classes(classes, {each.class_ for each in flows}),
        interfaces=tuple(map(_interface, interfaces)),
        flows=tuple(map(_flow, flows)),
        safety=Safety(
            confirm_s=safety.confirm,
            drift=safety.drift,
            repairs_per_10m=safety.repairs_per_10m,
            on_exit=safety.on_exit,
        ),
    )


def built_in_policy() -> LinkPolicy:
    """The built-in classes with shares as conf/gateway.yaml has them, and no interface."""
    shares = (0.3, 0.4, 0.2, 0.05)
    classes = [
        each.model_copy(update={"link": LinkSettings(share=share)})
        for each, share in zip(BUILT_IN_CLASSES, shares, strict=True)
    ]
    return link_policy(classes, (), (), SafetySettings())


def _classes(classes: Sequence[ClassSettings], named_by_flows: set[str]) -> tuple[LinkClass, ...]:
    default_rank = next((rank for rank, each in enumerate(classes) if each.default), 0)
    owner: dict[int, str] = {}
    for each in classes:
        owner.setdefault(each.dscp, each.name)
    reached = [
        owner[each.dscp] == each.name or each.name in named_by_flows or rank == default_rank
        for rank, each in enumerate(classes)
    ]
    shares = _shares(classes, reached)
    return tuple(
        LinkClass(
            name=each.name,
            rank=rank,
            dscp=each.dscp,
            owns_dscp=owner[each.dscp] == each.name,
            priority=queue_priority(rank, default_rank, each.dscp),
            share=shares[rank],
            ceiling=1.0 if each.link is None else each.link.ceiling,
            queue_s=0.1 if each.link is None else each.link.queue,
            default=rank == default_rank,
        )
        for rank, each in enumerate(classes)
    )


def _shares(classes: Sequence[ClassSettings], reached: Sequence[bool]) -> list[float]:
    """Each class's share; those that say none part what the others leave."""
    said = [
        (each.link.share if each.link is not None else None) if of_its_own else 0.0
        for each, of_its_own in zip(classes, reached, strict=True)
    ]
    silent = said.count(None)
    left = max(0.0, 1.0 - sum(share for share in said if share is not None))
    return [left / silent if share is None else share for share in said]


def _interface(settings: InterfaceSettings) -> Interface:
    return Interface(
        name=settings.name,
        netns=settings.netns,
        egress=settings.egress,
        ingress=settings.ingress,
        overhead=settings.overhead,
        engine=settings.engine,
        refuse_degraded=settings.degrade == "refuse",
        adopt=settings.adopt,
    )


def _flow(settings: FlowSettings) -> Flow:
    return Flow(
        traffic_class=settings.class_,
        proto=None if settings.proto is None else {"tcp": 6, "udp": 17}[settings.proto],
        src=None if settings.src is None else str(settings.src),
        dst=None if settings.dst is None else str(settings.dst),
        sport=settings.sport,
        dport=settings.dport,
        dscp=settings.dscp,
        before_nat=settings.before_nat,
    )

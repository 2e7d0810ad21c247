# SPDX-License-Identifier: Apache-2.0
"""Classes, rules and trust as the config file writes them, and the class table and policy made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from qos.classify import Policy, Rule
from qos.dscp import CODE_POINTS
from qos.schema import Dscp, Duration, ModelName, Name, Network, Rate, Settings, Share, Size, shown
from qos.traffic_class import ClassTable, StreamPromise, TrafficClass, queue_priority

__all__ = [
    "BUILT_IN_CLASSES",
    "ClassSettings",
    "GateSettings",
    "LinkSettings",
    "RuleSettings",
    "StreamSettings",
    "TrustSettings",
    "WhenSettings",
    "class_table",
    "policy",
]

# The wire carries the remaining time as 32 bits of microseconds (docs/wire.md): 71 minutes and a half.
_LONGEST_DEADLINE_S = 71 * 60.0


def _deadline(seconds: float) -> float:
    if not 0 < seconds <= _LONGEST_DEADLINE_S:
        raise ValueError("a deadline is longer than 0 and at most 71m")
    return seconds


def _link_queue(seconds: float) -> float:
    if not 1e-3 <= seconds <= 10:
        raise ValueError("a link's queue is at least 1ms and at most 10s")
    return seconds


def _stream_time(seconds: float) -> float:
    if not 0.01 <= seconds <= 86_400:
        raise ValueError("a stream's time is at least 10ms and at most 1440m")
    return seconds


def _path_pattern(text: str) -> str:
    if not text.startswith(("/", "*", "?", "[")):
        raise ValueError(f"{shown(text)} can match no path; begin it with / or *")
    return text


class GateSettings(Settings):
    """The gateway's side of the promise."""

    share: Share | None = None
    """Part of a pool's places that it gets before higher classes get more than theirs; default: none."""
    queue: Duration | None = None
    """Longest wait in the gateway for a place at a backend; default: the class's deadline."""
    requests: int = Field(default=1024, ge=1, le=2**20)
    """Most of its requests that wait in the gateway for one pool."""
    bytes: Annotated[Size, Field(ge=1)] = Field(default=64 * 2**20, json_schema_extra={"default": "64MiB"})
    """Most bytes of their bodies."""


class LinkSettings(Settings):
    """The kernel's side of the promise, on every interface that is shaped."""

    share: Share | None = None
    """Guaranteed part of the link's rate; default: an equal part of what the other classes leave."""
    ceiling: Share = Field(default=1.0, json_schema_extra={"default": "100%"})
    """Most of the link's rate that it may borrow."""
    queue: Annotated[Duration, AfterValidator(_link_queue)] = Field(default=0.1, json_schema_extra={"default": "100ms"})
    """Longest queue, in time at the guaranteed rate."""
    police: Rate | None = None
    """Most that lower classes' replies may send under this class's mark, on a connection that was raised to it."""


class StreamSettings(Settings):
    """Token streams, behind their first byte: until then the class's deadline holds."""

    stall: Annotated[Duration, AfterValidator(_stream_time)] = Field(default=15.0, json_schema_extra={"default": "15s"})
    """Longest silence between two pieces, of the backend or of a client that does not read."""
    total: Annotated[
        Annotated[Duration, AfterValidator(_stream_time)] | None,
        BeforeValidator(lambda value: None if value == "none" else value),
    ] = Field(default=None, json_schema_extra={"default": "none"})
    """Until the last byte; none: as long as it takes."""
    keepalive: Annotated[Duration, AfterValidator(_stream_time)] = Field(
        default=5.0, json_schema_extra={"default": "5s"}
    )
    """After so long a silence a comment tells the client that somebody is still there."""


class ClassSettings(Settings):
    """One traffic class; its place in the list is its rank."""

    name: Name
    """For rules, headers, logs and metrics."""
    dscp: Dscp
    """The mark on this class's packets."""
    deadline: Annotated[Duration, AfterValidator(_deadline)]
    """Until the whole reply; of a token stream until its first byte."""
    default: bool = False
    """Whether requests get this class when nothing else decides; exactly one class says true."""
    gate: GateSettings = GateSettings()
    """The gateway's side of the promise."""
    link: LinkSettings | None = None
    """The kernel's side of the promise."""
    hedge: Share | None = None
    """Second copies, while the first still runs, as a part of its requests; default: none."""
    sheddable: bool = False
    """Whether its work in flight may be ended for a higher class that waits."""
    stream: StreamSettings = StreamSettings()
    """Token streams behind their first byte."""


class WhenSettings(Settings):
    """A rule's conditions: all that are given must hold."""

    later: ClassVar = ("client",)

    listener: Name | None = None
    """A listener's name."""
    path: Annotated[str, AfterValidator(_path_pattern)] | None = None
    """The path of the request, or a pattern with * ? [...]; case matters."""
    model: ModelName | None = None
    """The model's name, or a pattern with * ? [...]; case matters."""
    dscp: Dscp | None = None
    """The DSCP that the request came with; believed only from trust.dscp_from."""


class RuleSettings(Settings):
    """Requests for which `when` holds get `class`."""

    when: WhenSettings
    """Conditions: all that are given must hold."""
    class_: Name = Field(alias="class")
    """A class's name."""


class TrustSettings(Settings):
    """Who may choose a class."""

    dscp_from: tuple[Network, ...] = ()
    """Networks where an inbound DSCP may choose a class."""
    class_from: tuple[Network, ...] = ()
    """Networks that may choose a class by header, Priority or datagram field."""


BUILT_IN_CLASSES: tuple[ClassSettings, ...] = (
    ClassSettings(name="realtime", dscp=CODE_POINTS["EF"], deadline=0.05, gate=GateSettings(queue=0.02)),
    ClassSettings(name="interactive", dscp=CODE_POINTS["AF21"], deadline=2.0, default=True),
    ClassSettings(name="batch", dscp=CODE_POINTS["AF11"], deadline=30.0),
    ClassSettings(name="background", dscp=CODE_POINTS["LE"], deadline=600.0),
)
"""What holds where the config names no classes."""


def class_table(classes: Sequence[ClassSettings]) -> ClassTable:
    """The classes in rank order. The default one is the one that says so, or the only one."""
    default_rank = next((rank for rank, each in enumerate(classes) if each.default), 0)
    table = [
        TrafficClass(
            name=each.name,
            rank=rank,
            dscp=each.dscp,
            deadline_s=each.deadline,
            queue_s=each.deadline if each.gate.queue is None else each.gate.queue,
            priority=queue_priority(rank, default_rank, each.dscp),
            police=None if each.link is None else each.link.police,
            gate_share=each.gate.share or 0.0,
            most_waiting=each.gate.requests,
            most_waiting_bytes=each.gate.bytes,
            hedge=each.hedge or 0.0,
            sheddable=each.sheddable,
            stream=StreamPromise(
                stall_s=each.stream.stall, total_s=each.stream.total, keepalive_s=each.stream.keepalive
            ),
        )
        for rank, each in enumerate(classes)
    ]
    defaults = [table[rank] for rank, each in enumerate(classes) if each.default or len(table) == 1]
    if len(defaults) != 1:
        raise ValueError(f"exactly one class says default: true, not {len(defaults)}")
    return ClassTable(table, defaults[0])


def policy(
    classes: ClassTable, rules: Sequence[RuleSettings], trust: TrustSettings, listeners: Mapping[str, str | None]
) -> Policy:
    """What `classify` needs. listeners: the max_class of each by its name; None is the default class."""

    def named(name: str) -> TrafficClass:
        found = classes.get(name)
        if found is None:
            raise ValueError(f"no class is named {shown(name)}")
        return found

    return Policy(
        classes,
        max_class={
            listener: classes.default if highest is None else named(highest) for listener, highest in listeners.items()
        },
        rules=[
            Rule(
                traffic_class=named(each.class_),
                listener=each.when.listener,
                path=each.when.path,
                model=each.when.model,
                dscp=each.when.dscp,
            )
            for each in rules
        ],
        dscp_from=trust.dscp_from,
        class_from=trust.class_from,
    )

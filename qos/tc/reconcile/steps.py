# SPDX-License-Identifier: Apache-2.0
"""The words of a plan: one step is one thing to do to the kernel, with what it can lose."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from qos.tc.state import U32, Filter, Qdisc, TcClass

__all__ = ["NO_LOSS", "Device", "Gso", "Loss", "Step", "Subject", "Table", "Verb", "takes_two"]


class Verb(StrEnum):
    """What is done to a subject."""

    ADD = "add"
    CHANGE = "change"
    """In place: nothing is lost."""
    REPLACE = "replace"
    """Another object in this place: of a qdisc, what waits in the old one is lost; of a filter, nothing."""
    DRAIN = "drain"
    """Wait, for a bounded time, until it is empty: nothing is sent to it any more."""
    DELETE = "delete"


class Device(msgspec.Struct, frozen=True, tag="device"):
    """An IFB that we make or remove."""

    name: str
    ifb_for: str
    """The interface whose incoming packets it queues."""


class Gso(msgspec.Struct, frozen=True, tag="gso"):
    """The longest train that the stack hands to a device."""

    max_size: int
    """Bytes."""


class Table(msgspec.Struct, frozen=True, tag="table"):
    """Our nftables table. Its step has no device."""

    chain: str
    """The name of its chain, by which its text is known."""


Subject = Qdisc | TcClass | Filter | Device | Gso | Table


class Loss(msgspec.Struct, frozen=True):
    """Packets that a step destroys, as far as can be known before."""

    packets: int | None
    """None: nobody asked how much waits there."""
    text: str


NO_LOSS = Loss(0, "nothing")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do, on one device or to the table."""

    verb: Verb
    device: str
    subject: Subject
    before: Subject | None = None
    """What a change or a replacement finds in its place."""
    loss: Loss = NO_LOSS


def takes_two(step: Step) -> bool:
    """Whether the old object must go before the new one can come, because no kernel does this at once.

    A handle keeps its qdisc's kind, an HTB root keeps its options (EINVAL for both), and u32 keeps a filter's keys
    though it says that it took the new ones (u32_init_knode() in net/sched/cls_u32.c).
    """
    new, old = step.subject, step.before
    if step.verb is not Verb.REPLACE:
        return False
    if isinstance(new, Qdisc) and isinstance(old, Qdisc):
        return new.handle == old.handle
    if isinstance(new, Filter) and isinstance(old, Filter) and isinstance(old.options, U32):
        return not isinstance(new.options, U32) or new.options.keys != old.options.keys
    return False

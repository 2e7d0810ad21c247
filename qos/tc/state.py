# SPDX-License-Identifier: Apache-2.0
"""Traffic control as data: desired state, observed state and snapshot are this one type.

So the difference of any two is a plan: to apply, to repair drift and to roll back. Handles, options and units are the
kernel's (linux/pkt_sched.h), so that equal means equal in the kernel; each option carries its tc(8) name.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "CLSACT",
    "EGRESS_HOOK",
    "FOREIGN_TABLE",
    "INGRESS_HOOK",
    "OUR_CHAIN",
    "OUR_FILTERS",
    "OUR_MAJORS",
    "OUR_TABLE",
    "ROOT",
    "TICK_NS",
    "U32",
    "Bfifo",
    "Bpf",
    "Cake",
    "ClassOptions",
    "Clsact",
    "Ets",
    "Filter",
    "FilterOptions",
    "Flower",
    "Fq",
    "FqCodel",
    "Htb",
    "HtbClass",
    "LinkState",
    "NetworkState",
    "Qdisc",
    "QdiscOptions",
    "Redirect",
    "Tbf",
    "TcClass",
    "Unread",
    "UnreadClass",
    "UnreadFilter",
    "handle_text",
    "is_our_qdisc",
]

ROOT = 0xFFFFFFFF
"""TC_H_ROOT: the parent of a root qdisc."""
CLSACT = 0xFFFFFFF1
"""TC_H_CLSACT: the parent of a clsact qdisc, whose handle is ffff:0."""
INGRESS_HOOK = 0xFFFFFFF2
"""Filters that packets pass when they come in."""
EGRESS_HOOK = 0xFFFFFFF3
"""Filters that packets pass before the root qdisc sees them."""
OUR_MAJORS = (0x51A, 0x51B)
"""Majors of the root qdiscs that we make: two, because a root changes its kind only under another handle."""
TICK_NS = 64
"""A tick of the packet scheduler, in which bursts are told (PSCHED_SHIFT in include/net/pkt_sched.h since 2.6.31;
/proc/net/psched says so, and `probe` looks)."""
OUR_FILTERS = range(0x51A0, 0x51B0)
"""Preferences (tc's `pref`) of the filters that we put beside others' at a clsact hook."""
OUR_TABLE = "inet inferlane"
"""The nftables table for flows known by their addresses before NAT: its family and its name."""
OUR_CHAIN = "classify_"
"""How the name of its one chain begins; what follows is the digest of its rules."""
FOREIGN_TABLE = "foreign"
"""Instead of a chain's name: somebody else has a table of that name."""


class Htb(msgspec.Struct, frozen=True, tag="htb"):
    """tc-htb(8): a root that shares a rate among classes."""

    default: int
    """Minor of the class for packets that nothing classified; 0 would let them past the shaper."""


class Bfifo(msgspec.Struct, frozen=True, tag="bfifo"):
    """tc-bfifo(8)."""

    limit: int
    """Bytes."""


class Tbf(msgspec.Struct, frozen=True, tag="tbf"):
    """tc-tbf(8), at a rate that never delays: in a leaf it cuts trains (GSO) longer than its burst into packets.

    Its own child is a bfifo of `limit`, unless another is put in its place.
    """

    rate: int
    """Bytes per second, less than 2**32."""
    burst: int
    """In ticks of the packet scheduler: what may go at once, and so the longest packet that is let through."""
    limit: int
    """Bytes."""


class FqCodel(msgspec.Struct, frozen=True, tag="fq_codel"):
    """tc-fq_codel(8): flows of one class take turns, and long queues are marked or cut."""

    limit: int
    """Packets."""
    target: int
    """Microseconds; the kernel counts in units of 1.024 us: `qdisc_codec.canonical` says what it makes of others."""
    interval: int
    """Microseconds."""
    quantum: int
    """Bytes."""
    memory_limit: int
    """Bytes."""
    ecn: bool = True


class Cake(msgspec.Struct, frozen=True, tag="cake"):
    """tc-cake(8)."""

    bandwidth: int
    """Bytes per second; 0 is unlimited."""
    diffserv: int
    """CAKE_DIFFSERV_*: 0 diffserv3, 1 diffserv4, 2 diffserv8, 3 besteffort, 4 precedence."""
    overhead: int
    """Bytes a packet."""


class Ets(msgspec.Struct, frozen=True, tag="ets"):
    """tc-ets(8): strict bands first, the others by quantum."""

    bands: int
    strict: int
    quanta: tuple[int, ...]
    """Bytes, of the bands that are not strict."""
    priomap: tuple[int, ...]
    """Band by packet priority, 16 of them."""


class Fq(msgspec.Struct, frozen=True, tag="fq"):
    """tc-fq(8): fair among flows, paced; from Linux 6.7 with three bands by packet priority."""

    limit: int
    """Packets."""
    flow_limit: int
    """Packets."""
    priomap: tuple[int, ...] = ()
    """Band by packet priority, 16 of them; empty where the kernel has no bands."""


class Clsact(msgspec.Struct, frozen=True, tag="clsact"):
    """tc-bpf(8): the two hooks, no queue."""


class Unread(msgspec.Struct, frozen=True, tag="opaque"):
    """A kind that we neither make nor read, with its options as they came."""

    kind: str
    data: bytes | None


QdiscOptions = Htb | Bfifo | Tbf | FqCodel | Cake | Ets | Fq | Clsact | Unread


class HtbClass(msgspec.Struct, frozen=True, tag="htb"):
    """tc-htb(8), one class."""

    rate: int
    """Guaranteed, bytes per second."""
    ceil: int
    """With what it may borrow, bytes per second."""
    burst: int
    """What may go at once above `rate`, in ticks of the packet scheduler (TCA_HTB_PARMS buffer)."""
    cburst: int
    """The same above `ceil`."""
    prio: int
    """Who borrows first: 0..7; means nothing in a class that has children, and is 0 there."""
    quantum: int
    """Bytes in a turn among equals."""
    overhead: int = 0
    """Bytes that the wire adds to each packet."""


class UnreadClass(msgspec.Struct, frozen=True, tag="opaque"):
    """A class of a qdisc that is not ours."""

    kind: str
    data: bytes | None


ClassOptions = HtbClass | UnreadClass


class U32(msgspec.Struct, frozen=True, tag="u32"):
    """tc-u32(8), matches on 32-bit words from the network header."""

    keys: tuple[tuple[int, int, int], ...]
    """(offset, value, mask), host order."""
    classid: int


class Flower(msgspec.Struct, frozen=True, tag="flower"):
    """tc-flower(8); what is None or empty is not compared."""

    classid: int
    dscp: int | None = None
    ip_proto: int | None = None
    src: str = ""
    """A network, `10.0.0.0/8`."""
    dst: str = ""
    sport: tuple[int, int] | None = None
    """First and last port."""
    dport: tuple[int, int] | None = None


class Bpf(msgspec.Struct, frozen=True, tag="bpf"):
    """tc-bpf(8), direct action: our classifier. No kernel gives a program back, so the name carries its digest."""

    name: str


class Redirect(msgspec.Struct, frozen=True, tag="redirect"):
    """All packets to another device's egress (matchall or u32 with mirred): how what comes in gets a queue."""

    to: str
    """Name of the device."""


class UnreadFilter(msgspec.Struct, frozen=True, tag="opaque"):
    """A filter of somebody else, on a qdisc of ours or at a hook that we share."""

    kind: str
    data: bytes | None


FilterOptions = U32 | Flower | Bpf | Redirect | UnreadFilter


class Qdisc(msgspec.Struct, frozen=True):
    """One qdisc. Those that the kernel makes by itself have the handle 0 and are in no state."""

    handle: int
    parent: int
    options: QdiscOptions


class TcClass(msgspec.Struct, frozen=True):
    """One class of a qdisc."""

    handle: int
    parent: int
    """The class or qdisc above it: never ROOT, which the kernel reports for a class right under the qdisc."""
    options: ClassOptions


class Filter(msgspec.Struct, frozen=True):
    """One filter. Its place is (parent, pref, protocol, handle)."""

    parent: int
    """A qdisc's handle, or a hook."""
    pref: int
    protocol: int
    """Ethernet type: 0x0800, 0x86dd; 0x0003 is all."""
    handle: int
    """0 where the kernel is free to choose (then it is in no comparison)."""
    options: FilterOptions


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """What traffic control does on one device."""

    name: str
    ifb_for: str | None = None
    """On an IFB that we made: the interface whose incoming packets it queues."""
    qdiscs: tuple[Qdisc, ...] = ()
    classes: tuple[TcClass, ...] = ()
    filters: tuple[Filter, ...] = ()
    gso_max_size: int | None = None
    """Bytes of the longest train; None where it is not ours to set."""


class NetworkState(msgspec.Struct, frozen=True, kw_only=True):
    """All devices of one network namespace that the policy names, by name, and our IFBs."""

    netns: str | None = None
    """Name of the namespace; None: the one we are in."""
    links: tuple[LinkState, ...] = ()
    table: str = ""
    """The chain of our nftables table, whose name says what is in it; "": there is none of ours."""

    def link(self, name: str) -> LinkState | None:
        """The device of this name, or None."""
        return next((each for each in self.links if each.name == name), None)


def handle_text(handle: int) -> str:
    """As tc(8) writes it: 0x51a0016 -> `51a:16`, 0x51a0000 -> `51a:`."""
    if handle == ROOT:
        return "root"
    major, minor = handle >> 16, handle & 0xFFFF
    return f"{major:x}:{minor:x}" if minor else f"{major:x}:"


def is_our_qdisc(qdisc: Qdisc) -> bool:
    """Whether this is a root that we made; what hangs below one is ours too."""
    return qdisc.parent == ROOT and qdisc.handle >> 16 in OUR_MAJORS

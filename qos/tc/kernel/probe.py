# SPDX-License-Identifier: Apache-2.0
"""What a kernel can do: each kind is tried on an IFB that never goes up and is gone afterwards.

Only that tells. A list of modules says nothing of those built in, and a container may see modules that it cannot load.
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from qos.tc.capabilities import Capabilities
from qos.tc.kernel import bpf, nftables
from qos.tc.kernel.attributes import attribute, nested, text, u32
from qos.tc.kernel.filter_codec import Outside, encode_filter
from qos.tc.kernel.netlink import Kernel, KernelError
from qos.tc.kernel.qdisc_codec import decode_qdisc
from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    INGRESS_HOOK,
    ROOT,
    TICK_NS,
    U32,
    Bfifo,
    Bpf,
    Cake,
    Clsact,
    Ets,
    Filter,
    FilterOptions,
    Flower,
    Fq,
    FqCodel,
    Htb,
    Qdisc,
    QdiscOptions,
    Redirect,
    Tbf,
    Unread,
    UnreadFilter,
)

__all__ = ["probe"]

_FQ = Fq(limit=10_000, flow_limit=100, priomap=(2,) * 16)  # not the bands that it has by itself
_QDISCS: dict[str, QdiscOptions] = {
    "htb": Htb(default=1),
    "cake": Cake(bandwidth=125_000, diffserv=1, overhead=0),
    "ets": Ets(bands=4, strict=2, quanta=(3000, 1500), priomap=(3,) * 16),
    "fq": _FQ,
    "fq_codel": FqCodel(limit=1000, target=5000, interval=100_000, quantum=1514, memory_limit=2**20),
    "bfifo": Bfifo(limit=30_000),
    "tbf": Tbf(rate=125_000, burst=250_000, limit=30_000),
}
_FIRST_MAJOR = 0x100  # a major for each attempt: one that was another kind's is refused
_PARENT = 0x200 << 16
_CLSACT = Qdisc(0xFFFF0000, CLSACT, Clsact())
_IPV4, _ALL = 0x0800, 0x0003
_TARGET = _PARENT | 1
_MATCHES: dict[str, tuple[int, FilterOptions]] = {
    "u32": (_IPV4, U32(((0, 46 << 18, 0xFC0000),), _TARGET)),
    "flower": (_IPV4, Flower(classid=_TARGET, dscp=46)),
    "matchall": (_ALL, UnreadFilter("matchall", u32(1, _TARGET))),  # TCA_MATCHALL_CLASSID
}
# One action: its kind, and in its options struct tc_skbedit (index, capab, action TC_ACT_UNSPEC, refcnt, bindcnt) and a
# priority.
_SKBEDIT = nested(
    1, text(1, "skbedit"), nested(2, attribute(2, struct.pack("=IIiii", 0, 0, -1, 0, 0)), u32(3, _TARGET))
)
_PASSES = struct.pack("<BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0)  # r0 = TC_ACT_UNSPEC; exit
_TICKS = Path("/proc/net/psched")


def probe(netns: str | None, *, ticks: Path = _TICKS) -> Capabilities:
    """Ask the kernel, in this namespace. KernelError: it cannot even be asked."""
    _check_ticks(ticks)
    with Kernel(netns) as kernel, kernel.scratch() as (device, without_ifb):
        qdiscs, fq_bands = _qdiscs(kernel, device)
        clsact = _said(partial(kernel.add, device, _CLSACT))
        classifiers = _classifiers(kernel, device)
        actions = _actions(kernel, device, matchall=not classifiers["matchall"])
        return Capabilities(
            kernel=platform.release(),
            qdiscs=qdiscs,
            classifiers=classifiers,
            actions=dict.fromkeys(actions, clsact) if clsact else actions,
            ifb=without_ifb,
            clsact=clsact,
            per_packet_priority=_per_packet_priority(),
            fq_bands=fq_bands,
            nftables=nftables.missing(netns),
        )


def _check_ticks(file: Path) -> None:
    """Bursts are told in ticks, and they have been 64 ns for long."""
    try:
        per_tick = int(file.read_text(encoding="ascii").split()[1], 16)
    except (OSError, IndexError, ValueError) as error:
        raise KernelError(errno.ENOTSUP, f"{error}; is /proc mounted?", f"read {file}") from None
    if per_tick != TICK_NS:
        raise KernelError(errno.ENOTSUP, f"a tick of {per_tick} ns, where {TICK_NS} ns was expected", f"read {file}")


def _qdiscs(kernel: Kernel, device: str) -> tuple[dict[str, str], bool]:
    """What it says to each kind, and whether fq took bands: older ones let them be without a word."""
    said = {}
    bands = False
    for number, (kind, options) in enumerate(_QDISCS.items()):
        handle = (_FIRST_MAJOR + number) << 16
        said[kind] = _said(partial(kernel.replace, device, Qdisc(handle, ROOT, options)))
        if kind == "fq" and said[kind]:
            plain = Qdisc(handle, ROOT, msgspec.structs.replace(_FQ, priomap=()))
            said[kind] = _said(partial(kernel.replace, device, plain))
        elif kind == "fq":
            link = kernel.observe({device}).link(device)
            root = None if link is None else next((each for each in link.qdiscs if each.parent == ROOT), None)
            told = None if root is None or not isinstance(root.options, Unread) else root.options
            bands = told is not None and decode_qdisc("fq", told.data) == _FQ
    return said, bands


def _classifiers(kernel: Kernel, device: str) -> dict[str, str]:
    no_root = _said(partial(kernel.replace, device, Qdisc(_PARENT, ROOT, Htb(default=1))))
    hook = _PARENT if not no_root else EGRESS_HOOK
    said = {
        kind: _said(partial(kernel.add, device, Filter(hook, 10 + number, protocol, 0, options)))
        for number, (kind, (protocol, options)) in enumerate(_MATCHES.items())
    }
    return {**said, "bpf": _bpf(kernel, device)}


def _bpf(kernel: Kernel, device: str) -> str:
    try:
        program = bpf.load(_PASSES, "probe")
    except KernelError as error:
        return error.said
    try:
        tried = Filter(EGRESS_HOOK, 20, _ALL, 1, Bpf("probe"))
        return _said(partial(kernel.add, device, tried, fd=program))
    finally:
        os.close(program)


def _actions(kernel: Kernel, device: str, *, matchall: bool) -> dict[str, str]:
    """By filters that match all: a redirect as ours, and the same with another action in its place."""
    redirect = Filter(INGRESS_HOOK, 30, _ALL, 0, Redirect(device))
    kind = "matchall" if matchall else "u32"
    every = u32(1, _TARGET) if matchall else encode_filter(U32(((0, 0, 0),), _TARGET), _ALL, Outside()) or b""
    edit = UnreadFilter(kind, every + nested(2 if matchall else 7, _SKBEDIT))  # TCA_MATCHALL_ACT, TCA_U32_ACT
    return {
        "mirred": _said(partial(kernel.add, device, redirect)),
        "skbedit": _said(partial(kernel.add, device, Filter(INGRESS_HOOK, 31, _ALL, 0, edit))),
    }


def _said(attempt: Callable[[], object]) -> str:
    """Empty where the kernel did it, else its words."""
    try:
        attempt()
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise
        return error.said
    return ""


def _per_packet_priority() -> bool:
    """Whether sendmsg() takes SO_PRIORITY (Linux 6.14): 0 asks for no capability, and an older kernel says EINVAL."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        priority = (socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("=i", 0))
        try:
            sender.sendmsg([b""], [priority], 0, ("127.0.0.1", 9))
        except OSError as error:  # what comes after: no loopback, nobody at the port
            return error.errno != errno.EINVAL
    return True

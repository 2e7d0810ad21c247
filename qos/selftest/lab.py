# SPDX-License-Identifier: Apache-2.0
"""Three network namespaces in a row, the middle one a slow hop that serialises, and nothing left of them afterwards.

    src eth0 ---- in0 hop out0 ---- eth0 dst     out0 sends at `rate` through one FIFO of 256 KiB, as cheap routers do

Packets from src meet first what we put on src's eth0, then the hop. The addresses are from 198.18.0.0/15, which
RFC 2544 keeps for measurements.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from qos.tc.kernel.netlink import Kernel, KernelError
from qos.tc.state import ROOT, TICK_NS, Qdisc, Unread

__all__ = ["Lab", "LabError", "lab"]

PREFIX = "il-selftest-"
FIFO = 256 * 1024
"""Bytes that the hop queues: at 20 Mbit/s this is 105 ms."""
_BURST = 3_000
_SRC, _HOP_IN, _HOP_OUT, _DST = "198.18.1.1", "198.18.1.2", "198.18.2.1", "198.18.2.2"
_T = TypeVar("_T")


class LabError(Exception):
    """The namespaces cannot be made; the message says why and what helps."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Names of the namespaces, and the two ends' addresses."""

    src: str
    hop: str
    dst: str
    src_address: str = _SRC
    dst_address: str = _DST
    interface: str = "eth0"
    """Name of the link in src and dst."""

    def socket(self, namespace: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """An IPv4 socket that lives in one of the namespaces, usable from here."""
        return within(namespace, lambda: socket.socket(socket.AF_INET, kind))

    def hop_rate(self, bits_per_s: int) -> None:
        """Make the hop this slow."""
        with Kernel(self.hop) as kernel:
            kernel.add("out0", Qdisc(0x10000, ROOT, Unread("tbf", _tbf(bits_per_s // 8))))


@contextmanager
def lab(rate: int) -> Iterator[Lab]:
    """Build it with a hop of `rate` bits per second. Raises LabError; removes whatever was made, also then."""
    _sweep()
    names = [f"{PREFIX}{os.getpid()}-{role}" for role in ("src", "hop", "dst")]
    built = Lab(*names)
    with ExitStack() as stack:
        try:
            for name in names:
                netns.create(name)
                stack.callback(_remove, name)
            _wire(built)
            built.hop_rate(rate)
        except (OSError, NetlinkError, KernelError) as error:
            raise LabError(f"cannot build the test's namespaces: {error}; it needs root with CAP_SYS_ADMIN") from error
        yield built


def within(namespace: str, work: Callable[[], _T]) -> _T:
    """The result of `work`, done by a thread that is inside the namespace for that long."""
    results: list[_T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            netns.setns(namespace, flags=0)
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again, by the caller's thread
            failures.append(error)

    thread = threading.Thread(target=body, name=f"in {namespace}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _sweep() -> None:
    """Remove what a trial that was killed has left."""
    for name in netns.listnetns():
        pid, _, _ = name.removeprefix(PREFIX).partition("-")
        if name.startswith(PREFIX) and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(name)


def _remove(name: str) -> None:
    # umount is asynchronous about the devices inside: the kernel takes veth pairs with their namespace.
    netns.remove(name)


def _wire(built: Lab) -> None:
    with IPRoute(netns=built.hop, flags=0) as hop:
        for ours, theirs in (("in0", built.src), ("out0", built.dst)):
            hop.link("add", ifname=ours, kind="veth", peer={"ifname": built.interface, "net_ns_fd": theirs})
        _up(hop, "in0", _HOP_IN)
        _up(hop, "out0", _HOP_OUT)
    for end, address, gateway, beyond in (
        (built.src, _SRC, _HOP_IN, "198.18.2.0/24"),
        (built.dst, _DST, _HOP_OUT, "198.18.1.0/24"),
    ):
        with IPRoute(netns=end, flags=0) as door:
            _up(door, built.interface, address)
            door.route("add", dst=beyond, gateway=gateway)
    within(built.hop, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))


def _up(door: IPRoute, name: str, address: str) -> None:
    door.link("set", index=1, state="up")  # lo is the first device of every namespace
    index = door.link_lookup(ifname=name)[0]
    door.addr("add", index=index, address=address, prefixlen=24)
    door.link("set", index=index, state="up")


def _tbf(rate: int) -> bytes:
    """TCA_OPTIONS of tc-tbf(8) at `rate` bytes/s: struct tc_tbf_qopt of linux/pkt_sched.h.

    linklayer 1 (Ethernet) in the rate spares the kernel the rate table that old tools send along.
    """
    ticks = int(_BURST / rate * 1e9) // TICK_NS
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, rate)
    parms = spec + bytes(12) + struct.pack("=3I", FIFO, ticks, 0)
    return struct.pack("=HH", 4 + len(parms), 1) + parms

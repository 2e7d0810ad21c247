# SPDX-License-Identifier: Apache-2.0
"""A host whose `eth0` is shaped as a policy says, its neighbour, and where packets between them were counted."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from qos.tc.capabilities import Capabilities
from qos.tc.design.compile import Compiled, compile_policy
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.plan import plan
from qos.tc.state import Cake, LinkState, NetworkState, Qdisc
from qos.tc.tree import root_of
from tests.fakes.namespaces import Host, joined

__all__ = ["COUNT", "ShapedLink", "datagrams", "shaped_link"]

COUNT = 50
"""Packets sent at once, more than the kernel sends of its own in that time."""
_COUNTED_S = 10.0


class ShapedLink:
    """Real devices: what is compiled is applied, packets are sent, and counters tell where they went."""

    def __init__(self, host: Host, other: Host, kernel: Kernel) -> None:
        self.host, self.other, self.kernel = host, other, kernel
        self.compiled: Compiled | None = None

    def shape(self, policy: LinkPolicy, capabilities: Capabilities | None = None) -> Compiled:
        """Apply a policy to `eth0`."""
        self.compiled = compile_policy(
            policy,
            None,
            facts=self.kernel.facts(),
            capabilities=probe(self.host.name) if capabilities is None else capabilities,
            observed=self.kernel.observe(["eth0"]),
        )
        outcome = apply(self.kernel, self.compiled.desired, programs=self.compiled.programs)
        assert outcome.failure is None and outcome.residual == ()
        assert plan(self.kernel.observe(["eth0"]), self.compiled.desired) == ()
        return self.compiled

    def root(self, device: str = "eth0") -> Qdisc:
        """The root qdisc that is there."""
        link = self.kernel.observe(["eth0"]).link(device)
        assert link is not None
        found = root_of(link)
        assert found is not None
        return found

    def unshape(self) -> None:
        """Take away all that was made."""
        nothing = NetworkState(netns=self.host.name, links=(LinkState(name="eth0"),))
        assert apply(self.kernel, nothing, programs={}).failure is None

    def classes_of(self, packets: Callable[[], None], *, device: str = "eth0") -> set[str]:
        """Where they went: a few more are the kernel's own, for neighbours and multicast groups."""
        before = self.packets(device)
        packets()
        found: set[str] = set()
        until = time.monotonic() + _COUNTED_S
        while not found and time.monotonic() < until:
            after = self.packets(device)
            found = {name for name in after if after[name] - before.get(name, 0) >= COUNT}
        return found

    def packets(self, device: str = "eth0") -> dict[str, int]:
        """So far, by class."""
        assert self.compiled is not None
        if isinstance(self.root(device).options, Cake):
            return self._by_tin(device)
        counted = self.kernel.counters(device)
        return {
            self.compiled.labels[device, handle]: each.packets
            for handle, each in counted.items()
            if (device, handle) in self.compiled.labels and handle & 0xFFFF
        }

    def _by_tin(self, device: str) -> dict[str, int]:
        """CAKE counts in statistics of its own."""
        assert self.compiled is not None
        (told,) = json.loads(self.host.tc(f"-s -j qdisc show dev {device} root"))
        root = self.root(device).handle
        return {
            self.compiled.labels[device, root | number]: tin["sent_packets"]
            for number, tin in enumerate(told["tins"], start=1)
            if (device, root | number) in self.compiled.labels
        }


def datagrams(sender: Host, to: Host, dscp: int, *, port: int = 9, version: int = 4) -> None:
    """COUNT of them with this mark."""
    family, address = (socket.AF_INET, to.v4) if version == 4 else (socket.AF_INET6, to.v6)
    level, option = (socket.IPPROTO_IP, socket.IP_TOS) if version == 4 else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    with sender.socket(family) as opened:
        opened.setsockopt(level, option, dscp << 2)
        sent = 0
        while sent < COUNT:
            with suppress(ConnectionRefusedError):  # nobody listens there, and says so of an earlier one
                sent += opened.sendto(b"x", (address, port))


@contextmanager
def shaped_link(part: str) -> Iterator[ShapedLink]:
    """Two hosts on one link, nothing shaped yet."""
    with joined(part) as (left, right), Kernel(left.name) as kernel:
        yield ShapedLink(left, right, kernel)

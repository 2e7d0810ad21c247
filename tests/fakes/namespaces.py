# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that a test makes, joins by veth pairs and removes: hosts and routers on this machine's kernel.

    with joined("door") as (left, right): left.tc("qdisc add dev eth0 root tbf rate 1mbit burst 3kb latency 50ms")
    with routed("proof", rate="20mbit") as (client, router, server): ...

Every host has `eth0` with an IPv4 and an IPv6 address, usable at once, and no queue. A router has `eth1` towards the
server, too: the link that is slow.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Made = TypeVar("Made")

_LONGEST_S = 60.0
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace and its addresses on `eth0`."""

    name: str
    """As `ip netns list` prints it."""
    v4: str = ""
    v6: str = ""

    @property
    def path(self) -> Path:
        return Path("/run/netns", self.name)

    def command(self, command: str) -> list[str]:
        """The arguments that run a command in it, for those who start the process themselves."""
        return ["ip", "netns", "exec", self.name, *shlex.split(command)]

    def run(self, command: str, *, fails: bool = False) -> str:
        """What a command in it wrote; with `fails` it must fail, and this is its error."""
        done = subprocess.run(self.command(command), capture_output=True, text=True, check=False, timeout=_LONGEST_S)
        assert (done.returncode != 0) == fails, f"{command}: status {done.returncode}: {done.stderr or done.stdout}"
        return done.stderr if fails else done.stdout

    def tc(self, arguments: str) -> str:
        """`tc ...` in it."""
        return _quietly("tc", "-n", self.name, *shlex.split(arguments))

    def ip(self, arguments: str) -> str:
        """`ip ...` in it."""
        return _quietly("ip", "-n", self.name, *shlex.split(arguments))

    def call(self, function: Callable[[], Made]) -> Made:
        """What a function returns in a thread of its own inside: what it opens there stays there."""
        made: list[Made] = []
        failed: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.path)
                made.append(function())
            except BaseException as error:  # noqa: BLE001  # raised again where the caller sees it
                failed.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join(_LONGEST_S)
        assert not thread.is_alive(), "a call into a namespace has not come back"
        if failed:
            raise failed[0]
        return made[0]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
        """A socket that lives in it."""
        return self.call(lambda: socket.socket(family, kind, proto))


@dataclass(frozen=True, slots=True)
class Ends:
    """The addresses of the two hosts of one veth pair; `/24` and `/64` networks, numbered."""

    number: int

    def host(self, name: str, last: int) -> Host:
        return Host(name, f"10.77.{self.number}.{last}", f"fd77:{self.number}::{last}")


@contextmanager
def alone(part: str) -> Iterator[Host]:
    """One namespace with `eth0`, whose other end is in it too, as `peer0`: for what needs no traffic."""
    with _namespace(part, "only") as only:
        host = Ends(1).host(only.name, 1)
        made = f"link add eth0 {_ONE_QUEUE} type veth peer name peer0"
        _set_up(host, "eth0", host.v4, host.v6, before=[made, "link set peer0 up"])
        yield host


@contextmanager
def joined(part: str) -> Iterator[tuple[Host, Host]]:
    """Two hosts on one link."""
    with _namespace(part, "left") as left, _namespace(part, "right") as right:
        ends = Ends(1)
        hosts = ends.host(left.name, 1), ends.host(right.name, 2)
        _join((hosts[0], "eth0"), (hosts[1], "eth0"))
        for host in hosts:
            _set_up(host, "eth0", host.v4, host.v6)
        yield hosts


@contextmanager
def routed(
    part: str, *, rate: str = "20mbit", burst: str = "3000", limit: str = "300000"
) -> Iterator[tuple[Host, Host, Host]]:
    """A client, a router and a server; the router serialises what goes to the server at `rate` (tc-tbf(8))."""
    with _namespace(part, "client") as one, _namespace(part, "router") as two, _namespace(part, "server") as three:
        client = Ends(1).host(one.name, 1)
        router = Ends(1).host(two.name, 254)
        towards = Ends(2).host(two.name, 254)
        server = Ends(2).host(three.name, 1)
        _join((client, "eth0"), (router, "eth0"))
        _join((router, "eth1"), (server, "eth0"))
        for host, device, address in (
            (client, "eth0", client),
            (router, "eth0", router),
            (router, "eth1", towards),
            (server, "eth0", server),
        ):
            _set_up(host, device, address.v4, address.v6)
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for host, gateway in ((client, router), (server, towards)):
            host.ip(f"route add default via {gateway.v4}")
            host.ip(f"-6 route add default via {gateway.v6}")
        # A train of packets would pass a token bucket of 3,000 bytes as one that is too big, and be cut in software.
        router.tc(f"qdisc add dev eth1 root tbf rate {rate} burst {burst} limit {limit}")
        yield client, router, server


_ONE_QUEUE = "numtxqueues 1 numrxqueues 1"  # else as many as the machine has CPUs


@contextmanager
def _namespace(part: str, role: str) -> Iterator[Host]:
    name = f"{part}-{os.getpid()}-{next(_numbers)}-{role}"
    _quietly("ip", "netns", "add", name)
    try:
        host = Host(name)
        host.call(_ask_nobody)
        host.ip("link set lo up")
        yield host
    finally:
        _quietly("ip", "netns", "del", name)


def _ask_nobody() -> None:
    """Of devices made from now on: no waiting for an address to be found unique, no questions to routers."""
    for name in ("accept_dad", "router_solicitations"):
        Path("/proc/sys/net/ipv6/conf/default", name).write_text("0")


def _join(one: tuple[Host, str], other: tuple[Host, str]) -> None:
    left, right = one[0].name, other[0].name
    Host(left).ip(f"link add {one[1]} {_ONE_QUEUE} type veth peer name {other[1]} netns {right} {_ONE_QUEUE}")


def _set_up(host: Host, device: str, v4: str, v6: str, *, before: Sequence[str] = ()) -> None:
    """By one process: to start some takes the tests of a guest more time than all else."""
    addresses = f"address add {v4}/24 dev {device}", f"address add {v6}/64 dev {device} nodad"
    lines = "\n".join([*before, f"link set {device} up", *addresses])
    _quietly("ip", "-n", host.name, "-batch", "-", told=lines)


def _enter(namespace: Path) -> None:
    """This thread goes there, for good."""
    setns: Any = ctypes.CDLL(None, use_errno=True).setns
    handle = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if setns(handle, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(handle)


def _quietly(*command: str, told: str = "") -> str:
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False, timeout=_LONGEST_S)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr or done.stdout}"
    return done.stdout

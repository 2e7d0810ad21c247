# SPDX-License-Identifier: Apache-2.0
"""A namespace whose `eth0` is shaped by real changes, with their books in a folder of the test."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qos.tc.change import making
from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import LOCKS, lock_file
from qos.tc.change.site import Site
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkPolicy
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import Host

__all__ = ["Place"]

CONFIG = """\
listeners: [{{name: main, bind: ["127.0.0.1:0"], accept: [udp]}}]
pools: [{{name: m, model: m, endpoints: [{{oip: "http://127.0.0.1:9"}}]}}]
interfaces: [{{name: eth0, {}}}]
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with `eth0`, and the books about it."""

    host: Host
    folder: Path

    @property
    def site(self) -> Site:
        return self.with_kernel(Kernel)

    def with_kernel(self, opened: Callable[[str | None], Kernel]) -> Site:
        """The same, where the door is another."""
        ledger = Ledger(self.folder / "state" / "qos")
        return Site(ledger=ledger, lock_of=partial(lock_file, folder=LOCKS), open_kernel=opened)

    def policy(self, **interface: Any) -> LinkPolicy:
        return policy_of({"netns": self.host.name} | interface)

    def apply(self, **interface: Any) -> LinkPolicy:
        """A policy that is confirmed at once, and asks for nothing more then."""
        policy = self.policy(**interface)
        making.apply(self.site, policy)
        assert self.stands(policy)
        return policy

    def stands(self, policy: LinkPolicy) -> bool:
        """Whether the kernel has all that it asks for."""
        return not any(each.steps for each in making.survey(self.site, policy))

    def seen(self) -> list[str]:
        """All that tc and ip tell, without what they count, number or age."""
        devices = sorted(re.findall(r"^\d+: ([^:@]+)", self.host.ip("-o link show"), re.MULTILINE))
        # In a hash table's order.
        shown = [*sorted(self.host.tc("qdisc show").splitlines()), *devices]
        for each in devices:
            shown += sorted(self.host.tc(f"class show dev {each}").splitlines())
            shown += [self.host.tc(f"filter show dev {each} {hook}") for hook in ("root", "ingress", "egress")]
        return [re.sub(r"direct_packets_stat \d+|index \d+|\b(id|tag|jited) \w*", "", each) for each in shown]

    def renamed(self, old: str, new: str) -> None:
        for each in ("down", f"name {new}"):
            self.host.ip(f"link set {old} {each}")
        self.host.ip(f"link set {new} up")

    def config(self, interface: str = "egress: 20mbit", name: str = "gateway.yaml") -> Path:
        file = self.folder / name
        file.write_text(CONFIG.format(interface))
        return file

    def inside(self, command: str, verb: str, *, state: str = "state") -> subprocess.Popen[str]:
        """`inferlane qos VERB`, started by `command` in the namespace."""
        program = f"{command} {sys.executable} -m proxy qos {verb} --state-dir {self.folder / state}"
        arguments = self.host.command(program)
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def told(self, command: str, verb: str, *, code: int = 0) -> str:
        """What it wrote."""
        with self.inside(command, verb) as process:
            told, _ = process.communicate(timeout=60)
        assert process.returncode == code, told
        return told

# SPDX-License-Identifier: Apache-2.0
"""Flows known by their addresses before NAT, on a router in namespaces that translates: nftables classifies them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qos.settings import BUILT_IN_CLASSES
from qos.tc.capabilities import Capabilities
from qos.tc.change import making
from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import lock_file
from qos.tc.change.site import ChangeError, Site
from qos.tc.design.compile import CannotKeepError
from qos.tc.errors import KernelError
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.commands import tc_commands
from qos.tc.reconcile.plan import Table, Verb, plan
from qos.tc.reconcile.survey import survey
from qos.tc.state import FOREIGN_TABLE, OUR_TABLE, LinkState, NetworkState
from tests.fakes import namespaces
from tests.fakes.failing_kernel import FailingKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import Host

pytestmark = pytest.mark.needs_root

PORT = 5999
BATCH = 0x51A0030
PACKETS = 20


@dataclass(frozen=True, slots=True)
class Nat:
    """A client, a router that masquerades what it sends to the server, the server; and the router's address there."""

    client: Host
    router: Host
    server: Host
    outside: str

    def nft(self, arguments: str) -> str:
        return self.router.run(f"nft {arguments}")

    def policy(self, *flows: dict[str, Any], device: str = "eth1", **more: Any) -> LinkPolicy:
        early = tuple({"class": "batch", "before_nat": True} | each for each in flows)
        return policy_of({"name": device, "netns": self.router.name} | more, flows=early)

    def from_client(self, *, port: int = PORT) -> dict[str, Any]:
        return {"src": f"{self.client.v4}/32", "proto": "udp", "dport": (port,)}

    def in_batch(self, device: str = "eth1", handle: int = BATCH) -> int:
        with Kernel(self.router.name) as kernel:
            return kernel.counters(device)[handle].packets

    def send(self, *, port: int = PORT, to: str = "") -> None:
        """Datagrams from the client to the server, and as many answers."""
        with self.server.socket() as there, self.client.socket() as here:
            there.bind((self.server.v4, PORT))
            there.settimeout(10)
            here.settimeout(10)
            for _ in range(PACKETS):
                here.sendto(b"x", (to or self.server.v4, port))
                _, came_from = there.recvfrom(100)
                assert came_from[0] == self.outside, "the router does not translate"
                there.sendto(b"y", came_from)
                here.recvfrom(100)


@pytest.fixture
def nat() -> Iterator[Nat]:
    with namespaces.routed("tcnft") as (client, router, server):
        router.tc("qdisc del dev eth1 root")
        (outside,) = (line.split()[3] for line in router.ip("-o -4 address show dev eth1").splitlines())
        made = Nat(client, router, server, outside.partition("/")[0])
        for command in (
            "add table ip nat",
            "'add chain ip nat post { type nat hook postrouting priority srcnat; }'",
            "add rule ip nat post oifname eth1 masquerade",
        ):
            made.nft(command)
        yield made


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    with namespaces.alone("tcnft") as host:
        return probe(host.name)


@pytest.fixture
def site(tmp_path: Path, capabilities: Capabilities) -> Site:
    return Site(
        ledger=Ledger(tmp_path / "qos"), lock_of=partial(lock_file, folder=tmp_path), probe=lambda _: capabilities
    )


def observed(nat: Nat) -> str:
    with Kernel(nat.router.name) as kernel:
        return kernel.observe([]).table


def test_a_flow_lands_in_its_class_by_the_source_before_it_is_masqueraded(nat: Nat, site: Site) -> None:
    making.apply(site, nat.policy(nat.from_client()))
    assert all(each.steps == () for each in making.survey(site, nat.policy(nat.from_client())))
    nat.send()
    assert nat.in_batch() == PACKETS
    nat.nft(f"delete table {OUR_TABLE}")
    nat.send()
    assert nat.in_batch() == PACKETS, "without the table nothing else puts it there"
    making.apply(site, nat.policy(nat.from_client()))
    nat.send()
    assert nat.in_batch() == 2 * PACKETS


def test_ports_are_compared_as_numbers_and_other_flows_are_left_alone(nat: Nat, site: Site) -> None:
    ports = nat.from_client() | {"dport": (PORT - 9, (PORT - 1, PORT + 1), (PORT, PORT + 3))}
    making.apply(site, nat.policy(ports))
    nat.send()
    assert nat.in_batch() == PACKETS
    making.apply(site, nat.policy(nat.from_client(port=PORT + 1), {"src": "198.51.100.0/24"}))
    nat.send()
    assert nat.in_batch() == PACKETS


def test_the_destination_is_the_one_that_a_packet_came_with(nat: Nat, site: Site) -> None:
    nat.nft("'add chain ip nat pre { type nat hook prerouting priority dstnat; }'")
    nat.nft(f"add rule ip nat pre iifname eth0 udp dport 7000 dnat to {nat.server.v4}:{PORT}")
    making.apply(site, nat.policy({"dst": f"{nat.router.v4}/32", "proto": "udp", "dport": (7000,)}))
    nat.send(port=7000, to=nat.router.v4)
    assert nat.in_batch() == PACKETS
    nat.send()
    assert nat.in_batch() == PACKETS, "nothing was translated here that the flow names"


def test_answers_are_packets_of_their_own(nat: Nat, site: Site) -> None:
    """What goes to the client came to the router's own address, and never from the client."""
    answers = {"dst": f"{nat.outside}/32"}
    making.apply(site, nat.policy(nat.from_client(), device="eth0"))
    nat.send()
    assert nat.in_batch("eth0") == 0
    making.apply(site, nat.policy(answers, device="eth0"))
    nat.send()
    assert nat.in_batch("eth0") == PACKETS


def test_a_table_follows_the_roots_number(nat: Nat, site: Site) -> None:
    early = nat.policy(nat.from_client())
    making.apply(site, early)
    before = observed(nat)
    # Another default class is another HTB root, which has the other major.
    classes = [each.model_copy(update={"default": each.name == "background"}) for each in BUILT_IN_CLASSES]
    moved = policy_of(
        {"name": "eth1", "netns": nat.router.name},
        flows=({"class": "batch", "before_nat": True} | nat.from_client(),),
        classes=classes,
    )
    making.apply(site, moved)
    assert observed(nat) not in ("", before)
    (handle,) = {
        each.handle
        for target in making.survey(site, moved)
        for link in target.desired.links
        for each in link.classes
        if target.labels.get((link.name, each.handle)) == "batch"
    }
    assert handle >> 16 == 0x51B
    nat.send()
    assert nat.in_batch(handle=handle) == PACKETS


def test_what_somebody_did_to_the_table_is_drift(nat: Nat, site: Site) -> None:
    policy = nat.policy(nat.from_client(), {"src": "198.51.100.0/24"})
    making.apply(site, policy)
    chain = observed(nat)
    for harm in (
        f"flush table {OUR_TABLE}",
        f"flush chain {OUR_TABLE} {chain}",
        f"add rule {OUR_TABLE} {chain} accept",
        f"insert rule {OUR_TABLE} {chain} accept",
        f"add chain {OUR_TABLE} theirs",
        f"'add table {OUR_TABLE} {{ flags dormant; }}'",
        "flush ruleset",
    ):
        nat.nft(harm)
        (target,) = making.survey(site, policy)
        assert [type(each.subject) for each in target.steps] == [Table], harm
        making.apply(site, policy)
        assert observed(nat) == chain
        assert all(each.steps == () for each in making.survey(site, policy))


def test_a_failure_anywhere_puts_the_old_table_back(nat: Nat, site: Site, capabilities: Capabilities) -> None:
    making.apply(site, nat.policy(nat.from_client()))
    with FailingKernel(nat.router.name) as kernel:
        new = survey(nat.policy(nat.from_client(port=6000), egress="10mbit"), nat.router.name, kernel, capabilities)
        old = survey(nat.policy(nat.from_client()), nat.router.name, kernel, capabilities)
        assert Verb.REPLACE in {each.verb for each in new.steps if isinstance(each.subject, Table)}
        programs = old.compiled.programs | new.compiled.programs
        steps = len([each for each in new.steps if each.verb is not Verb.DRAIN])
        for number in range(1, steps + 1):
            kernel.changes, kernel.fails = 0, {number}
            outcome = apply(kernel, new.compiled.desired, programs=programs)
            assert outcome.failure is not None, number
            assert outcome.rolled_back
            assert plan(kernel.observe(["eth1"]), old.compiled.desired) == ()
        kernel.fails = ()
        assert apply(kernel, new.compiled.desired, programs=programs).failure is None


def test_a_rollback_brings_the_old_table_back(nat: Nat, site: Site) -> None:
    making.apply(site, nat.policy(nat.from_client()))
    old = observed(nat)
    making.apply(site, nat.policy(nat.from_client(port=6000)))
    assert observed(nat) != old
    making.roll_back(site)
    assert observed(nat) == old
    making.apply(site, nat.policy())
    assert observed(nat) == ""


def test_what_was_never_confirmed_is_put_back_with_its_table(nat: Nat, tmp_path: Path, site: Site) -> None:
    making.apply(site, nat.policy(nat.from_client()))
    old = observed(nat)
    armed: list[Any] = []
    later = Site(ledger=site.ledger, lock_of=site.lock_of, probe=site.probe, arm=armed.append, boot_clock=lambda: 0.0)
    changed = making.apply(later, nat.policy(nat.from_client(port=6000)), confirm_s=5)
    assert observed(nat) != old
    assert changed.pending is not None
    past = Site(ledger=site.ledger, lock_of=site.lock_of, probe=site.probe, boot_clock=lambda: 10.0)
    assert making.put_back_unconfirmed(past, changed.pending)
    assert observed(nat) == old
    assert armed


def test_release_takes_the_table_along_and_leaves_others_alone(nat: Nat, site: Site) -> None:
    nat.nft("add table inet theirs")
    before = nat.nft("list ruleset")
    making.apply(site, nat.policy(nat.from_client()))
    assert OUR_TABLE in nat.nft("list tables")
    assert making.release(site)
    assert nat.nft("list ruleset") == before


def test_a_table_of_our_name_that_is_not_ours_stays(nat: Nat, site: Site) -> None:
    nat.nft(f"add table {OUR_TABLE}")
    nat.nft(f"add chain {OUR_TABLE} input")
    before = nat.nft("list ruleset")
    assert observed(nat) == FOREIGN_TABLE
    (target,) = making.apply(site, nat.policy(nat.from_client())).targets
    assert any("is not ours; rename it" in each.text for each in target.notes)
    with Kernel(nat.router.name) as kernel, pytest.raises(KernelError, match="it is not ours, so it stays"):
        kernel.set_table(f"delete table {OUR_TABLE}\n")
    assert making.release(site)
    assert nat.nft("list ruleset") == before


def test_without_the_program_the_rest_is_kept_and_the_remedy_told(
    nat: Nat, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    making.apply(site, nat.policy(nat.from_client()))
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = Site(ledger=site.ledger, lock_of=site.lock_of, probe=probe)
    # What is in force was made, and is still asked for without the program.
    assert all(each.steps == () for each in making.survey(site, nat.policy(nat.from_client())))
    (target,) = making.survey(missing, nat.policy(nat.from_client()))
    assert [each.text for each in target.notes if "apt install nftables" in each.text]
    # Its own remedy, where it is to be removed.
    with pytest.raises(ChangeError, match="apt install nftables"):
        making.release(missing)
    with pytest.raises(CannotKeepError, match=r"apt install nftables.*degrade: allow accepts that"):
        making.survey(missing, nat.policy(nat.from_client(), degrade="refuse"))


def test_what_the_kernel_refuses_is_told_in_nfts_words_before_the_first_step(
    nat: Nat, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "nft"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '/dev/stdin:1:1-2: Error: Could not process rule: No such file' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    (target,) = making.survey(site, nat.policy(nat.from_client()))
    assert target.desired.table == ""
    assert [each.severity for each in target.notes if "Could not process rule: No such file" in each.text] == [
        "degraded"
    ]


def test_the_commands_that_a_plan_prints_do_the_same(nat: Nat, capabilities: Capabilities) -> None:
    policy = nat.policy(nat.from_client())
    with Kernel(nat.router.name) as kernel:
        found = survey(policy, nat.router.name, kernel, capabilities)
        desired, programs = found.compiled.desired, found.compiled.programs
        steps = [each for each in found.steps if isinstance(each.subject, Table)]
        (command,) = tc_commands(steps[0], nat.router.name, programs)
        subprocess.run(["bash", "-c", command], check=True, timeout=30)
        assert kernel.observe([]).table == desired.table
        nothing = NetworkState(netns=nat.router.name, links=(LinkState(name="eth1"),))
        gone = [each for each in plan(desired, nothing) if isinstance(each.subject, Table)]
        (command,) = tc_commands(gone[0], nat.router.name)
        subprocess.run(shlex.split(command), check=True, timeout=30)
        assert kernel.observe([]).table == ""

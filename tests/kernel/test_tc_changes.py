# SPDX-License-Identifier: Apache-2.0
"""Changes with what this kernel has beyond others: in place, undone, adopted, lacking, and as a person types them."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from proxy.cli import main
from qos.settings import BUILT_IN_CLASSES, LinkSettings
from qos.tc.capabilities import CONFIG_NAMES, Capabilities
from qos.tc.change import making
from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import LOCKS, lock_file
from qos.tc.change.site import Site
from qos.tc.design.compile import CannotKeepError
from qos.tc.kernel.netlink import Kernel
from qos.tc.kernel.probe import probe
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.survey import survey
from qos.tc.state import LinkState, NetworkState
from tests.fakes.failing_kernel import FailingKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import Host, alone, routed
from tests.fakes.programs import until
from tests.fakes.shaped_link import ShapedLink, shaped_link

PORT = 5999
ECT0 = 2  # fq_codel marks such a packet where it would drop another (RFC 3168)
CONFIG = """\
listeners: [{{name: main, bind: ["127.0.0.1:0"], accept: [udp]}}]
pools: [{{name: m, model: m, endpoints: [{{oip: "http://127.0.0.1:9"}}]}}]
interfaces: [{{name: eth0, netns: {}, egress: 20mbit, ingress: 50mbit}}]
"""
BY_DEFAULT = 0x51A0024


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    with alone("changes") as host:
        return probe(host.name)


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("changes") as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, capabilities: Capabilities) -> Site:
    return Site(
        ledger=Ledger(tmp_path / "state" / "qos"),
        lock_of=partial(lock_file, folder=LOCKS),
        probe=lambda _: capabilities,
    )


def seen(host: Host) -> list[str]:
    return [host.tc("qdisc show"), host.tc("filter show dev eth0"), host.ip("-d -br link show")]


def with_queues(seconds: float) -> list[object]:
    """The built-in classes with queues so long."""
    return [each.model_copy(update={"link": LinkSettings(queue=seconds)}) for each in BUILT_IN_CLASSES]


def test_changes_in_place_lose_none_of_what_stands_in_fq_codel(capabilities):
    with shaped_link("changes") as link:
        link.shape(policy_of({"egress": "4mbit"}, classes=with_queues(0.1)), capabilities)
        flow = {"class": "background", "proto": "udp", "dport": (7,)}
        packets = 40
        with link.other.socket() as receiver, link.host.socket() as sender:
            receiver.bind((link.other.v4, PORT))
            receiver.settimeout(60)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 18 << 2 | ECT0)
            for number in range(packets):
                sender.sendto(number.to_bytes(4, "big") + bytes(1196), (link.other.v4, PORT))
            standing, _ = link.kernel.backlog("eth0", BY_DEFAULT)
            link.shape(policy_of({"egress": "6mbit"}, flows=(flow,), classes=with_queues(0.5)), capabilities)
            got = {int.from_bytes(receiver.recv(2000)[:4], "big") for _ in range(packets)}
        assert standing > 5
        assert got == set(range(packets))
        assert sum(each.drops for each in link.kernel.counters("eth0").values()) == 0


def test_a_failure_in_the_middle_is_undone(host, capabilities):
    before, programs = seen(host), {}
    first = policy_of({"netns": host.name, "ingress": "50mbit"})
    second = policy_of({"netns": host.name, "ingress": "30mbit", "engine": "cake"})
    with FailingKernel(host.name) as kernel:
        for policy, every in ((first, 8), (second, 3)):
            present, number, failed = seen(host), 0, True
            while failed:
                number += every
                found = survey(policy, host.name, kernel, capabilities)
                programs |= found.compiled.programs
                kernel.fails = [kernel.changes + number]
                outcome = apply(kernel, found.compiled.desired, programs=programs)
                failed = outcome.failure is not None
                if failed:
                    assert (outcome.rolled_back, outcome.residual, outcome.unshaped) == (True, (), False)
                    assert seen(host) == present
            assert number > every
            assert survey(policy, host.name, kernel, capabilities).steps == ()
        kernel.fails = []
        nothing = NetworkState(netns=host.name, links=(LinkState(name="eth0"),))
        assert apply(kernel, nothing, programs={}).failure is None
    assert seen(host) == before


def test_netem_of_somebody_else_is_adopted_and_put_back(host, site):
    host.tc("qdisc add dev eth0 root handle 7: netem delay 3ms 1ms loss 1% limit 77")
    host.tc("qdisc add dev eth0 parent 7: handle 8: fq_codel limit 99 target 3ms")
    before = seen(host)
    policy = policy_of({"netns": host.name})
    with pytest.raises(CannotKeepError, match="its root qdisc netem 7: is not ours; say adopt: true"):
        making.apply(site, policy)
    assert seen(host) == before
    making.apply(site, policy_of({"netns": host.name, "adopt": True}))
    assert "netem" not in host.tc("qdisc show dev eth0")
    making.release(site)
    assert seen(host) == before


def test_a_kind_that_is_not_there_is_told_with_what_gives_it(host):
    loader = Path("/proc/sys/kernel/modprobe")
    usual = loader.read_text()

    def unloaded() -> bool | None:
        # The queues of earlier tests go with their namespaces, a while after these.
        subprocess.run(["rmmod", "sch_cake"], capture_output=True, check=False, timeout=60)
        return None if Path("/sys/module/sch_cake").exists() else True

    until(unloaded, "sch_cake to be unused")
    loader.write_text("/bin/false")  # as if it had been built without
    try:
        found = probe(host.name)
    finally:
        loader.write_text(usual)
    assert [kind for kind in CONFIG_NAMES if found.lacks(kind) is not None] == ["cake"]
    with Kernel(host.name) as kernel:
        notes = survey(policy_of({"netns": host.name, "engine": "cake"}), host.name, kernel, found).compiled.notes
        with pytest.raises(CannotKeepError, match=r"using htb.*degrade: allow accepts that"):
            refusing = policy_of({"netns": host.name, "engine": "cake", "degrade": "refuse"})
            survey(refusing, host.name, kernel, found)
    (said,) = [each.text for each in notes if each.severity == "degraded"]
    assert said == (
        f"cake: not in this kernel ({found.kernel}: Specified qdisc kind is unknown); CONFIG_NET_SCH_CAKE=m gives it; "
        "using htb: shares and ceilings hold, without what the other engine does of its own"
    )


def test_the_commands_from_probe_to_release(host, tmp_path, capsys):
    conf, before = tmp_path / "gateway.yaml", seen(host)
    conf.write_text(CONFIG.format(host.name))

    def qos(*arguments: str, code: int = 0, books: bool = True) -> str:
        state = ["--state-dir", str(tmp_path / "state")] if books else []
        answered = main(["qos", *arguments, *state])
        out, err = capsys.readouterr()
        assert answered == code, out + err
        return out + err

    (kernel,) = json.loads(qos("probe", str(conf), "--json", books=False))
    assert set(kernel["kinds"].values()) == {""} and kernel["per_packet_priority"] is False
    planned = qos("plan", str(conf), code=3)
    assert f"tc -n {host.name} qdisc add dev eth0 parent 16:1 handle 4016: fq_codel" in planned
    assert seen(host) == before
    assert "it is put back in" in qos("apply", str(conf), "--confirm", "10m")
    assert "is confirmed" in qos("confirm")
    assert "all is as promised" in qos("status", "--over", "10ms")
    assert "nothing to do" in qos("plan", str(conf))
    assert "all that was made is removed" in qos("release")
    assert seen(host) == before


def test_fq_codel_alone_leaves_the_queue_to_the_hop_and_ours_does_not(capabilities):
    """Behind the sender a router passes 2 Mbit/s on, with room for 20 packets: who drops what, not when."""
    flood, probes = 300, 20
    with routed("changes", rate="2mbit", limit="25000") as (client, router, server), Kernel(client.name) as kernel:
        link = ShapedLink(client, router, kernel)
        for ours in (False, True):
            if ours:
                client.tc("qdisc del dev eth0 root")
                link.shape(policy_of({"egress": "1900kbit", "overhead": "ethernet"}), capabilities)
            else:
                client.tc("qdisc add dev eth0 root handle 7: fq_codel")
            dropped = hop_drops(router)
            with server.socket() as receiver, client.socket() as bulk, client.socket() as realtime:
                receiver.bind((server.v4, PORT))
                receiver.settimeout(60)
                realtime.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
                for number in range(flood):
                    bulk.sendto(bytes(1200), (server.v4, PORT + 1))
                    if number % (flood // probes) == 0:
                        realtime.sendto(bytes([number // (flood // probes)]) + bytes(99), (server.v4, PORT))
                if ours:
                    assert {receiver.recv(200)[0] for _ in range(probes)} == set(range(probes))
            if ours:
                assert hop_drops(router) == dropped
                assert sum(each.drops for each in kernel.counters("eth0").values()) > 100
            else:
                assert sum(each.drops for each in kernel.counters("eth0").values()) == 0
                assert hop_drops(router) - dropped > 100


def hop_drops(router: Host) -> int:
    (told,) = json.loads(router.tc("-s -j qdisc show dev eth1 root"))
    return int(told["drops"])

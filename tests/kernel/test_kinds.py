# SPDX-License-Identifier: Apache-2.0
"""The guest's kernel has every kind that our traffic control may ask for, so a test here never skips for want of one.

To add a test of your own, write a `test_*.py` beside this file: an ordinary pytest module that runs as root in the
guest, with this checkout, its environment and the machine's commands at hand; `tests/fakes/namespaces.py` makes hosts
and links.

* `tests/kernel/boot .venv/bin/pytest tests/kernel/test_kinds.py -k cake` runs some; `make test-kernel`, all.
* A skip is a failure of the whole run, and so is a command that the machine lacks: .ci/run installs those.
* The guest is about twelve times slower than the machine: no timed assertions.
"""

from __future__ import annotations

import pytest

from tests.fakes import namespaces

QDISCS = {
    "cake": "bandwidth 10mbit diffserv4",
    "ets": "bands 4 strict 2 quanta 3000 1500",
    "fq": "",
    "fq_codel": "ecn",
    "htb": "default 1",
    "netem": "delay 1ms loss 1%",
    "prio": "bands 4",
}
MATCHES = {
    "flower": "flower ip_proto udp dst_port 4433 ip_tos 0xb8/0xfc",
    "fw": "handle 1 fw",
    "matchall": "matchall",
    "u32": "u32 match ip dsfield 0xb8 0xfc",
}
ACTIONS = {
    "mirred": "egress redirect dev ifb0",
    "police": "rate 1mbit burst 10k drop",
    "skbedit": "priority 1:10",
}


@pytest.fixture
def host():
    """A namespace with an interface `eth0`, gone after the test."""
    with namespaces.alone("kinds") as host:
        yield host


@pytest.mark.parametrize("kind", QDISCS)
def test_packets_are_queued_by(kind, host):
    host.tc(f"qdisc add dev eth0 root handle 1: {kind} {QDISCS[kind]}")
    assert f"qdisc {kind} 1: root" in host.tc("qdisc show dev eth0")


@pytest.mark.parametrize("kind", MATCHES)
def test_packets_are_matched_by(kind, host):
    host.tc("qdisc add dev eth0 root handle 1: prio")
    host.tc(f"filter add dev eth0 parent 1: protocol ip prio 1 {MATCHES[kind]} classid 1:1")
    assert f" {kind} " in host.tc("filter show dev eth0 parent 1:")


@pytest.mark.parametrize("kind", ACTIONS)
def test_to_packets_is_done(kind, host):
    host.ip("link add ifb0 type ifb")
    host.tc("qdisc add dev eth0 clsact")
    host.tc(f"filter add dev eth0 ingress protocol ip prio 1 flower action {kind} {ACTIONS[kind]}")
    shown = host.tc("filter show dev eth0 ingress").split()
    assert shown[shown.index("action") :][:4] == ["action", "order", "1:", kind]


def test_packets_are_marked_by_nft(host):
    host.run("nft add table inet marking")
    host.run("nft 'add chain inet marking out { type filter hook postrouting priority mangle; }'")
    host.run("nft add rule inet marking out udp dport 4433 ip dscp set ef meta priority set 1:10")
    assert "ip dscp set ef" in host.run("nft list table inet marking")

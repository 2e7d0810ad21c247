# SPDX-License-Identifier: Apache-2.0
"""What goes wrong around traffic control, on this machine's kernel: rights, devices, strangers, drift."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qos.tc.change import making
from qos.tc.keep.upkeep import Upkeep
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import alone, joined
from tests.fakes.tc_place import Place

pytestmark = pytest.mark.needs_root

FIRST: dict[str, Any] = {"ingress": "50mbit"}
SECOND: dict[str, Any] = {"egress": "30mbit"}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with alone("faults") as host:
        yield Place(host, tmp_path)


# Rights, and who else has a say.


def test_without_cap_bpf_filters_stand_in_and_that_is_said(place: Place) -> None:
    conf = place.config()
    # CAP_SYS_ADMIN includes CAP_BPF (capabilities(7)).
    without = "setpriv --bounding-set -bpf,-sys_admin --inh-caps -bpf,-sys_admin"
    told = place.told(without, f"apply {conf}")
    assert re.search(r"bpf: Operation not permitted: CAP_BPF is needed, too \(.*\); (flower: .*; )?using \w+:", told)
    assert "CONFIG_NET_CLS_BPF" not in told
    assert re.search(r"(u32|flower) .*51a:16", place.host.tc("filter show dev eth0"))
    assert "nothing to do" in place.told(without, f"plan {conf}")
    place.told("", f"apply {conf}")
    assert "bpf" in place.host.tc("filter show dev eth0 egress")
    assert "51a:16" not in place.host.tc("filter show dev eth0")


@pytest.mark.parametrize(
    ("noted", "content", "manager"),
    [
        ("NetworkManager/devices", "[device]\nmanaged=true\n", "NetworkManager"),
        ("systemd/netif/links", "ADMIN_STATE=configured\n", "systemd-networkd"),
    ],
)
def test_who_manages_the_link_is_told(place: Place, noted: str, content: str, manager: str) -> None:
    conf = place.config()
    index = place.host.ip("-o link show eth0").partition(":")[0]
    (place.folder / index).write_text(content)
    script = place.folder / "with_a_manager"
    script.write_text(
        f"mount -t tmpfs memory /run && mkdir -p /run/{noted} && cp {place.folder / index} /run/{noted}/ && "
        f"exec {sys.executable} -m proxy qos plan {conf} --state-dir {place.folder / 'state'}\n"
    )
    with subprocess.Popen(
        place.host.command(f"unshare --mount sh {script}"), stdout=subprocess.PIPE, text=True
    ) as process:
        told, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert f"warning: interfaces[0] eth0: {manager} manages it, and may remove what is made here" in told
    assert "manages it" not in place.told("", f"plan {conf}", code=3)


# Devices that move, go and come.


def test_an_interface_that_was_made_anew_is_shaped_anew_and_left_clean(place: Place) -> None:
    before = place.seen()
    policy = place.apply(**FIRST)
    place.host.ip("link del eth0")
    place.host.ip("link add eth0 numtxqueues 1 numrxqueues 1 type veth peer name peer0 numtxqueues 1 numrxqueues 1")
    place.host.ip("link set eth0 up")
    place.host.ip("link set peer0 up")
    assert not place.stands(policy)
    making.apply(place.site, policy)
    assert place.stands(policy)
    making.release(place.site)
    assert place.seen() == before


@pytest.mark.parametrize("ways", [{}, FIRST], ids=["out", "both ways"])
def test_a_device_that_was_renamed_or_removed_is_released_all_the_same(place: Place, ways: dict[str, Any]) -> None:
    place.host.tc("qdisc add dev eth0 root handle 7: pfifo limit 77")
    before = place.seen()
    place.apply(adopt=True, **ways)
    place.renamed("eth0", "lan0")
    making.release(place.site)
    place.renamed("lan0", "eth0")
    assert place.seen() == before
    place.apply(adopt=True, **ways)
    place.host.ip("link del eth0")
    making.release(place.site)
    assert "ifb-eth0" not in place.host.ip("link show")
    assert place.site.books().confirmed is None


def test_a_renamed_device_still_receives_when_its_ifb_goes(tmp_path: Path) -> None:
    with joined("faults") as (host, other):
        place = Place(host, tmp_path)
        place.host.ip("link add eth1 type veth peer name peer1")
        both = policy_of({"netns": host.name} | FIRST, {"netns": host.name, "name": "eth1"} | FIRST)
        making.apply(place.site, both)
        place.renamed("eth0", "lan0")
        place.host.ip(f"address replace {host.v4}/24 dev lan0")
        upkeep = Upkeep(place.site, host.name)
        assert upkeep.look(both).missing == ("eth0",)
        confirmed = place.site.books().confirmed
        assert confirmed is not None
        assert upkeep.make(confirmed) == ""
        assert upkeep.look(both).changed == {}
        with host.socket() as receiver, other.socket() as sender:
            receiver.bind((host.v4, 9000))
            receiver.settimeout(20)
            sender.sendto(b"not lost", (host.v4, 9000))
            assert receiver.recv(100) == b"not lost"


def test_an_interface_that_goes_down_and_up_keeps_what_was_made(place: Place) -> None:
    policy = place.apply(**FIRST)
    for state in ("down", "up"):
        place.host.ip(f"link set eth0 {state}")
        assert place.stands(policy)


# Strangers.


def test_what_others_add_at_our_hooks_stays_when_we_go(place: Place) -> None:
    place.apply(**FIRST)
    for hook in ("ingress", "egress"):
        place.host.tc(f"filter add dev eth0 {hook} pref 7 protocol ip u32 match u32 0 0 flowid 1:7")
    making.release(place.site)
    assert "clsact" in place.host.tc("qdisc show dev eth0")
    for hook in ("ingress", "egress"):
        left = place.host.tc(f"filter show dev eth0 {hook}")
        assert "flowid 1:7" in left and "pref 20896" not in left
    assert "51a:" not in place.host.tc("qdisc show")


def test_a_strangers_root_in_the_place_of_ours_is_not_touched(place: Place) -> None:
    policy = place.apply()
    place.host.tc("qdisc replace dev eth0 root handle 7: pfifo limit 77")
    with pytest.raises(Exception, match=r"its root qdisc pfifo 7: is not ours; say adopt: true"):
        making.apply(place.site, policy)
    assert "pfifo 7: root" in place.host.tc("qdisc show dev eth0")
    making.release(place.site)
    assert "pfifo 7: root" in place.host.tc("qdisc show dev eth0")
    assert "clsact" not in place.host.tc("qdisc show dev eth0")


def test_a_strangers_tree_that_was_adopted_comes_back_with_all_below_it(place: Place) -> None:
    place.host.tc("qdisc add dev eth0 root handle 1: htb default 20")
    place.host.tc("class add dev eth0 parent 1: classid 1:1 htb rate 9mbit")
    place.host.tc("class add dev eth0 parent 1:1 classid 1:20 htb rate 3mbit ceil 9mbit prio 1")
    place.host.tc("qdisc add dev eth0 parent 1:20 handle 20: pfifo limit 77")
    place.host.tc("filter add dev eth0 parent 1: pref 3 protocol ip u32 match ip dport 22 0xffff flowid 1:20")
    place.host.tc("qdisc add dev eth0 clsact")
    place.host.tc("filter add dev eth0 egress pref 9 protocol ip u32 match u32 0 0 flowid 1:7")
    before = place.seen()
    place.apply(adopt=True, **FIRST)
    place.apply(adopt=True, **SECOND)
    assert "1:20" not in place.host.tc("class show dev eth0")
    making.release(place.site)
    assert place.seen() == before


DRIFT = {
    "a class slower": "tc class change dev eth0 parent 51a:1 classid 51a:16 htb rate 1mbit ceil 1mbit",
    "a class gone": "tc class del dev eth0 classid 51a:42",
    "a queue shorter": "tc qdisc change dev eth0 parent 51a:30 handle 30: tbf rate 1gbit burst 5k limit 7k",
    "the root gone": "tc qdisc del dev eth0 root",
    "the classifier gone": "tc filter del dev eth0 egress",
    "the redirection gone": "tc filter del dev eth0 ingress",
    "both hooks gone": "tc qdisc del dev eth0 clsact",
    "the IFB gone": "ip link del ifb-eth0",
    "the IFB down": "ip link set ifb-eth0 down",
    "the IFB's root gone": "tc qdisc del dev ifb-eth0 root",
    "a filter in our place": "tc filter add dev eth0 egress pref 20897 protocol ip u32 match u32 0 0 flowid 51a:30",
}


@pytest.mark.parametrize("drift", DRIFT)
def test_what_others_change_is_seen_and_repaired(place: Place, drift: str) -> None:
    policy = place.apply(**FIRST)
    made = place.seen()
    place.host.run(DRIFT[drift])
    assert not place.stands(policy)
    making.apply(place.site, policy)
    assert place.stands(policy)
    assert place.seen() == made

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
import struct
import subprocess

import pytest

from qos.tc.capabilities import LinkFacts
from qos.tc.kernel.attributes import nested, nested_attributes, read_text, text, u32
from qos.tc.kernel.links import (
    alias_of_ifb,
    creation_message,
    gso_message,
    left_behind,
    link_index,
    link_speed,
    managed_by,
    marking_message,
    parse_link,
    removal_message,
    scratch_name,
    shaped_by_ifb,
    transmit_queues,
    up_message,
)
from tests.fakes.kernels import link_facts

HEAD = struct.Struct("=BBHiII")


def test_a_device_is_read_from_what_the_kernel_tells():
    told = HEAD.pack(0, 0, 1, 3, 0x1043, 0) + text(3, "ifb-eth0") + u32(4, 1500) + u32(31, 4) + u32(41, 65536)
    told += text(20, "inferlane ingress of eth0") + nested(18, text(1, "ifb"))
    facts = parse_link(told)
    assert facts == LinkFacts(
        name="ifb-eth0",
        index=3,
        up=True,
        mtu=1500,
        tx_queues=4,
        gso_max_size=65536,
        alias="inferlane ingress of eth0",
        kind="ifb",
    )
    assert shaped_by_ifb(facts) == "eth0"


def test_hardware_has_no_kind_and_may_be_down():
    facts = parse_link(HEAD.pack(0, 0, 1, 2, 0x1002, 0) + text(3, "eth0"))
    assert (facts.kind, facts.up, facts.tx_queues) == ("", False, 1)


@pytest.mark.parametrize(("kind", "alias"), [("veth", alias_of_ifb("eth0")), ("ifb", "mine"), ("ifb", "")])
def test_other_devices_are_no_ifb_of_ours(kind, alias):
    facts = LinkFacts(name="x", index=1, up=True, mtu=1500, tx_queues=1, gso_max_size=65536, kind=kind, alias=alias)
    assert shaped_by_ifb(facts) is None


def test_an_ifb_is_made_down_and_then_marked_and_set_up():
    made, marked = creation_message("ifb-eth0", "ifb"), marking_message("ifb-eth0", "eth0")
    assert HEAD.unpack_from(made)[4:] == (0, 0)
    assert read_text(nested_attributes(nested_attributes(made[16:])[18])[1]) == "ifb"
    assert HEAD.unpack_from(marked)[4:] == (1, 1)
    assert read_text(nested_attributes(marked[16:])[20]) == "inferlane ingress of eth0"
    assert read_text(nested_attributes(removal_message("ifb-eth0")[16:])[3]) == "ifb-eth0"


def test_a_device_is_set_up_by_index():
    assert HEAD.unpack(up_message(9))[3:] == (9, 1, 1)


def test_the_size_of_trains_is_set_by_index():
    message = gso_message(9, 3000)
    assert HEAD.unpack_from(message)[3] == 9
    assert message[16:] == u32(41, 3000)


def test_the_index_of_a_device_is_asked_of_the_system():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        assert link_index(control, "lo") == socket.if_nametoindex("lo")
        with pytest.raises(OSError, match="No such device"):
            link_index(control, "no-such-device")


def test_loopback_negotiates_no_speed():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        assert link_speed(control, "lo") is None
        assert transmit_queues(control, "lo") in (None, 1)


@pytest.mark.parametrize(
    ("file", "noted", "manager"),
    [
        ("NetworkManager/devices/7", "[device]\nmanaged=true\n", "NetworkManager"),
        ("NetworkManager/devices/7", "[device]\nmanaged=false\n", ""),
        ("systemd/netif/links/7", "ADMIN_STATE=configured\nOPER_STATE=routable\n", "systemd-networkd"),
        ("systemd/netif/links/7", "ADMIN_STATE=unmanaged\nOPER_STATE=routable\n", ""),
        ("systemd/netif/links/8", "ADMIN_STATE=configured\n", ""),
    ],
)
def test_a_manager_is_known_by_what_it_notes(tmp_path, file, noted, manager):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(noted)
    assert managed_by(7, tmp_path) == manager


def test_only_what_a_dead_process_tried_things_on_is_left_behind():
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    name = f"ilp{ended.pid:x}-00ff"
    assert left_behind(link_facts(name, kind="ifb", up=False))
    assert not left_behind(link_facts(name, kind="ifb"))
    assert not left_behind(link_facts(name, kind="veth", up=False))
    assert not left_behind(link_facts(f"{name}0", kind="ifb", up=False))
    assert not left_behind(link_facts(scratch_name(), kind="ifb", up=False))
    assert len(f"ilp{2**22:x}-00ff") <= 15

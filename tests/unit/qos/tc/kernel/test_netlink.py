# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import socket

import pytest

from qos.tc.kernel.netlink import Kernel, KernelError
from qos.tc.state import INGRESS_HOOK, ROOT, Bfifo, Bpf, Filter, Htb, HtbClass, Qdisc, Redirect, TcClass

# What changes something is in tests/integration/test_tc_door.py: here is what anybody may ask.


def test_a_misspelt_namespace_is_an_error():
    with pytest.raises(KernelError, match="'no-such-namespace': there is none of this name"):
        Kernel("no-such-namespace")


def test_devices_are_listed_by_name():
    with Kernel(None) as kernel:
        assert kernel.port > 0
        loopback = kernel.facts()["lo"]
    assert loopback.index == socket.if_nametoindex("lo")
    assert loopback.mtu > 0
    assert loopback.managed_by == ""


def test_a_device_that_is_not_there_is_in_no_state():
    with Kernel(None) as kernel:
        assert kernel.observe({"no-such-device"}).link("no-such-device") is None
        assert kernel.observe({"lo"}).netns is None


SUBJECTS = [
    (Qdisc(0x51A0000, ROOT, Htb(1)), "add qdisc htb 51a:"),
    (Qdisc(0x300000, 0x51A0030, Bfifo(1)), "add qdisc bfifo 30:"),
    (
        TcClass(0x51A0001, 0x51A0000, HtbClass(rate=1, ceil=1, burst=1, cburst=1, prio=0, quantum=1514)),
        "add class htb 51a:1",
    ),
    (Filter(INGRESS_HOOK, 1, 3, 1, Redirect("lo")), "add filter redirect pref 1 at ffff:fff2"),
]


@pytest.mark.parametrize(("subject", "doing"), SUBJECTS)
def test_an_error_names_the_device_and_what_was_tried(subject, doing):
    with Kernel(None) as kernel, pytest.raises(KernelError) as caught:
        kernel.add("no-such-dev", subject)
    assert str(caught.value) == f"no-such-dev: {doing}: no such device; `ip link` prints them"
    assert caught.value.errno == errno.ENODEV


def test_a_classifier_without_its_program_is_not_sent():
    with Kernel(None) as kernel, pytest.raises(KernelError, match=r"filter bpf pref 1.*: the program was not given"):
        kernel.add("lo", Filter(INGRESS_HOOK, 1, 3, 1, Bpf("x")))


def test_only_our_ifbs_can_be_removed():
    with Kernel(None) as kernel:
        with pytest.raises(KernelError, match="it is not ours"):
            kernel.delete_link("lo")
        with pytest.raises(KernelError, match="no such device"):
            kernel.delete_link("no-such-device")
        assert "lo" in kernel.facts()


def test_what_waits_in_an_unknown_queue_is_an_error():
    with Kernel(None) as kernel, pytest.raises(KernelError, match="lo: read the backlog of 51a:77: there is none"):
        kernel.backlog("lo", 0x51A0077)

# SPDX-License-Identifier: Apache-2.0
"""Changes from one policy to the next that fail, die or meet others half way, on this machine's kernel."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qos.tc.change import making
from qos.tc.change.ledger import Confirmed, Pending
from qos.tc.change.site import ChangeError, Site
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import LinkClass, LinkPolicy
from qos.tc.reconcile.steps import Verb
from tests.fakes.failing_kernel import FailingKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import alone
from tests.fakes.tc_place import Place

pytestmark = pytest.mark.needs_root

FIRST: dict[str, Any] = {"ingress": "50mbit"}
SECOND: dict[str, Any] = {"egress": "30mbit"}
FLOW = {"class": "batch", "proto": "udp", "dport": (5000,)}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with alone("halfway") as host:
        yield Place(host, tmp_path)


def test_a_failure_at_every_change_leaves_the_policy_before(place: Place) -> None:
    with alone("halfway") as other:
        first = policy_of({"netns": place.host.name} | FIRST, {"netns": other.name})
        second = policy_of({"netns": place.host.name} | SECOND, {"netns": other.name} | SECOND, flows=(FLOW,))
        making.apply(place.site, first)
        confirmed = place.site.books().confirmed
        made = place.seen(), Place(other, place.folder).seen()

        number, failed = 0, True
        while failed:
            number += 1
            try:
                making.apply(place.with_kernel(partial(failing, number, other.name)), second)
                failed = False
            except ChangeError as error:
                assert "everything was put back, nothing is changed" in str(error)
                assert place.stands(first)
                assert (place.seen(), Place(other, place.folder).seen()) == made
                books = place.site.books()
                assert (books.confirmed, books.pending) == (confirmed, None)
        assert number > 3
        assert place.stands(second)


@pytest.mark.parametrize("drift", ["ip link del ifb-eth0", "ip link set ifb-eth0 down"])
def test_a_repair_that_fails_anywhere_leaves_no_dead_end(place: Place, drift: str) -> None:
    policy = place.apply(**FIRST)
    place.host.run(drift)
    number, failed = 0, True
    while failed:
        number += 1
        try:
            making.apply(place.with_kernel(partial(failing, number, place.host.name)), policy)
            failed = False
        except ChangeError as error:
            assert "everything was put back, nothing is changed" in str(error)
            assert "mirred" not in place.host.tc("filter show dev eth0 ingress")
    assert number > 1
    assert place.stands(policy)


def failing(number: int, where: str, netns: str | None) -> Kernel:
    """A door that refuses this change in that namespace."""
    door = FailingKernel(netns)
    door.fails = [number] if netns == where else []
    return door


def test_killed_before_any_step_of_a_second_policy_the_first_can_be_had_again(place: Place) -> None:
    first, second = place.apply(**FIRST), replace(place.policy(**SECOND), flows=policy_of(flows=(FLOW,)).flows)
    made = place.seen()
    number = 0
    while _died(place.site, second, number := number + 1):
        if place.site.books().pending is not None:
            assert "is undone" in making.roll_back(place.site)
        else:
            confirmed = place.site.ledger.read(Confirmed)
            assert confirmed is not None
            making.apply(place.site, first)
        assert place.stands(first), f"after step {number}"
        assert place.seen() == made, f"after step {number}"
        assert place.site.ledger.read(Pending) is None
    assert number > 5
    assert place.stands(second)


def _died(site: Site, policy: LinkPolicy, number: int) -> bool:
    """Whether an apply had so many steps, and was killed before that one."""
    steps: list[str] = []

    def before(step: str) -> None:
        steps.append(step)
        if len(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:
            making.apply(dataclasses.replace(site, before=before), policy)
        finally:
            os._exit(7 if sys.exc_info()[0] else 0)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


# Crowds.


@pytest.mark.parametrize("states", [("one", "one", "one"), ("one", "two", "three")])
def test_of_several_that_apply_at_once_each_is_made_whole(place: Place, states: tuple[str, ...]) -> None:
    rates = ("20mbit", "30mbit", "40mbit")
    confs = [place.config(f"netns: {place.host.name}, egress: {each}, ingress: {each}", each) for each in rates]
    commands = [
        [sys.executable, "-m", "proxy", "qos", "apply", conf, "--state-dir", place.folder / state]
        for conf, state in zip(confs, states, strict=True)
    ]
    started = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for each in commands]
    told = [each.communicate(timeout=60)[0] for each in started]
    made = [
        place.policy(egress=each, ingress=each) for each, one in zip(rates, started, strict=True) if not one.returncode
    ]
    for text, one in zip(told, started, strict=True):
        assert one.returncode == 0 or "is changing traffic control here" in text
    assert sum(map(place.stands, made)) == 1


def test_a_thousand_classes_are_made_changed_in_place_and_released(place: Place) -> None:
    before = place.seen()
    policy = _thousand(place.policy())
    making.apply(place.site, policy)
    assert place.stands(policy)
    slower = replace(policy, interfaces=(replace(policy.interfaces[0], egress=policy.interfaces[0].egress // 2),))
    (changes,) = making.survey(place.site, slower)
    assert len(changes.steps) > 1000 and {each.verb for each in changes.steps} == {Verb.CHANGE}
    making.apply(place.site, slower)
    assert place.stands(slower)
    making.release(place.site)
    assert place.seen() == before


def _thousand(policy: LinkPolicy) -> LinkPolicy:
    """On a link of 8 Gbit/s, each class with a port of its own."""
    classes = tuple(
        LinkClass(
            name=f"c{rank}",
            rank=rank,
            dscp=rank % 64,
            owns_dscp=rank < 64,
            priority=2,
            share=0.001,
            ceiling=1.0,
            queue_s=0.1,
            default=rank == 999,
        )
        for rank in range(1000)
    )
    flow = policy_of(flows=(FLOW,)).flows[0]
    flows = tuple(replace(flow, traffic_class=each.name, dport=((5000 + each.rank,) * 2,)) for each in classes)
    interface = replace(policy.interfaces[0], egress=8 * 10**9)
    return replace(policy, classes=classes, flows=flows, interfaces=(interface,))

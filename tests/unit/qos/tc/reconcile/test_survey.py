# SPDX-License-Identifier: Apache-2.0
"""What a survey finds, on a kernel in memory."""

from __future__ import annotations

from typing import Any

import pytest

from qos.tc.capabilities import CONFIG_NAMES, Capabilities
from qos.tc.design.compile import CannotKeepError
from qos.tc.policy import LinkPolicy
from qos.tc.reconcile.survey import Survey, netns_of, survey
from qos.tc.state import LinkState, NetworkState
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_applying import applied
from tests.fakes.tc_states import TREE, one

ALL = dict.fromkeys(CONFIG_NAMES, "")
CAPABILITIES = Capabilities(
    kernel="6.18.0", qdiscs=ALL, classifiers=ALL, actions=ALL, ifb="", clsact="", per_packet_priority=True
)
BARE = one(LinkState(name="eth0", gso_max_size=65536))


def surveyed(kernel: FakeKernel, policy: LinkPolicy, netns: str | None = None) -> Survey:
    door: Any = kernel  # it has the door's interface
    return survey(policy, netns, door, CAPABILITIES)


def test_each_namespace_once_as_they_come() -> None:
    policy = policy_of({"netns": "blue"}, {"name": "eth1"}, {"name": "eth2", "netns": "blue"})
    assert netns_of(policy) == ("blue", None)


def test_what_it_takes_is_what_makes_the_next_survey_empty() -> None:
    kernel = FakeKernel.of(BARE)
    policy = policy_of({"ingress": "10mbit"})
    found = surveyed(kernel, policy)
    assert found.steps
    programs = found.compiled.programs
    assert applied(kernel, found.compiled.desired, steps=found.steps, programs=programs).failure is None
    assert surveyed(kernel, policy).steps == ()


def test_the_losses_are_those_of_now() -> None:
    kernel = FakeKernel.of(BARE)
    kernel.devices["eth0"].waiting = {0: 12}
    assert sum(each.loss.packets or 0 for each in surveyed(kernel, policy_of()).steps) == 12


def test_an_interface_that_is_missing_is_named_with_its_place_and_those_that_are_there() -> None:
    kernel = FakeKernel.of(NetworkState(links=(LinkState(name="eth0"), LinkState(name="lo"))))
    with pytest.raises(CannotKeepError) as error:
        surveyed(kernel, policy_of({}, {"name": "eth7"}))
    assert str(error.value) == "interfaces[1] eth7: no such interface; did you mean eth0? (there are eth0, lo)"


def test_an_interface_with_another_name_is_recognised_by_our_queues() -> None:
    with pytest.raises(CannotKeepError, match="eth0 has queues of ours and is not in the config: was it renamed"):
        surveyed(FakeKernel.of(one(TREE)), policy_of({"name": "wan0"}))


def test_interfaces_of_other_namespaces_are_not_asked_for() -> None:
    kernel = FakeKernel.of(BARE)
    kernel.netns = "blue"
    policy = policy_of({"netns": "blue"}, {"name": "eth9"})
    assert {each.device for each in surveyed(kernel, policy, "blue").steps} == {"eth0"}


EARLY = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}


def test_a_table_is_tried_only_while_it_is_not_in_force() -> None:
    kernel, tried = FakeKernel.of(BARE), []

    def refusal(transaction: str) -> str:
        tried.append(transaction)
        return ""

    kernel.table_refusal = refusal  # type: ignore[method-assign]
    policy = policy_of(flows=(EARLY,))
    found = surveyed(kernel, policy)
    assert len(tried) == 1 and found.compiled.desired.table in tried[0]
    assert applied(kernel, found.compiled.desired, programs=found.compiled.programs).failure is None
    assert surveyed(kernel, policy).steps == ()
    surveyed(kernel, policy_of())
    assert len(tried) == 1, "nothing to ask nft"


def test_what_nft_refuses_is_a_note_and_the_rest_is_made() -> None:
    kernel = FakeKernel.of(BARE)
    kernel.nft_says = "Could not process rule: No such file or directory"
    found = surveyed(kernel, policy_of(flows=(EARLY,)))
    assert found.compiled.desired.table == ""
    (note,) = (each for each in found.compiled.notes if "before NAT" in each.text)
    assert note.severity == "degraded"
    assert note.text.endswith("before NAT: nftables: Could not process rule: No such file or directory")
    assert found.steps

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.settings import ClassSettings, LinkSettings
from qos.tc.policy import LinkPolicy
from tests.fakes.link_policies import policy_of


def settings(name: str, dscp: int, share: float | None = None, *, default: bool = False) -> ClassSettings:
    link = None if share is None else LinkSettings(share=share)
    return ClassSettings(name=name, dscp=dscp, deadline=1.0, default=default, link=link)


def test_the_built_in_classes_part_a_link():
    told = [
        (each.name, each.rank, each.priority, each.share, each.owns_dscp, each.default) for each in policy_of().classes
    ]
    assert told == [
        ("realtime", 0, 6, 0.25, True, False),
        ("interactive", 1, 4, 0.25, True, True),
        ("batch", 2, 0, 0.25, True, False),
        ("background", 3, 2, 0.25, True, False),
    ]
    assert policy_of().default.name == "interactive"


def test_those_that_say_no_share_part_what_is_left():
    policy = policy_of(classes=[settings("a", 46, 0.4), settings("b", 18, default=True), settings("c", 10)])
    assert [each.share for each in policy.classes] == pytest.approx([0.4, 0.3, 0.3])


def test_a_class_whose_packets_look_like_anothers_has_no_part():
    classes = [settings("a", 46), settings("b", 46), settings("c", 46, default=True), settings("d", 46)]
    policy = policy_of(classes=classes, flows=({"class": "d", "proto": "udp"},))
    assert [each.owns_dscp for each in policy.classes] == [True, False, False, False]
    assert [each.share for each in policy.classes] == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_interfaces_and_flows_as_the_config_says_them():
    flow = {"class": "batch", "proto": "udp", "src": "10.0.0.0/8", "dport": (53, "60-70"), "dscp": "EF"}
    policy = policy_of({"netns": "edge", "ingress": "10mbit", "overhead": "vlan", "degrade": "refuse"}, flows=(flow,))
    (interface,) = policy.interfaces
    assert (interface.netns, interface.egress, interface.ingress) == ("edge", 20_000_000, 10_000_000)
    assert (interface.overhead, interface.engine, interface.refuse_degraded) == (28, "auto", True)
    (found,) = policy.flows
    assert (found.proto, found.src, found.dst, found.dport, found.dscp) == (
        17,
        "10.0.0.0/8",
        None,
        ((53, 53), (60, 70)),
        46,
    )


def test_the_digest_changes_with_anything():
    assert policy_of().digest == policy_of().digest
    assert len({policy_of().digest, policy_of({"egress": "21mbit"}).digest, policy_of({"adopt": True}).digest}) == 3


def test_a_policy_can_be_kept_and_read_back():
    policy = policy_of({"ingress": "1mbit"}, flows=({"class": "batch", "src": "fd00::/8"},))
    assert msgspec.json.decode(msgspec.json.encode(policy), type=LinkPolicy) == policy


@given(st.lists(st.tuples(st.sampled_from((46, 18, 10)), st.none() | st.floats(0.01, 0.2)), min_size=1, max_size=5))
def test_shares_never_exceed_the_link(said):
    classes = [settings(f"c{place}", dscp, share, default=place == 0) for place, (dscp, share) in enumerate(said)]
    policy = policy_of(classes=classes)
    assert sum(each.share for each in policy.classes) <= 1 + 1e-9
    assert all((each.share > 0) == (each.owns_dscp or each.default) for each in policy.classes)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.lookout.membership import MOST_ADDRESSES, Member, Membership, first_family, name_of
from backends.settings import DatagramSettings, EndpointSettings, OipSettings, OnnxSettings, OpenAiSettings

PLAIN = OipSettings(oip="http://a.example:8000")
NAMED = OipSettings.model_validate({"oip": "https://a.example/base", "resolve": "10s"})
QUICK = OpenAiSettings.model_validate({"openai": "https://a.example", "resolve": "2s"})
PACKETS = DatagramSettings.model_validate({"datagram": "b.example:4434", "resolve": "30s"})
LOCAL = OnnxSettings(onnx=Path("model.onnx"))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (PLAIN, None),
        (LOCAL, None),
        (NAMED, ("a.example", 443)),
        (QUICK, ("a.example", 443)),
        (PACKETS, ("b.example", 4434)),
    ],
)
def test_what_is_to_be_looked_up(settings, name):
    assert name_of(settings) == name


def test_a_name_that_several_want_is_looked_up_as_often_as_the_most_eager_wants():
    known = Membership([NAMED, PLAIN], filed=[QUICK, PACKETS, LOCAL])
    assert known.names() == {("a.example", 443): 2.0, ("b.example", 4434): 30.0}


def test_each_address_is_a_member_and_a_name_never_resolved_has_none():
    known = Membership([PLAIN, NAMED, PACKETS])
    assert known.members() == [Member(PLAIN)]
    known.addresses[("a.example", 443)] = ("10.0.0.1", "10.0.0.2")
    assert known.members() == [Member(PLAIN), Member(NAMED, "10.0.0.1"), Member(NAMED, "10.0.0.2")]


def test_members_written_alike_are_still_members_of_their_own():
    assert Membership([PLAIN], filed=[PLAIN]).members() == [Member(PLAIN), Member(PLAIN, copy=1)]


def test_one_family_only_or_a_server_with_two_addresses_would_count_twice():
    v4 = (socket.AF_INET, ("10.0.0.2", 80))
    v6 = (socket.AF_INET6, ("fd00::1", 80, 0, 0))
    assert first_family([v6, v4]) == ("fd00::1",)
    assert first_family([v4, v6, (socket.AF_INET, ("10.0.0.1", 80)), v4]) == ("10.0.0.1", "10.0.0.2")
    assert first_family([]) == ()


endpoints = st.sampled_from([PLAIN, NAMED, QUICK, PACKETS, LOCAL])
addresses = st.dictionaries(
    st.sampled_from([("a.example", 443), ("b.example", 4434), ("gone.example", 1)]),
    st.lists(st.ip_addresses().map(str), unique=True, max_size=4).map(tuple),
)


@given(st.lists(endpoints, max_size=6), st.lists(endpoints, max_size=6), addresses)
def test_whatever_is_known_members_are_distinct_and_nobody_is_forgotten(listed, filed, found):
    members = Membership(listed, filed=filed, addresses=found).members()
    assert len(set(members)) == len(members)
    expected: list[tuple[EndpointSettings, str | None]] = []
    for each in (*listed, *filed):
        name = name_of(each)
        expected += [(each, address) for address in ((None,) if name is None else found.get(name, ()))]
    assert [(each.settings, each.address) for each in members] == expected


@given(st.lists(st.ip_addresses(v=4).map(lambda each: (socket.AF_INET, (str(each), 80)))))
def test_addresses_are_each_once_in_a_stable_order_and_bounded(found):
    assert first_family(found) == first_family(list(reversed(found)))
    assert len(first_family(found)) == min(len({address for _, (address, _) in found}), MOST_ADDRESSES)

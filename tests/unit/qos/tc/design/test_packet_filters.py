# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.tc.design.classifier import Packet, classify_packet, rule_table
from qos.tc.design.packet_filters import MOST_FILTERS, flower_filters, port_masks, u32_filters
from qos.tc.policy import Flow, LinkPolicy
from qos.tc.state import U32, Filter, Flower
from tests.fakes.link_policies import policy_of
from tests.fakes.packets import frames, ipv4, ipv6, policies, read

HANDLES = {"realtime": 0x51A0016, "interactive": 0x51A0024, "batch": 0x51A0030, "background": 0x51A0042}
PARENT = 0x51A0000
UDP = b"\x00\x35\x13\x88"
_VERSIONS = {0x0800: 4, 0x86DD: 6}


def matching(filters: tuple[Filter, ...], packet: bytes) -> int | None:
    """The class that the kernel would choose: preferences in order, inside one whichever."""
    known = read(packet)
    found = [
        each
        for each in filters
        if known is not None and _VERSIONS[each.protocol] == known.version and _matches(each.options, packet, known)
    ]
    if not found:
        return None
    first = min(each.pref for each in found)
    chosen = {each.options.classid for each in found if each.pref == first}
    assert len(chosen) == 1, "the order inside a preference is the kernel's"
    return chosen.pop()


def _matches(options: U32 | Flower, packet: bytes, known: Packet) -> bool:
    if isinstance(options, U32):
        return all(
            len(packet) >= offset + 4 and int.from_bytes(packet[offset : offset + 4], "big") & mask == value
            for offset, value, mask in options.keys
        )
    return (
        options.dscp in (None, known.dscp)
        and options.ip_proto in (None, known.proto)
        and all(
            not network or ip_address(address) in ip_network(network)
            for network, address in ((options.src, known.src), (options.dst, known.dst))
        )
        and all(
            ports is None or (port is not None and ports[0] <= port <= ports[1])
            for ports, port in ((options.sport, known.sport), (options.dport, known.dport))
        )
    )


def plain(packet: bytes) -> bool:
    """Whether u32 can see all of it: no options, no extension headers, no fragments, nothing cut off."""
    if packet[0] >> 4 == 4:
        return packet[0] == 0x45 and len(packet) >= 24 and not int.from_bytes(packet[6:8], "big") & 0x1FFF
    return packet[0] >> 4 == 6 and len(packet) >= 44 and packet[6] in (6, 17, 1)


@given(policies(), frames())
def test_flower_says_what_the_reference_says(policy, received):
    rules, packet = rule_table(policy), read(received[14:])
    rule = None if packet is None else classify_packet(rules, packet)
    filters = flower_filters(rules, HANDLES, PARENT)
    assert filters.left_out == ()
    assert matching(filters.filters, received[14:]) == (None if rule is None else HANDLES[rule.traffic_class])


@given(policies(), frames().filter(lambda received: plain(received[14:])))
def test_u32_says_what_the_reference_says_of_plain_packets(policy, received):
    rules, packet = rule_table(policy), read(received[14:])
    assert packet is not None
    rule = classify_packet(rules, packet)
    filters = u32_filters(rules, HANDLES, PARENT)
    if not filters.left_out:
        assert matching(filters.filters, received[14:]) == (None if rule is None else HANDLES[rule.traffic_class])


def test_what_u32_cannot_see_it_does_not_guess():
    flow = {"class": "batch", "proto": "udp", "dport": (5000,)}
    filters = u32_filters(rule_table(policy_of(flows=(flow,))), HANDLES, PARENT).filters
    assert matching(filters, ipv4(UDP)) == matching(filters, ipv6(UDP)) == HANDLES["batch"]
    # Four bytes of options look like ports; so do those of a later fragment.
    assert matching(filters, ipv4(UDP, options=UDP)) is None
    assert matching(filters, ipv4(UDP, fragment=1)) is None
    assert matching(filters, ipv6(UDP, extensions=((60, UDP + bytes(3)),))) is None


@given(policies(), st.sampled_from((flower_filters, u32_filters)))
def test_a_preference_holds_one_protocol_and_no_filter_twice(policy, make):
    filters = make(rule_table(policy), HANDLES, PARENT).filters
    protocols: dict[int, set[int]] = {}
    for each in filters:
        protocols.setdefault(each.pref, set()).add(each.protocol)
        assert (each.parent, each.handle) == (PARENT, 0)
        assert 0 < each.pref < 0x10000
    assert all(len(each) == 1 for each in protocols.values())
    assert len(set(filters)) == len(filters) <= MOST_FILTERS


@given(st.integers(1, 65535), st.integers(0, 65535))
def test_a_range_is_as_many_masks_as_it_needs(first, size):
    last = min(first + size, 65535)
    masks = list(port_masks([(first, last)]))
    covered = sum(0x10000 - mask for _, mask in masks)
    assert covered == last - first + 1
    assert all(value & mask == value and first <= value <= last for value, mask in masks)
    assert len(masks) <= 30


def test_a_known_range():
    assert [hex(mask) for _, mask in port_masks([(5010, 5020)])] == ["0xfffe", "0xfffc", "0xfffc", "0xffff"]
    assert list(port_masks([(0, 65535)])) == [(0, 0)]


def many(count: int, **given: object) -> LinkPolicy:
    known = {"proto": 17, "src": None, "dst": None, "sport": (), "dport": (), "dscp": None, "before_nat": False}
    names = [each.name for each in policy_of().classes]
    flows = [Flow(traffic_class=names[place % 2], **(known | given)) for place in range(count)]
    return msgspec.structs.replace(policy_of(), flows=tuple(flows))


@pytest.mark.parametrize("make", [flower_filters, u32_filters])
@pytest.mark.parametrize(
    "policy",
    [many(3000, src="10.0.0.1/32"), many(1, sport=((1, 9999),) * 1, dport=tuple((n, n) for n in range(1, 9999, 2)))],
    ids=["flows", "ports"],
)
def test_what_is_too_much_is_left_out_and_named_and_the_marks_stay(make, policy):
    found = make(rule_table(policy), HANDLES, PARENT)
    assert found.left_out
    assert len(found.filters) <= MOST_FILTERS
    assert matching(found.filters[-8:], ipv4(UDP, dscp=46, proto=1)) == HANDLES["realtime"]
    assert matching(found.filters[-8:], ipv6(UDP, dscp=1, proto=1)) == HANDLES["background"]

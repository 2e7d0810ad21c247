# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from proxy.commands.explain_packet import ExplainedPacket, PacketExplanation, TcPlace, explain_described_packet
from proxy.config.loading import load

TEXT = """\
listeners: [{name: main, bind: ["127.0.0.1:0"], accept: [udp]}]
pools: [{name: m, model: m, endpoints: [{oip: "http://a"}]}]
interfaces:
  - {name: eth0, egress: 20mbit, ingress: 10mbit}
  - {name: eth1, netns: a, egress: 1gbit, engine: cake}
  - {name: eth2, egress: 1gbit, engine: marks}
flows:
  - {class: batch, proto: tcp, dport: [2049, "5000-5010"], dst: 10.0.0.0/8}
  - {class: realtime, src: "fd00::/16"}
"""


@pytest.fixture
def told(tmp_path):
    """The explanation of a packet under this config."""
    (tmp_path / "g.yaml").write_text(TEXT)
    config = load(tmp_path / "g.yaml")

    def explained(**packet) -> PacketExplanation:
        return explain_described_packet(config, ExplainedPacket(**({"interface": "eth0"} | packet)))

    return explained


def test_a_flow_decides_first(told):
    assert told(proto="tcp", dst="10.1.2.3", dport=5005, dscp="EF") == PacketExplanation(
        packet="tcp 192.0.2.1 -> 10.1.2.3:5005, EF",
        traffic_class="batch",
        why="flows[0]",
        mark="EF",
        places=(
            TcPlace(
                interface="eth0",
                netns=None,
                direction="egress",
                tc_class="51a:30",
                rate=5_000_000,
                ceiling=20_000_000,
            ),
            TcPlace(
                interface="eth0",
                netns=None,
                direction="ingress",
                tc_class="51a:30",
                rate=2_500_000,
                ceiling=10_000_000,
            ),
        ),
    )
    assert told(src="fd00::1").traffic_class == "realtime"


def test_then_the_mark_and_then_the_default_class(told):
    assert (told(dscp="EF").traffic_class, told(dscp="EF").why) == ("realtime", "the mark EF")
    assert told(dst="2001:db8::7").traffic_class == "interactive"
    assert told(dst="2001:db8::7").packet == "IP 2001:db8::1 -> 2001:db8::7, DF"
    assert told(proto="udp", dst="fd01::7", sport=4433).packet == "udp [2001:db8::1]:4433 -> fd01::7, DF"


def test_engines_without_classes_are_told(told):
    (cake,) = told(interface="eth1", dscp="LE").places
    assert (cake.tc_class, cake.rate, cake.netns) == ("51a:1", None, "a")
    (marks,) = told(interface="eth2").places
    assert marks.tc_class is None
    assert [each.interface for each in told(interface=None).places] == ["eth0", "eth0", "eth1", "eth2"]


def test_people_read_lines_and_programs_json(told):
    assert told(proto="tcp", dst="10.1.2.3", dport=2049).as_text().splitlines() == [
        "packet     tcp 192.0.2.1 -> 10.1.2.3:2049, DF",
        "class      batch (flows[0])",
        "mark       DF, as it came: traffic control changes no mark",
        "tc class   eth0 egress: 51a:30, guaranteed 5mbit, at most 20mbit, if applied",
        "tc class   eth0 ingress: 51a:30, guaranteed 2.5mbit, at most 10mbit, if applied",
    ]
    assert told(interface="eth2").as_text().endswith("eth2 egress: no tc class of its own, if applied")
    assert told(interface="eth1").as_text().endswith("eth1 egress in namespace a: 51a:2, if applied")
    assert json.loads(json.dumps(told().as_dict()))["places"][0]["tc_class"] == "51a:24"


def test_a_config_without_interfaces_shapes_nothing(tmp_path):
    (tmp_path / "g.yaml").write_text("\n".join(TEXT.splitlines()[:2]))
    found = explain_described_packet(load(tmp_path / "g.yaml"), ExplainedPacket(dscp="EF"))
    assert (found.traffic_class, found.places) == ("realtime", ())
    assert found.as_text().endswith("none: the config names no interfaces")


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        ({"interface": "eht0"}, "no interface is named 'eht0'; did you mean eth0?; the config has eth0, eth1, eth2"),
        ({"src": "robots"}, "'robots' is not an IP address; write 10.20.0.5 or fd00:20::5"),
        ({"src": "::1", "dst": "10.0.0.1"}, "::1 and 10.0.0.1 are of two IP versions; no packet has both"),
        ({"dport": 53}, "a port needs its protocol; add --proto tcp or --proto udp"),
        ({"proto": "upd"}, "'upd' is not known; did you mean udp?; allowed: tcp, udp"),
        ({"dscp": "GOLD"}, "'GOLD' is not a DSCP"),
    ],
)
def test_what_is_not_described_well_is_refused_in_one_line(told, packet, message):
    with pytest.raises(ValueError, match=r".") as refused:
        told(**packet)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from proxy.commands import qos_status
from qos.tc.change import making
from qos.tc.kernel.statistics import Counters
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import FakePlace

POLICY = policy_of({"ingress": "10mbit"})


@pytest.fixture
def target(tmp_path):
    (found,) = making.survey(FakePlace(tmp_path).site, POLICY)
    return found


@pytest.fixture
def rows(target):
    before = {"eth0": {0x51A0016: Counters(bytes=1000, packets=10)}}
    after = {
        "eth0": {
            0x51A0016: Counters(bytes=3500, packets=12, borrows=3),
            0x160000: Counters(drops=4, backlog_packets=5, backlog_bytes=600),
            0x51A0000: Counters(bytes=9000, packets=40, drops=4),
        },
        "ifb-eth0": {},
    }
    return qos_status.rows(target, POLICY, (before, after), 2.0)


def test_each_class_both_ways_beside_its_promise(rows):
    assert [(each.interface, each.direction, each.traffic_class) for each in rows] == [
        ("eth0", direction, name)
        for direction in dict.fromkeys(each.direction for each in rows)
        for name in ("realtime", "interactive", "batch", "background", "all")
    ]
    (realtime,) = [each for each in rows if (each.direction, each.traffic_class) == ("egress", "realtime")]
    assert (realtime.mark, realtime.handle, realtime.rate, realtime.ceiling) == ("EF", "51a:16", 5_000_000, 20_000_000)
    assert (realtime.sent, realtime.packets, realtime.bytes, realtime.borrows) == (10_000, 12, 3500, 3)
    assert (realtime.drops, realtime.backlog_packets, realtime.backlog_bytes) == (4, 5, 600)


def test_a_link_as_a_whole_and_what_was_not_counted(rows):
    (whole,) = [each for each in rows if (each.direction, each.traffic_class) == ("egress", "all")]
    assert (whole.packets, whole.drops, whole.rate, whole.mark) == (40, 4, None, "")
    assert {each.packets for each in rows if each.direction == "ingress"} == {0}


def test_people_see_a_table_a_link_and_the_drift(target, rows):
    output = io.StringIO()
    for part in qos_status.link_tables(target, rows):
        Console(file=output, width=200).print(part)
    text = output.getvalue()
    assert "eth0 egress, in this namespace" in text and "eth0 ingress, in this namespace" in text
    line = next(line for line in text.splitlines() if "realtime" in line and "20mbit" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "realtime", "EF", "51a:16", "5mbit", "20mbit", "10kbit", "12", "4", "5 (600 B)", "3",
    ]  # fmt: skip
    assert "in this namespace: not as promised; `inferlane qos apply` would:\n  + " in text


def test_what_is_as_promised_says_so(tmp_path):
    place = FakePlace(tmp_path)
    making.apply(place.site, POLICY)
    (found,) = making.survey(place.site, POLICY)
    assert qos_status.drift(found) == ["in this namespace: all is as promised"]


def test_programs_get_a_document(target, rows):
    found = json.loads(json.dumps(qos_status.status_document([target], rows)))
    assert found["classes"][0].keys() >= {"interface", "direction", "traffic_class", "rate", "sent", "drops", "borrows"}
    assert found["drift"][0]["netns"] is None and len(found["drift"][0]["steps"]) == len(target.steps)

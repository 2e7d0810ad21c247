# SPDX-License-Identifier: Apache-2.0
"""The metrics of traffic control: counts by class and direction, beside what was promised."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from proxy.telemetry.link_metrics import LinksSeen, link_families
from proxy.telemetry.metrics import Metrics
from qos.tc.keep.messages import ClassReading, LinkReading

REALTIME = ClassReading(
    name="realtime",
    direction="egress",
    bytes=1500,
    packets=3,
    drops=1,
    borrows=2,
    backlog_bytes=700,
    rate=375_000,
    ceiling=1_250_000,
)
TIN = ClassReading(
    name="bulk",
    direction="ingress",
    bytes=9,
    packets=1,
    drops=0,
    borrows=0,
    backlog_bytes=0,
    rate=None,
    ceiling=None,
)
LINKS = [
    LinkReading(interface="eth0", netns=None, in_force=True, classes=(REALTIME, TIN)),
    LinkReading(interface="eth0", netns="blue", in_force=False, why="there is no such interface"),
]


def samples(seen: LinksSeen) -> dict[tuple[str, ...], float]:
    """As Prometheus' own parser reads the page: (name, label values in the order of their names) -> value."""
    metrics = Metrics(version="0.1.0")
    metrics.show_links(seen)
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(metrics.page()[0].decode())
        for sample in family.samples
        if sample.name.startswith("inferlane_link")
    }


def test_every_count_and_rate_of_a_class_has_its_own_series():
    found = samples(LinksSeen(attended=True, repairs=4, links=LINKS))
    where = ("realtime", "egress", "eth0", "")
    assert {name: found[f"inferlane_link_{name}", *where] for name in ("bytes_total", "packets_total")} == {
        "bytes_total": 1500,
        "packets_total": 3,
    }
    assert found["inferlane_link_drops_total", *where] == 1
    assert found["inferlane_link_borrows_total", *where] == 2
    assert found["inferlane_link_backlog_bytes", *where] == 700
    assert found["inferlane_link_rate_bytes_per_second", *where] == 375_000
    assert found["inferlane_link_ceiling_bytes_per_second", *where] == 1_250_000
    assert found["inferlane_link_bytes_total", "bulk", "ingress", "eth0", ""] == 9
    assert ("inferlane_link_rate_bytes_per_second", "bulk", "ingress", "eth0", "") not in found
    assert found["inferlane_link_repairs_total",] == 4


def test_what_is_not_in_force_says_so():
    found = samples(LinksSeen(attended=True, links=LINKS))
    assert found["inferlane_link_in_force", "eth0", ""] == 1
    assert found["inferlane_link_in_force", "eth0", "blue"] == 0
    assert found["inferlane_link_unattended",] == 0


def test_what_nobody_watches_is_not_said_to_be_in_force():
    found = samples(LinksSeen(attended=False, links=LINKS))
    assert found["inferlane_link_in_force", "eth0", ""] == 0
    assert found["inferlane_link_unattended",] == 1


def test_without_interfaces_there_is_no_such_metric():
    page, _ = Metrics(version="0.1.0").page()
    assert b"inferlane_link" not in page


def test_names_and_labels_are_the_same_whatever_was_read():
    names = [each.name for each in link_families(LinksSeen(attended=True))]
    assert len(set(names)) == len(names) == 10
    assert all(each.startswith("inferlane_link_") for each in names)

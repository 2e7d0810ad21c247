# SPDX-License-Identifier: Apache-2.0
"""Listeners' counts, read as they stand."""

from __future__ import annotations

from types import SimpleNamespace

from proxy.telemetry.door_metrics import door_families, tcp_door_families

QUIC = SimpleNamespace(
    datagrams_received=7,
    datagrams_sent=5,
    datagrams_dropped={"malformed": 2},
    kernel_drops=11,
    trains={"sent": 12, "refused": 1},
    connections=3,
    handshakes=4,
)
TCP = SimpleNamespace(connections=8, handshakes=9, connections_dropped={"slow_head": 6})


def samples(families):
    return {(family.name, *labels): value for family in families for labels, value in family.samples}


def test_every_count_of_a_listener_has_its_series():
    assert samples(door_families([("main", QUIC)])) == {
        ("inferlane_datagrams", "main", "in"): 7,
        ("inferlane_datagrams", "main", "out"): 5,
        ("inferlane_datagrams_dropped", "main", "malformed"): 2,
        ("inferlane_datagrams_kernel_drops", "main"): 11,
        ("inferlane_datagram_trains", "main", "sent"): 12,
        ("inferlane_datagram_trains", "main", "refused"): 1,
        ("inferlane_quic_connections", "main"): 3,
        ("inferlane_quic_handshakes", "main"): 4,
    }


def test_its_tcp_side_has_series_of_its_own():
    assert samples(tcp_door_families([("main", TCP)])) == {
        ("inferlane_tcp_connections", "main"): 8,
        ("inferlane_tcp_handshakes", "main"): 9,
        ("inferlane_tcp_connections_dropped", "main", "slow_head"): 6,
    }


def test_what_is_open_may_fall_and_what_happened_may_not():
    families = [*door_families([]), *tcp_door_families([])]
    assert [each.name for each in families if not each.counts] == [
        "inferlane_quic_connections",
        "inferlane_tcp_connections",
    ]

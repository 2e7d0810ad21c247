# SPDX-License-Identifier: Apache-2.0
"""Acknowledgements taken the short way leave recovery as aioquic's own way does, except where aioquic is wrong."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.recovery import BURST, MOST_AT_ONCE, Pacer, Recovery, ShortPacket


def recovery(kind: type[QuicPacketRecovery], space: QuicPacketSpace) -> QuicPacketRecovery:
    made = kind(
        congestion_control_algorithm="reno",
        initial_rtt=0.1,
        max_datagram_size=1200,
        peer_completed_address_validation=True,
        send_probe=lambda: None,
    )
    made.spaces, made.handshake_confirmed = [space], True
    return made


def state(made: QuicPacketRecovery, space: QuicPacketSpace) -> dict[str, Any]:
    return {
        "sent": list(space.sent_packets),
        "eliciting": space.ack_eliciting_in_flight,
        "largest": space.largest_acked_packet,
        "loss_time": space.loss_time,
        "bytes": made.bytes_in_flight,
        "window": made.congestion_window,
        "rtt": (made._rtt_latest, made._rtt_min, made._rtt_smoothed, made._rtt_variance),
        "probes": made._pto_count,
        "timeout": made.get_loss_detection_time(amplification_limited=False),
    }


STEPS = st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 60), max_size=6)), max_size=25)


@given(STEPS)
def test_the_short_way_and_aioquic_s_come_to_the_same(steps: list[tuple[int, list[int]]]) -> None:
    """The window is kept full, as it is on a busy path: on an idle one ours does not grow, see below."""
    spaces = [QuicPacketSpace(is_application_data=True), QuicPacketSpace(is_application_data=True)]
    ours, theirs = recovery(Recovery, spaces[0]), recovery(QuicPacketRecovery, spaces[1])
    assert isinstance(ours, Recovery)
    heard: tuple[list[Any], list[Any]] = ([], [])
    number, now = 0, 1.0
    for count, wanted in steps:
        now += 0.013
        for _ in range(count):
            for made, space, ear in zip((ours, theirs), spaces, heard, strict=True):
                told = (lambda delivery, n, ear=ear: ear.append((delivery, n)), (number,))
                packet = ShortPacket(number, True, now, 6000, [told])
                made.on_packet_sent(packet=packet, space=space)
            number += 1
        ranges = RangeSet(range(each, each + 1) for each in wanted if each < number)
        if len(ranges) == 0:
            continue
        for made in (ours, theirs):  # full: both windows may grow
            made._cc.bytes_in_flight += 10_000_000
        ours.acknowledge([(each.start, each.stop) for each in ranges], 0.001, now + 0.01, spaces[0])
        theirs.on_ack_received(ack_rangeset=ranges, ack_delay=0.001, now=now + 0.01, space=spaces[1])
        for made in (ours, theirs):
            made._cc.bytes_in_flight -= 10_000_000
        assert state(ours, spaces[0]) == state(theirs, spaces[1])
        assert ours.probe_s == theirs.get_probe_timeout()
        assert heard[0] == heard[1]


def test_a_window_that_is_not_used_does_not_grow() -> None:
    space = QuicPacketSpace(is_application_data=True)
    made = recovery(Recovery, space)
    assert isinstance(made, Recovery)
    window = made.congestion_window
    for number in range(200):
        packet = ShortPacket(number, True, 1.0, 1200, [])
        made.on_packet_sent(packet=packet, space=space)
        made.acknowledge([(number, number + 1)], 0.0, 1.001, space)
    assert (made.congestion_window, made.bytes_in_flight) == (window, 0)


def burst(pacer: QuicPacketPacer, window: int, rtt: float) -> int:
    """Packets that it lets out at once."""
    pacer.update_rate(window, rtt)
    pacer.update_bucket(now=100.0)
    sent = 0
    while pacer.next_send_time(now=100.0) is None and sent < 100:
        pacer.update_after_send(now=100.0)
        sent += 1
    return sent


@pytest.mark.parametrize(
    ("window", "rtt", "least", "most"),
    [
        (12_000, 0.0005, 2, 6),
        (1_000_000, 0.0005, MOST_AT_ONCE, MOST_AT_ONCE + 1),
        (1_000_000_000, 0.0005, MOST_AT_ONCE, MOST_AT_ONCE + 1),
        (1_000_000, 0.05, BURST, BURST + 2),
        (60_000, 0.05, 12, 14),
    ],
)
def test_the_pacer_lets_out_what_its_rate_gives_until_a_timer_can_ring(
    window: int, rtt: float, least: int, most: int
) -> None:
    """aioquic's let out one packet a wake-up at a gigabyte of window. On a longer path its burst stays what it was."""
    assert least <= burst(Pacer(max_datagram_size=1200), window, rtt) <= most
    if rtt > 0.01:
        assert burst(QuicPacketPacer(max_datagram_size=1200), window, rtt) == burst(
            Pacer(max_datagram_size=1200), window, rtt
        )


@given(st.integers(3_000, 1 << 31), st.floats(0.0001, 2.0), st.floats(0.0, 0.1), st.integers(0, 80))
def test_many_packets_are_asked_for_and_spent_as_if_one_by_one(
    window: int, rtt: float, waited: float, wanted: int
) -> None:
    at_once, singly = Pacer(max_datagram_size=1200), Pacer(max_datagram_size=1200)
    assert at_once.allowance(1.0) is None
    for pacer in (at_once, singly):
        pacer.update_rate(window, rtt)
        pacer.evaluation_time = 100.0 - waited
    allowed = at_once.allowance(100.0)
    assert allowed is not None
    sent = 0
    while sent < min(wanted, allowed):
        assert singly.next_send_time(now=100.0) is None
        singly.update_after_send(now=100.0)
        sent += 1
    at_once.spend(sent)
    singly.update_bucket(now=100.0)
    assert at_once.bucket_time == pytest.approx(singly.bucket_time, abs=1e-9)


def test_a_loss_is_told() -> None:
    space = QuicPacketSpace(is_application_data=True)
    made = recovery(Recovery, space)
    assert isinstance(made, Recovery)
    for number in range(6):
        packet = ShortPacket(number, True, 1.0, 100, [])
        made.on_packet_sent(packet=packet, space=space)
    made.acknowledge([(0, 1)], 0.0, 1.01, space)
    assert not made.stirred
    made.acknowledge([(5, 6)], 0.0, 1.01, space)
    assert made.stirred


def test_the_privates_we_use_are_what_they_were() -> None:
    assert set(inspect.signature(QuicPacketRecovery._detect_loss).parameters) == {"self", "now", "space"}
    assert set(inspect.signature(QuicPacketRecovery._on_packets_lost).parameters) == {
        "self", "congestion_event", "now", "packets", "persistent_congestion", "space",
    }  # fmt: skip
    ours = ShortPacket(1, True, 1.0, 2, [])
    assert all(hasattr(ours, each.name) for each in fields(QuicSentPacket))

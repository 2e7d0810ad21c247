# SPDX-License-Identifier: Apache-2.0
"""Loss recovery (RFC 9002) as aioquic has it, with a short way for the acknowledgements that most packets carry.

aioquic copies the numbers of all packets in flight into a list for every ACK frame, and looks for losses where none
can be. `stirred` tells the connection to look at its streams: some may have something to say again, or be over.

Two faults of 1.7.2 are mended, which a long connection on a short path met after some 10 MB: its window grew with every
acknowledgement, used or not, and above 2.4 GB/s of window a round trip the pacer let out one packet a wake-up, since
it had less room than its shortest interval of 1 us.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace
from aioquic.tls import Epoch

__all__ = ["MOST_UNHEARD", "Pacer", "Recovery", "ShortPacket"]

BURST = 16
"""Packets at once, at most a quarter of the window: aioquic's own bounds."""
TICK_S, MOST_AT_ONCE = 0.001, 64
"""The shortest timer there is (uvloop's are in whole ms): what the rate gives for it may go at once, or the path never
gets its rate. Half the window at most, and so many packets, which is what a socket's usual buffer holds."""

MOST_UNHEARD = 256
"""Packets in memory from which those that elicit no acknowledgement are forgotten once sent. A client that is sent
nothing else, as one that only sends PINGs, never acknowledges them, and may send PINGs for ever."""

_ACKED = QuicDeliveryState.ACKED
_LEAST_RTT_S = 0.001  # aioquic's


class ShortPacket(QuicSentPacket):
    """A 1-RTT packet in flight: what all of them share is written once, and none of it by name."""

    epoch = Epoch.ONE_RTT
    is_crypto_packet = False
    packet_type = QuicPacketType.ONE_RTT
    quic_logger_frames: list[dict[Any, Any]] = []  # noqa: RUF012  there is no qlog here

    def __init__(self, number: int, eliciting: bool, sent_time: float, sent_bytes: int, handlers: list[Any]) -> None:
        self.packet_number = number
        self.in_flight = self.is_ack_eliciting = eliciting
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = handlers


class Pacer(QuicPacketPacer):
    """aioquic's, whose bucket holds the burst that it is meant to hold however short the interval."""

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(congestion_window, smoothed_rtt)
        assert self.packet_time is not None
        window = congestion_window // self._max_datagram_size
        burst = max(2, min(window // 4, BURST), min(window // 2, int(TICK_S / self.packet_time), MOST_AT_ONCE))
        self.bucket_max = max(self.bucket_max, burst * self.packet_time)

    def allowance(self, now: float) -> int | None:
        """How many packets may go now, as so many calls of next_send_time would say; None: any number."""
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        return max(0, math.ceil(self.bucket_time / self.packet_time))

    def spend(self, count: int) -> None:
        """So many of them went: as many calls of update_after_send."""
        if self.packet_time is not None:
            self.bucket_time = max(0.0, self.bucket_time - count * self.packet_time)


class Recovery(QuicPacketRecovery):
    """aioquic's, told about ranges instead of a RangeSet."""

    stirred = False
    """Whether something was lost, or a packet of aioquic's own making arrived, since this was last set to False."""

    held_back = False
    """Whether the pacer or the window kept something from being sent when that was last tried."""

    def __init__(self, *, max_datagram_size: int, **rest: Any) -> None:
        super().__init__(max_datagram_size=max_datagram_size, **rest)
        self._pacer = self.pacer = Pacer(max_datagram_size=max_datagram_size)
        self.probe_s = self.get_probe_timeout()
        """get_probe_timeout() of now: it changes with a sample only, and is asked for with every packet."""

    def on_packet_sent(self, *, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        """aioquic's, which remembers every packet until it is acknowledged or lost."""
        if packet.is_ack_eliciting or packet.in_flight or len(space.sent_packets) < MOST_UNHEARD:
            super().on_packet_sent(packet=packet, space=space)

    def on_ack_received(self, *, ack_rangeset: Any, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """aioquic's, for what does not come the short way."""
        super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)
        self.probe_s = self.get_probe_timeout()

    def acknowledge(self, ranges: list[tuple[int, int]], ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        """An ACK frame of 1-RTT packets: on_ack_received for [start, stop) ranges, the smallest first."""
        largest = ranges[-1][1] - 1
        if largest > space.largest_acked_packet:
            space.largest_acked_packet = largest
        newest, eliciting = self._forget(ranges, now, space)
        if newest is None:
            return
        if newest.packet_number == largest and eliciting:
            self._measure(newest, ack_delay, now)
        self._detect_loss(now=now, space=space)
        if self.peer_completed_address_validation:
            self._pto_count = 0

    def _forget(
        self, ranges: list[tuple[int, int]], now: float, space: QuicPacketSpace
    ) -> tuple[QuicSentPacket | None, bool]:
        """Stop tracking what is acknowledged -> the newest of it, and whether any elicited an acknowledgement."""
        sent, control = space.sent_packets, self._cc
        newest, eliciting = None, False
        # A window that is not used says nothing of the path, and must not grow (RFC 9002 section 7.8).
        grows = self.held_back or 2 * control.bytes_in_flight >= control.congestion_window
        for number in _acknowledged(sent, ranges):
            newest = sent.pop(number)
            if type(newest) is not ShortPacket:
                self.stirred = True
            if newest.is_ack_eliciting:
                eliciting = True
                space.ack_eliciting_in_flight -= 1
            if newest.in_flight:
                if grows:
                    control.on_packet_acked(packet=newest, now=now)
                else:
                    control.bytes_in_flight -= newest.sent_bytes
            for handler, arguments in newest.delivery_handlers:
                handler(_ACKED, *arguments)
        return newest, eliciting

    def _measure(self, newest: QuicSentPacket, ack_delay: float, now: float) -> None:
        """One sample of the round trip (RFC 9002 section 5), as on_ack_received of aioquic takes it."""
        assert newest.sent_time is not None
        sample = now - newest.sent_time
        ack_delay = min(ack_delay, self.max_ack_delay)
        latest = max(sample, _LEAST_RTT_S)
        least = self._rtt_min = min(self._rtt_min, latest)
        if latest > least + ack_delay:
            latest -= ack_delay
        self._rtt_latest = latest
        if not self._rtt_initialized:
            self._rtt_first_sample_time = now
            self._rtt_initialized = True
            self._rtt_variance = sample / 2
            self._rtt_smoothed = sample
        else:
            self._rtt_variance = 0.75 * self._rtt_variance + 0.25 * abs(least - latest)
            self._rtt_smoothed = 0.875 * self._rtt_smoothed + 0.125 * latest
        self._cc.on_rtt_measurement(now=now, rtt=sample)
        self._pacer.update_rate(congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed)
        self.probe_s = self.get_probe_timeout()

    def _detect_loss(self, *, now: float, space: QuicPacketSpace) -> None:
        """Nothing can be lost when nothing older than the newest acknowledged packet is in flight."""
        for oldest in space.sent_packets:
            if oldest < space.largest_acked_packet:
                super()._detect_loss(now=now, space=space)
                return
            break
        space.loss_time = None

    def _on_packets_lost(
        self,
        *,
        congestion_event: bool = True,
        now: float,
        packets: Iterable[QuicSentPacket],
        persistent_congestion: bool = False,
        space: QuicPacketSpace,
    ) -> None:
        gone = tuple(packets)
        if not gone:
            return
        self.stirred = True
        super()._on_packets_lost(
            congestion_event=congestion_event,
            now=now,
            packets=gone,
            persistent_congestion=persistent_congestion,
            space=space,
        )


def _acknowledged(sent: dict[int, QuicSentPacket], ranges: list[tuple[int, int]]) -> list[int]:
    """Numbers of `sent` within the ranges. Both are in order, so one walk finds them."""
    start, stop = ranges[0]
    found: list[int] = []
    index, last = 0, len(ranges) - 1
    for number in sent:
        while number >= stop:
            if index == last:
                return found
            index += 1
            start, stop = ranges[index]
        if number >= start:
            found.append(number)
    return found

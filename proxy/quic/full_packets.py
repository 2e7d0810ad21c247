# SPDX-License-Identifier: Apache-2.0
"""Packets that one stream fills to the last byte, as nearly all of a long reply are, written in one loop.

What such packets have in common is asked once a burst instead of once a packet: keys, window, pacing, what else there
is to say. Streams still take turns packet by packet. Whatever is not so (a window to open, a FIN, a last piece) is left
to sending.py, which puts several things into one packet.
"""

from __future__ import annotations

from typing import Any

from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from proxy.quic.frames import STREAM, STREAM_OFFSET, varint
from proxy.quic.protection import PACKET_OVERHEAD, seal_packet
from proxy.quic.receiving import Receiving
from proxy.quic.recovery import ShortPacket

__all__ = ["FIRST_BYTE", "FullPackets"]

FIRST_BYTE = 0x41
"""Of a short header with a packet number of two bytes; spin bit and key phase are to be added."""
_AT_START, _FURTHER_ON = bytes((STREAM,)), bytes((STREAM | STREAM_OFFSET,))  # no length: its data ends with the packet


class FullPackets(Receiving):
    """A connection that writes bursts of stream data."""

    def _write_full_packets(self, sent: list[tuple[bytes, Any]], space: QuicPacketSpace, now: float) -> None:
        """As many as pacing and the congestion window allow now, until one is to be written that is not full."""
        keys, recovery, path = self._short_keys, self._recovery, self._network_paths[0]
        assert keys is not None
        control, due, cid = recovery._cc, self._due, self._peer_cid.cid
        size = self._max_datagram_size
        room = size - PACKET_OVERHEAD - len(cid)
        most = (control.congestion_window - control.bytes_in_flight) // size
        paced = recovery.pacer.allowance(now)
        left = most if paced is None else min(most, paced)
        first = FIRST_BYTE | self._spin_bit << 5 | keys.recv.key_phase << 2
        number, packets, delivered = self._packet_number, space.sent_packets, self._on_stream_delivery
        for written in range(left):
            if not due or (piece := self._full_piece(stream := next(iter(due)), room)) is None:
                left = written
                break
            frame, start, stop = piece
            sent.append((seal_packet(keys.send, first, cid, number, frame), path.addr))
            packets[number] = packet = ShortPacket(number, True, now, size, [(delivered, (stream, start, stop, False))])
            control.on_packet_sent(packet=packet)
            number += 1
            if len(due) > 1:
                del due[stream]
                due[stream] = None
        if left > 0:
            self._packet_number = number
            path.bytes_sent += left * size
            recovery.pacer.spend(left)
            self._sent_eliciting(space, left, now)

    def _full_piece(self, stream: QuicStream, room: int) -> tuple[bytes, int, int] | None:
        """A STREAM frame of `room` bytes, with the offsets that it is from and to, if it is not the stream's last."""
        sender = stream.sender
        ranges: list[range] = sender._pending._RangeSet__ranges  # type: ignore[attr-defined]
        if (
            not ranges
            or stream.max_stream_data_local_sent != stream.max_stream_data_local
            or stream.is_blocked
            or sender._reset_error_code is not None
        ):
            return None
        start, end = ranges[0].start, ranges[0].stop
        head = (
            (_FURTHER_ON + varint(stream.stream_id or 0) + varint(start))
            if start
            else (_AT_START + varint(stream.stream_id or 0))
        )
        stop = start + room - len(head)
        fresh = stop - sender.highest_offset
        if (
            stop >= end
            or stop > stream.max_stream_data_remote
            or fresh > self._remote_max_data - self._remote_max_data_used
        ):
            return None
        if fresh > 0:
            self._remote_max_data_used += fresh
            sender.highest_offset = stop
        ranges[0] = range(stop, end)
        base = sender._buffer_start
        return b"".join((head, sender._buffer[start - base : stop - base])), start, stop

    def _sent_eliciting(self, space: QuicPacketSpace, count: int, now: float) -> None:
        """So many packets went that the client has to acknowledge."""
        space.ack_eliciting_in_flight += count
        self._recovery._time_of_last_sent_ack_eliciting_packet = now
        if not self._ack_eliciting_sent_since_receipt:
            self._close_at = now + max(self._agreed_idle_s, 3 * self._recovery.probe_s)
            self._ack_eliciting_sent_since_receipt = True

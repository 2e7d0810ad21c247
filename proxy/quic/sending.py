# SPDX-License-Identifier: Apache-2.0
"""The short way of what a settled connection sends: acknowledgements, windows, datagrams and stream data.

aioquic's builder serves every kind of packet through a cursor object, and asks every stream several times a packet.
Here a packet is a list of byte strings, joined and sealed once. Handshakes, probes, connection ids, path validation,
resets, key updates and closing stay with aioquic's own code, which then writes all of that call's packets.
"""

from __future__ import annotations

import math
from typing import Any

from aioquic.quic.connection import END_STATES, Limit, QuicConnectionState
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from proxy.quic.configuration import QuicConfiguration
from proxy.quic.frames import STREAM, STREAM_FIN, STREAM_LENGTH, STREAM_OFFSET, ack_frame, varint
from proxy.quic.full_packets import FIRST_BYTE, FullPackets
from proxy.quic.protection import PACKET_OVERHEAD, seal_packet
from proxy.quic.recovery import MOST_UNHEARD, ShortPacket

__all__ = ["ACK_DELAY_S", "FORGOTTEN_EVERY_S", "PACKETS_OF_A_KEY", "Packet", "Sending"]

ACK_DELAY_S = 0.005
"""Longest wait of an acknowledgement for a reply to ride on; we advertise 25 ms (RFC 9000 section 18.2)."""
PACKETS_BEFORE_ACK = 2
"""A request is one packet, often with the acknowledgement of the last reply before it. More is an upload, which slows
down without acknowledgements (RFC 9000 section 13.2.2)."""
PACKETS_OF_A_KEY = 1 << 22
"""From which both sides go on to the next: AES-GCM protects 2^23 packets (RFC 9001 section 6.6), a quarter of an hour
of one busy connection, and aioquic does not count."""
FORGOTTEN_EVERY_S = 0.25
"""Connections that have ended are forgotten together: a wake-up for each costs more than what is then to be done. One
may linger for longer than its three probe timeouts (RFC 9000 section 10.2)."""
_CONNECTED = QuicConnectionState.CONNECTED
_PING = b"\x01"
_LEAST_PAYLOAD = 2  # header protection samples from 4 bytes behind the start of a number of 2


class Packet:
    """One packet on the way to be sealed. room: bytes that its frames may still take."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.frames: list[bytes] = []
        self.handlers: list[Any] = []

    def __repr__(self) -> str:
        return f"<Packet of {len(self.frames)} frames, room for {self.room} bytes>"

    def add(self, frame: bytes, handler: Any = None, arguments: Any = ()) -> bool:
        """Put a whole frame in, if it fits. handler: what hears whether it arrived."""
        if len(frame) > self.room:
            return False
        self.room -= len(frame)
        self.frames.append(frame)
        if handler is not None:
            self.handlers.append((handler, arguments))
        return True


class Sending(FullPackets):
    """A connection that writes ordinary packets itself."""

    def __init__(self, *, configuration: QuicConfiguration, original_destination_connection_id: bytes) -> None:
        super().__init__(
            configuration=configuration, original_destination_connection_id=original_destination_connection_id
        )
        self._ack_delay = ACK_DELAY_S
        self._largest_acknowledged = 0
        self._renew_keys_at = PACKETS_OF_A_KEY

    def quiet(self, now: float) -> bool:
        """Whether sending now would send nothing; a cheap look that saves building packets to find out.

        At one request in flight two of 3.5 wake-ups a request have nothing to say: the acknowledgement waits for its
        delay, and what the client acknowledged needs no answer. False whenever in doubt.
        """
        if self._state is not _CONNECTED and self._state in END_STATES:
            return True
        return self._ordinary() and not (self._acknowledgement_due(now) or self._has_frames())

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What there is to send. An acknowledgement that is waiting goes along: alone it would be one packet more."""
        space = self._short_space
        if self._ordinary() and space is not None:
            return self._short_packets(space, now)
        if space is not None and space.ack_at is not None and self._handshake_confirmed:
            space.ack_at = min(space.ack_at, now)
            self._largest_acknowledged = space.largest_received_packet
        self._queue_all_streams()
        return super().datagrams_to_send(now)

    def get_timer(self) -> float | None:
        """When handle_timer has to be called next."""
        space, recovery = self._short_space, self._recovery
        if space is None or self._close_at is None or not self._network_paths[0].is_validated:
            return super().get_timer()
        if self._state is not _CONNECTED:
            return math.ceil(self._close_at / FORGOTTEN_EVERY_S) * FORGOTTEN_EVERY_S
        lost_at = space.loss_time
        if lost_at is None and space.ack_eliciting_in_flight:
            lost_at = recovery._time_of_last_sent_ack_eliciting_packet + recovery.probe_s * (1 << recovery._pto_count)
        self._loss_at = lost_at
        at = self._close_at
        for each in (space.ack_at, lost_at, self._pacing_at):
            if each is not None and each < at:
                at = each
        return at

    def _ordinary(self) -> bool:
        """Whether everything that there is to send is of the kinds that the short way knows."""
        if self._look or self._recovery.stirred:
            self._look_at_streams()
        keys = self._short_keys
        return not (
            self._unusual
            or self._close_pending
            or self._ping_pending
            or self._probe_pending
            or keys is None
            or keys._update_key_requested
            or self._state is not _CONNECTED
        )

    def _has_frames(self) -> bool:
        """Whether anything but an acknowledgement may have to be said."""
        if self._due or self._datagrams_pending:
            return True
        if self._limits_moved:
            self._limits_moved = self._limits_due()
        return self._limits_moved

    def _limits_due(self) -> bool:
        if self._received.value != self._received.sent:
            return True
        bidi, uni = self._local_max_streams_bidi, self._local_max_streams_uni
        # MAX_STREAMS goes out as rarely as aioquic has it: with more new ones than the client has left to open.
        return bidi.sent - bidi.used < bidi.value - bidi.sent or uni.sent - uni.used < uni.value - uni.sent

    def _acknowledgement_due(self, now: float) -> bool:
        space = self._short_space
        if space is None or space.ack_at is None:
            return False
        return space.ack_at <= now or space.largest_received_packet - self._largest_acknowledged > PACKETS_BEFORE_ACK

    def _short_packets(self, space: QuicPacketSpace, now: float) -> list[tuple[bytes, Any]]:
        recovery, address = self._recovery, self._network_paths[0].addr
        pacer, control = recovery.pacer, recovery._cc
        overhead = PACKET_OVERHEAD + len(self._peer_cid.cid)
        sent: list[tuple[bytes, Any]] = []
        stalled: list[QuicStream] = []
        self._pacing_at = None
        recovery.held_back = False
        while True:
            must = self._acknowledgement_due(now)
            if not must and not self._has_frames():
                break
            paced_until = pacer.next_send_time(now=now)
            if paced_until is not None and not must:
                self._pacing_at = paced_until
                recovery.held_back = True
                break
            ack = b"" if space.ack_at is None else self._ack(space, now)
            most = min(self._max_datagram_size, control.congestion_window - control.bytes_in_flight)
            room = most - overhead if paced_until is None else 0
            packet = Packet(room - len(ack))
            self._fill(packet, stalled)
            if not packet.frames and ack and not must:
                ack, packet = b"", Packet(room)  # a datagram of the longest kind fits in alone
                self._fill(packet, stalled)
            if not packet.frames and not must:
                recovery.held_back = bool(self._due)  # what waits for the client's windows is in `stalled`
                break
            sent.append((self._seal(packet, space, ack, now), address))
            pacer.update_after_send(now=now)
            if self._due and space.ack_at is None and not self._datagrams_pending:
                self._write_full_packets(sent, space, now)
        for stream in stalled:
            self._due[stream] = None
        return sent

    def _fill(self, packet: Packet, stalled: list[QuicStream]) -> None:
        """Frames until the packet is full or nothing is left to say. stalled: streams without a window, passed over."""
        if self._limits_moved:
            self._write_limits(packet)
        datagrams = self._datagrams_pending
        while datagrams and packet.add(b"\x31" + varint(len(datagrams[0])) + datagrams[0]):
            datagrams.popleft()
        due = self._due
        while due:
            stream = next(iter(due))
            if not self._write_window(packet, stream) or not self._write_data(packet, stream, stalled):
                return

    def _write_limits(self, packet: Packet) -> None:
        received = self._received
        if received.value != received.sent:
            self._write_limit(packet, received)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            if limit.sent - limit.used < limit.value - limit.sent:  # as rarely as aioquic writes it
                self._write_limit(packet, limit)

    def _write_limit(self, packet: Packet, limit: Limit) -> None:
        frame = varint(limit.frame_type) + varint(limit.value)
        if packet.add(frame, self._on_connection_limit_delivery, (limit,)):
            limit.sent = limit.value

    def _write_window(self, packet: Packet, stream: QuicStream) -> bool:
        """MAX_STREAM_DATA, if it is due -> whether it was not kept out by a full packet."""
        window = stream.max_stream_data_local
        if stream.max_stream_data_local_sent == window:
            return True
        frame = b"\x11" + varint(stream.stream_id or 0) + varint(window)
        if not packet.add(frame, self._on_max_stream_data_delivery, (stream,)):
            return False
        stream.max_stream_data_local_sent = window
        return True

    def _write_data(self, packet: Packet, stream: QuicStream, stalled: list[QuicStream]) -> bool:
        """A stream's next bytes, as many as fit, and its turn is over -> whether the packet has room for others."""
        sender, due = stream.sender, self._due
        pending = sender._pending
        if not len(pending) and not sender._pending_eof:
            sender.buffer_is_empty = True
        if sender.buffer_is_empty or sender._reset_error_code is not None:
            del due[stream]
            return True
        start, stop = (
            (pending[0].start, pending[0].stop) if len(pending) else (sender._buffer_stop, sender._buffer_stop)
        )
        head = varint(stream.stream_id or 0) + (varint(start) if start else b"")
        room = packet.room - 3 - len(head)
        if room < (start < stop):  # a FIN alone needs no room for data
            return False
        del due[stream]
        allowed = min(
            sender.highest_offset + self._remote_max_data - self._remote_max_data_used, stream.max_stream_data_remote
        )
        end = max(start, min(stop, start + room, allowed))
        if stream.is_blocked or end == start < stop:
            stalled.append(stream)
            return True
        self._write_frame(packet, stream, head, start, end)
        if end == allowed < stop:
            stalled.append(stream)
        elif not sender.buffer_is_empty:
            due[stream] = None
        return packet.room > 0

    def _write_frame(self, packet: Packet, stream: QuicStream, head: bytes, start: int, end: int) -> None:
        sender, pending = stream.sender, stream.sender._pending
        if end > start:
            if pending[0].stop == end:
                pending.shift()  # it began at `start`
            else:
                pending.subtract(start, end)
            if end > sender.highest_offset:
                self._remote_max_data_used += end - sender.highest_offset
                sender.highest_offset = end
        fin = sender._buffer_fin == end
        if fin:
            sender._pending_eof = False
        if not len(pending) and not sender._pending_eof:
            sender.buffer_is_empty = True
        kind = STREAM | STREAM_LENGTH | (STREAM_OFFSET if start else 0) | (STREAM_FIN if fin else 0)
        base = sender._buffer_start
        frame = b"%c%b%b%b" % (
            kind,
            head,
            (end - start | 0x4000).to_bytes(2, "big"),
            bytes(sender._buffer[start - base : end - base]),
        )
        packet.add(frame, self._on_stream_delivery, (stream, start, end, fin))

    def _ack(self, space: QuicPacketSpace, now: float) -> bytes:
        assert space.largest_received_time is not None
        delay = max(0, int((now - space.largest_received_time) * 1_000_000)) >> self._local_ack_delay_exponent
        return ack_frame(space.ack_queue, delay)

    def _seal(self, packet: Packet, space: QuicPacketSpace, ack: bytes, now: float) -> bytes:
        """The datagram of a packet, which is in flight from now on."""
        keys = self._short_keys
        assert keys is not None
        number = self._packet_number
        eliciting = bool(packet.frames)
        if ack:
            space.ack_at = None
            self._largest_acknowledged = space.largest_received_packet
            packet.frames.insert(0, ack)
            packet.handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))
            if len(space.ack_queue) > 1 and number % 8 == 0 and packet.room > 0:
                packet.frames.append(_PING)  # the ranges are forgotten once their acknowledgement is acknowledged
                eliciting = True
        plain = b"".join(packet.frames)
        if len(plain) < _LEAST_PAYLOAD:
            plain += bytes(_LEAST_PAYLOAD - len(plain))
        first = FIRST_BYTE | self._spin_bit << 5 | keys.recv.key_phase << 2
        datagram = seal_packet(keys.send, first, self._peer_cid.cid, number, plain)
        self._packet_number = number + 1
        if number >= self._renew_keys_at:
            self._renew_keys_at = number + PACKETS_OF_A_KEY
            self.request_key_update()
        self._register(
            ShortPacket(number, eliciting, now, len(datagram), packet.handlers),
            space,
            now,
        )
        self._network_paths[0].bytes_sent += len(datagram)
        return datagram

    def _register(self, packet: ShortPacket, space: QuicPacketSpace, now: float) -> None:
        if not packet.is_ack_eliciting:
            if len(space.sent_packets) < MOST_UNHEARD:
                space.sent_packets[packet.packet_number] = packet
            return
        space.sent_packets[packet.packet_number] = packet
        self._recovery._cc.on_packet_sent(packet=packet)
        self._sent_eliciting(space, 1, now)

# SPDX-License-Identifier: Apache-2.0
"""The short way of a 1-RTT packet from a client whose handshake is over and that is where it was.

aioquic's receive_datagram serves every kind of packet, and most of its time goes to questions that such a packet
answers the same way each time. Whatever is not plain (a long header, another path, key phase or connection id, a frame
that is not one of the few below) goes to aioquic's own code, untouched or from the first such frame on.
"""

from __future__ import annotations

from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnectionError, QuicConnectionState, QuicReceiveContext
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import DatagramFrameReceived, QuicEvent, StreamDataReceived
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from proxy.quic import frames
from proxy.quic.configuration import MOST_GAPS, QuicConfiguration
from proxy.quic.protection import open_packet
from proxy.quic.streams import StreamKeeper

__all__ = ["Receiving"]

_SPIN = 0x20
_CONNECTED = QuicConnectionState.CONNECTED  # compared, not looked up in a set: an enum's hash is a call


class Receiving(StreamKeeper):
    """A connection that reads ordinary packets itself."""

    def __init__(self, *, configuration: QuicConfiguration, original_destination_connection_id: bytes) -> None:
        super().__init__(
            configuration=configuration, original_destination_connection_id=original_destination_connection_id
        )
        self._cid_end = 1 + configuration.connection_id_length
        # The same objects for the whole connection; a dictionary with an enum for a key hashes in Python.
        self._short_keys: CryptoPair | None = None
        self._short_space: QuicPacketSpace | None = None
        self._agreed_idle_s = configuration.idle_timeout
        self._newest: dict[int, StreamDataReceived] = {}
        """By stream, the event that more of it may still join."""
        self._pieces: dict[int, list[bytes]] = {}
        """And what has joined it, until somebody asks for events."""

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Take one datagram."""
        if not self._received_short(data, addr, now):
            self._look = True
            self._join_pieces()
            super().receive_datagram(data, addr, now)

    def next_event(self) -> QuicEvent | None:
        """aioquic's. What came of one stream since the last call is one event, however many packets brought it."""
        if self._newest:
            self._join_pieces()
        return self._events.popleft() if self._events else None

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._cryptos[Epoch.ZERO_RTT].recv.teardown()  # aioquic's: with the first 1-RTT packet (RFC 9001 section 4.9.3)
        if self._remote_max_idle_timeout is not None:
            self._agreed_idle_s = min(self._agreed_idle_s, self._remote_max_idle_timeout)
        self._recovery.probe_s = self._recovery.get_probe_timeout()
        if self._quic_logger is None:
            self._short_keys, self._short_space = self._cryptos[Epoch.ONE_RTT], self._spaces[Epoch.ONE_RTT]

    def _handle_padding_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """aioquic walks the thousand zeros of an Initial one by one, in a copy of all that follows."""
        at, end = buf.tell(), buf.capacity
        while at < end:
            ahead = buf.data_slice(at, min(at + frames.LOOK_AHEAD, end))
            zeros = frames.after_padding(ahead, 0)
            at += zeros
            if zeros < len(ahead):
                break
        buf.seek(at)

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """aioquic's, which lets a stream come in any number of pieces."""
        start = buf.tell()
        super()._handle_stream_frame(context, frame_type, buf)
        end = buf.tell()
        buf.seek(start)
        stream = self._streams.get(buf.pull_uint_var())
        buf.seek(end)
        if stream is not None and len(stream.receiver._ranges) > MOST_GAPS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.INTERNAL_ERROR,
                frame_type=frame_type,
                reason_phrase=f"a stream in more than {MOST_GAPS} pieces",
            )

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """aioquic's, which takes the acknowledgement of a packet that was never sent."""
        super()._handle_ack_frame(context, frame_type, buf)
        if self._spaces[context.epoch].largest_acked_packet > max(self._packet_number - 1, 0):
            raise _never_sent(frame_type)

    def _received_short(self, data: bytes, addr: Any, now: float) -> bool:
        """Whether this was an ordinary packet, and is done with."""
        keys, space = self._short_keys, self._short_space
        if keys is None or space is None or not data or data[0] & 0xC0 != 0x40:
            return False
        path = self._network_paths[0]
        if (
            not path.is_validated
            or path.addr != addr
            or data[1 : self._cid_end] != self.host_cid
            or self._close_pending
            or self._state is not _CONNECTED
        ):
            return False
        opened = open_packet(keys.recv, data, self._cid_end, space.expected_packet_number)
        if opened is None:
            return False
        first, number, plain = opened
        if number <= space.largest_received_packet and number in space.received_packets:
            return True
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        if number > self._spin_highest_pn:
            self._spin_bit = first & _SPIN != 0
            self._spin_highest_pn = number
        try:
            eliciting = self._take_frames(plain, now)
        except QuicConnectionError as error:
            self._logger.warning(error)
            self.close(error_code=error.error_code, frame_type=error.frame_type, reason_phrase=error.reason_phrase)
            return True
        if self._close_pending or self._state is not _CONNECTED:
            return True
        self._close_at = now + max(self._agreed_idle_s, 3 * self._recovery.probe_s)
        self._ack_eliciting_sent_since_receipt = False
        self._note(space, number, eliciting=eliciting, now=now)
        return True

    def _note(self, space: QuicPacketSpace, number: int, *, eliciting: bool, now: float) -> None:
        """Remember a packet number, for the acknowledgement and against duplicates."""
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.received_packets.add(number)
        queue = space.ack_queue
        ranges: list[range] = queue._RangeSet__ranges  # type: ignore[attr-defined]
        if ranges and ranges[-1].stop == number:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            queue.add(number)
            if len(ranges) > MAX_ACK_RANGES:
                queue.shift()
        if eliciting and space.ack_at is None:
            space.ack_at = now + self._ack_delay

    def _take_frames(self, plain: bytes, now: float) -> bool:
        """Every frame of a packet -> whether it elicits an acknowledgement. Raises QuicConnectionError."""
        at, end = 0, len(plain)
        eliciting = False
        while at < end:
            kind = plain[at]
            if kind & 0xF8 == frames.STREAM:
                after = self._take_stream(plain, at)
                eliciting = True
            elif kind == frames.ACK:
                after = self._take_ack(plain, at, now)
            elif kind == frames.PADDING:
                after = frames.after_padding(plain, at)
            elif kind == frames.PING:
                after = at + 1
                eliciting = True
            elif kind == frames.DATAGRAM or kind == frames.DATAGRAM_WITH_LENGTH:
                after = self._take_datagram(plain, at)
                eliciting = True
            else:
                after = 0
            if after == 0:
                break
            at = after
        if at < end or end == 0:
            eliciting |= self._take_rest(plain[at:], now)
        return eliciting

    def _take_rest(self, plain: bytes, now: float) -> bool:
        """The frames that aioquic has to judge, to the end of the packet."""
        self._look = True
        self._join_pieces()
        context = QuicReceiveContext(
            epoch=Epoch.ONE_RTT,
            host_cid=self.host_cid,
            network_path=self._network_paths[0],
            quic_logger_frames=None,
            time=now,
            version=None,
        )
        eliciting, _ = self._payload_received(context, plain)
        return eliciting

    def _take_stream(self, plain: bytes, at: int) -> int:
        """A STREAM frame that goes on where its stream stopped -> where it ends; 0: aioquic has to judge it."""
        frame = frames.read_stream(plain, at)
        if frame is None:
            return 0
        stream_id, offset, begin, end = frame
        stop = offset + end - begin
        if self._received.used + stop - offset > self._received.granted:
            return 0
        stream = self._streams.get(stream_id) or (None if offset else self._opened(stream_id))
        if stream is None or stop > stream.max_stream_data_local:
            return 0
        fin = plain[at] & frames.STREAM_FIN != 0
        receiver = stream.receiver
        if (
            receiver.highest_offset != offset
            or receiver._buffer_start != offset
            or receiver._final_size is not None
            or receiver.is_finished
            or not (fin or stop > offset)
        ):
            return 0
        receiver.highest_offset = receiver._buffer_start = stop
        self._received.used += stop - offset
        self._limits_moved = True
        if fin:
            self._received_all(stream, stop)
        event = self._newest.get(stream_id)
        if event is None:
            self._newest[stream_id] = event = StreamDataReceived(plain[begin:end], fin, stream_id)
            self._events.append(event)
        else:
            event.end_stream = fin
            pieces = self._pieces.get(stream_id)
            if pieces is None:
                self._pieces[stream_id] = [event.data, plain[begin:end]]
            else:
                pieces.append(plain[begin:end])
        return end

    def _join_pieces(self) -> None:
        """Before anybody takes an event, and before aioquic's own code adds one that comes after these."""
        for stream_id, pieces in self._pieces.items():
            self._newest[stream_id].data = b"".join(pieces)
        self._pieces.clear()
        self._newest.clear()

    def _received_all(self, stream: QuicStream, size: int) -> None:
        """Of a stream that is over now, what comes late is judged by its final size until something is sent, as aioquic
        does; then it is forgotten, and what comes still later is ignored (RFC 9000 sections 3.2 and 4.5)."""
        stream.receiver._final_size = size
        stream.receiver.is_finished = True
        self._look = self._look or stream.sender.is_finished

    def _take_ack(self, plain: bytes, at: int, now: float) -> int:
        ack = frames.read_ack(plain, at)
        if ack is None or self._short_space is None:
            return 0
        ranges, delay, end = ack
        if ranges[-1][1] > self._packet_number:
            raise _never_sent(frames.ACK)
        self._recovery.acknowledge(
            ranges, (delay << self._remote_ack_delay_exponent) / 1_000_000, now, self._short_space
        )
        if self._recovery.stirred:
            self._look = True
        return end

    def _take_datagram(self, plain: bytes, at: int) -> int:
        end = len(plain)
        begin = at + 1
        if plain[at] == frames.DATAGRAM_WITH_LENGTH:
            try:
                length, begin = frames.read_varint(plain, begin)
            except IndexError:
                return 0
            end = begin + length
        most = self._configuration.max_datagram_frame_size
        if most is None or end - at > most or end > len(plain):
            return 0
        self._events.append(DatagramFrameReceived(data=plain[begin:end]))
        return end


def _never_sent(frame_type: int) -> QuicConnectionError:
    """Whoever guesses numbers to be sent more, or sooner (RFC 9000 sections 13.1 and 21.4)."""
    return QuicConnectionError(
        error_code=QuicErrorCode.PROTOCOL_VIOLATION,
        frame_type=frame_type,
        reason_phrase="a packet was acknowledged that was not sent",
    )

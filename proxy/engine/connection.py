# SPDX-License-Identifier: Apache-2.0
"""The one door to aioquic's transport: a server connection with what 1.7.2 lacks, as overrides of its privates.

Every private name of aioquic 1.7.2 that we touch is in this room and in proxy/protocols/h3.py, and
tests/unit/proxy/engine holds them to their contract, so a new release fails there first.

What is added, with what it was measured against (raw aioquic 1.7.2):
- a stream's receive window follows consumption. Raw: windows double when data is *offered*, and six packets of
  216 bytes in all made the server allocate 33 MB (sparse offsets).
- a bounded datagram queue that refuses what cannot fit. Raw: one oversize datagram blocks the queue for ever.
- DATAGRAM is advertised under the ALPN that has a meaning for it, and no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aioquic.quic.connection import END_STATES, Limit, QuicConnection, QuicNetworkPath, stream_is_client_initiated
from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    ProtocolNegotiated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import (
    QuicFrameType,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch, ExtensionType

from proxy.engine.configuration import ALPN_NATIVE, STREAM_WINDOW, QuicConfiguration

__all__ = [
    "Connection",
    "ConnectionIdIssued",
    "ConnectionIdRetired",
    "ConnectionTerminated",
    "DatagramFrameReceived",
    "HandshakeCompleted",
    "ProtocolNegotiated",
    "QuicEvent",
    "StopSendingReceived",
    "StreamDataReceived",
    "StreamReset",
]

MAX_DATAGRAM_QUEUE = 256
ACK_DELAY_S = 0.005
"""Longest wait of an acknowledgement for a reply to ride on; we advertise 25 ms (RFC 9000 section 18.2)."""
PACKETS_BEFORE_ACK = 2
"""A request is one packet, often with the acknowledgement of the last reply before it. More is an upload, which slows
down without acknowledgements (RFC 9000 section 13.2.2)."""
FEW_STREAMS = 64
"""Half of the 128 that aioquic lets a client have open."""
# Short header without the client's id, 4-byte packet number, frame type and 2-byte length, 16-byte AEAD tag.
_DATAGRAM_OVERHEAD = 1 + 4 + 3 + 16
_MAX_STREAM_DATA_CAPACITY = 1 + 8 + 8
_UNANSWERED_PROBES = 3  # as many make congestion persistent: RFC 9002 section 7.6.1


class ReceivedLimit(Limit):
    """MAX_DATA as received + window, moved by half a window at a time. aioquic's own doubling is ignored."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._granted = window
        super().__init__(frame_type=QuicFrameType.MAX_DATA, name="max_data", value=window)

    @property
    def value(self) -> int:
        if self.used + self._window - self._granted >= self._window // 2:
            self._granted = self.used + self._window
        return self._granted

    @value.setter
    def value(self, _: int) -> None:
        """Only what has been received moves it."""


class Connection(QuicConnection):
    """A server's QUIC connection whose windows and datagrams are ours to decide."""

    def __init__(self, configuration: QuicConfiguration, original_destination_cid: bytes, *, datagrams: bool) -> None:
        # A copy: the ALPN decides below whether this connection advertises DATAGRAM.
        super().__init__(
            configuration=replace(configuration),
            original_destination_connection_id=original_destination_cid,
        )
        self._datagrams = datagrams
        self._local_max_data = ReceivedLimit(configuration.max_data)
        self._ack_delay = ACK_DELAY_S
        self._largest_acknowledged = 0
        self._consumed: dict[int, int] = {}
        self.datagrams_dropped = 0

    def consume(self, stream_id: int, count: int) -> bool:
        """The application took `count` bytes of a stream -> whether a window frame is due (so: flush)."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            self._consumed.pop(stream_id, None)
            return False
        if len(self._consumed) > 2 * len(self._streams):  # streams that ended by a reset, or by a FIN alone
            self._consumed = {each: n for each, n in self._consumed.items() if each in self._streams}
        self._consumed[stream_id] = consumed = self._consumed.get(stream_id, 0) + count
        if consumed + STREAM_WINDOW - stream.max_stream_data_local < STREAM_WINDOW // 2:
            return False
        stream.max_stream_data_local = consumed + STREAM_WINDOW
        return True

    def quiet(self, now: float) -> bool:
        """Whether sending now would send nothing; a cheap look that saves building packets to find out.

        At one request in flight two of 3.5 wake-ups a request have nothing to say: the acknowledgement waits for its
        delay, and what the client acknowledged needs no answer. False whenever in doubt.
        """
        path = self._network_paths[0]
        return not (
            not self._handshake_confirmed
            or self._close_pending
            or self._datagrams_pending
            or self._ping_pending
            or self._probe_pending
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or len(self._network_paths) > 1
            or not path.is_validated
            or path.remote_challenges
            or self._acknowledgement_due(now)
            or self._local_max_data.value != self._local_max_data.sent
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or any(not each.was_sent for each in self._host_cids)
            or self._streams_due()
        )

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Nothing happens on a stream that the client has stopped, or that is gone: aioquic raises there."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.sender._reset_error_code is None:
                super().send_stream_data(stream_id, data, end_stream)
        elif not stream_is_client_initiated(stream_id):
            super().send_stream_data(stream_id, data, end_stream)  # opens a stream of ours

    def replied(self, stream_id: int) -> bool:
        """Whether everything that will be sent on a stream has been written to it."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender._buffer_fin is not None

    def stop_sending(self, stream_id: int, error_code: int) -> None:
        """Reset our half of a stream, if it is not finished."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self.reset_stream(stream_id, error_code)

    def stop_receiving(self, stream_id: int, error_code: int) -> None:
        """Ask for no more of the client's half of a stream, if it is not finished."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self.stop_stream(stream_id, error_code)

    def buffered(self, stream_id: int) -> int:
        """Bytes written to a stream and not acknowledged yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    @property
    def all_acknowledged(self) -> bool:
        """Whether every byte written to a request's stream has arrived."""
        return all(
            stream.sender.is_finished or stream.sender._buffer_stop == stream.sender._buffer_start
            for stream_id, stream in self._streams.items()
            if stream_id % 4 == 0
        )

    @property
    def silent(self) -> bool:
        """Whether so many probes in a row stayed without an answer that the client is taken to be gone."""
        return self._loss._pto_count >= _UNANSWERED_PROBES

    @property
    def validated_address(self) -> Any:
        """The newest of the client's addresses that has proved itself; None before the handshake has."""
        return next((path.addr for path in self._network_paths if path.is_validated), None)

    @property
    def ending(self) -> bool:
        """Whether either side has closed the connection, though it lingers for late packets."""
        return self._state in END_STATES

    @property
    def round_trip_s(self) -> float | None:
        """Smoothed round-trip time (RFC 9002 section 5.3), None before the first sample."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    @property
    def established(self) -> bool:
        """Whether the handshake is complete."""
        return self._handshake_complete

    @property
    def datagram_capacity(self) -> int:
        """Largest datagram that the peer and one packet take; 0: the peer takes none."""
        peer = self._remote_max_datagram_frame_size or 0
        overhead = _DATAGRAM_OVERHEAD + len(self._peer_cid.cid)
        return max(0, min(peer - 3, self._max_datagram_size - overhead))

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a datagram; the oldest leaves a full queue, for newer inference answers are worth more."""
        if len(data) > self.datagram_capacity:
            self.datagrams_dropped += 1
            return
        if len(self._datagrams_pending) >= MAX_DATAGRAM_QUEUE:
            self._datagrams_pending.popleft()
            self.datagrams_dropped += 1
        self._datagrams_pending.append(data)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """What there is to send. An acknowledgement that is waiting goes along: alone it would be one packet more."""
        space = self._spaces.get(Epoch.ONE_RTT)
        if space is not None and space.ack_at is not None and self._handshake_confirmed:
            space.ack_at = min(space.ack_at, now)
            self._largest_acknowledged = space.largest_received_packet
        return super().datagrams_to_send(now)

    def _acknowledgement_due(self, now: float) -> bool:
        space = self._spaces[Epoch.ONE_RTT]
        if space.ack_at is None:
            return False
        return space.ack_at <= now or space.largest_received_packet - self._largest_acknowledged > PACKETS_BEFORE_ACK

    def _streams_due(self) -> bool:
        finished = 0
        for stream in self._streams_queue:
            sender = stream.sender
            if sender.is_finished and stream.receiver.is_finished:
                finished += 1
            elif (
                not sender.buffer_is_empty
                or sender.reset_pending
                or stream.receiver.stop_pending
                or stream.max_stream_data_local_sent != stream.max_stream_data_local
            ):
                return True
        # Sending is also when finished streams are let go and the client may open others: in time, not at once.
        limit = self._local_max_streams_bidi
        openable = limit.sent - limit.used
        return (
            openable < limit.value - limit.sent or finished > FEW_STREAMS or (finished > 0 and openable < FEW_STREAMS)
        )

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """aioquic looks at every stream several times a packet: those with nothing to say are kept from it meanwhile.
        They come back behind those that wait for room and those that have just sent, so that each gets its turn."""
        due, idle = list[QuicStream](), list[QuicStream]()
        for stream in self._streams_queue:
            out = stream.sender
            said = out.buffer_is_empty and not (out.reset_pending or stream.receiver.stop_pending or out.is_finished)
            (idle if said else due).append(stream)
        self._streams_queue = due
        try:
            super()._write_application(builder, network_path, now)
        finally:
            self._streams_queue += idle

    def _alpn_handler(self, alpn_protocol: str) -> None:
        if alpn_protocol == ALPN_NATIVE and self._datagrams:
            self._configuration.max_datagram_frame_size = 65535
            parameters = self._serialize_transport_parameters()
            self.tls.handshake_extensions = [(ExtensionType.QUIC_TRANSPORT_PARAMETERS, parameters)]
        super()._alpn_handler(alpn_protocol)

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        buffer = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=_MAX_STREAM_DATA_CAPACITY,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None  # only TLS's own streams have none, and they have no limits
        buffer.push_uint_var(stream.stream_id)
        buffer.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

# SPDX-License-Identifier: Apache-2.0
"""The one door to aioquic's transport: a server connection with what 1.7.2 lacks, as overrides of its privates.

Every private name of aioquic 1.7.2 that we touch is in this room and in proxy/protocols/h3.py, and
tests/unit/proxy/quic holds them to their contract, so a new release fails there first.

What is added, with what it was measured against (raw aioquic 1.7.2):
- a stream's receive window follows consumption. Raw: windows double when data is *offered*, and six packets of
  216 bytes in all made the server allocate 33 MB (sparse offsets).
- a bounded datagram queue that refuses what cannot fit. Raw: one oversize datagram blocks the queue for ever.
- DATAGRAM is advertised under the ALPN that has a meaning for it, and no other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aioquic.quic.connection import END_STATES, QuicConnectionState, stream_is_client_initiated
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
from aioquic.tls import ExtensionType

from proxy.keys import Keys
from proxy.quic.configuration import ALPN_NATIVE, STREAM_WINDOW, QuicConfiguration
from proxy.quic.connection_ids import ConnectionIds
from proxy.quic.handshake import Opening
from proxy.quic.identity import Identified, Identity
from proxy.quic.sending import Sending
from proxy.quic.untaken import Untaken

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
# Short header without the client's id, 4-byte packet number, frame type and 2-byte length, 16-byte AEAD tag.
_DATAGRAM_OVERHEAD = 1 + 4 + 3 + 16
_MAX_STREAM_DATA_CAPACITY = 1 + 8 + 8
_UNANSWERED_PROBES = 3  # as many make congestion persistent: RFC 9002 section 7.6.1


def _nothing_to_send() -> None:
    """Of a connection that has ended."""


class Connection(Sending, Opening, Identified):
    """A server's QUIC connection whose windows and datagrams are ours to decide.

    retry_source_cid, retried_from: where it begins behind a Retry of ours, the id that this gave the client, and the
    address that has shown its token.
    """

    def __init__(
        self,
        configuration: QuicConfiguration,
        original_destination_cid: bytes,
        *,
        datagrams: bool,
        identity: Identity | None = None,
        retry_source_cid: bytes | None = None,
        retried_from: Any = None,
    ) -> None:
        # A copy: the ALPN decides below whether this connection advertises DATAGRAM.
        super().__init__(
            configuration=replace(configuration),
            original_destination_connection_id=original_destination_cid,
        )
        self.identify(identity or Identity(ConnectionIds(), Keys.fresh(), configuration), retry_source_cid)
        self._retried_from = retried_from
        self._datagrams = datagrams
        self._consumed: dict[int, int] = {}
        self._untaken = Untaken()
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
        self._due[stream] = None
        return True

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        """Nothing happens on a stream that the client has stopped, or that is gone: aioquic raises there."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.sender._reset_error_code is None:
                stream.sender.write(data, end_stream)
                self._due[stream] = None
        elif not stream_is_client_initiated(stream_id):
            super().send_stream_data(stream_id, data, end_stream)  # opens a stream of ours
            self._look = True

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
        """Whether every byte written to a request's stream has arrived, and every datagram, or is lost for good."""
        return not self._datagrams_on_their_way and all(
            stream.sender.is_finished or stream.sender._buffer_stop == stream.sender._buffer_start
            for stream_id, stream in self._streams.items()
            if stream_id % 4 == 0
        )

    def let_go_of_untaken(self, now: float, error_code: int) -> int:
        """Reset the streams whose whole replies stood still for too long -> how many."""
        late = self._untaken.look(
            (
                (stream_id, stream.sender._buffer_start)
                for stream_id, stream in self._streams.items()
                if stream.sender._buffer_fin is not None
                and stream.sender._reset_error_code is None
                and not stream.sender.is_finished
            ),
            now,
        )
        for stream_id in late:
            self.stop_sending(stream_id, error_code)
        return len(late)

    @property
    def _datagrams_on_their_way(self) -> bool:
        """Or anything else of a connection that may have them: what a packet carries is not looked at."""
        has_them = self._configuration.max_datagram_frame_size is not None
        return bool(self._datagrams_pending) or (has_them and self._loss.bytes_in_flight > 0)

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

    def let_go(self) -> None:
        """The connection closes, or has ended: free what nobody will read. aioquic's connections refer to themselves,
        so that only a full garbage collection would, thousands of connections later."""
        for stream in self._streams.values():
            stream.sender._buffer.clear()
            stream.receiver._buffer.clear()
        self._datagrams_pending.clear()
        if self._state is QuicConnectionState.TERMINATED:
            self._QuicConnection__frame_handlers.clear()  # type: ignore[attr-defined]
            self._loss._send_probe = _nothing_to_send
            vars(self.tls).clear()

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

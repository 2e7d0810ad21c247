# SPDX-License-Identifier: Apache-2.0
"""Which streams have something to say, and windows that follow consumption.

aioquic looks at every open stream several times a packet. Here a stream is marked when it gets something to say, so
that a packet costs the same beside one open stream and beside hundreds. What happens inside aioquic's own code asks
for one look at all streams instead of a mark (`look`).
"""

from __future__ import annotations

from aioquic._buffer import Buffer
from aioquic.quic.connection import Limit, QuicConnection, QuicNetworkPath, QuicReceiveContext
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from proxy.quic.configuration import QuicConfiguration
from proxy.quic.recovery import Recovery

__all__ = ["ReceivedLimit", "StreamKeeper"]


class ReceivedLimit(Limit):
    """MAX_DATA as received + window, moved by half a window at a time. aioquic's own doubling is ignored.

    Received is what came in order. A byte far behind a gap takes as much memory as the gap, for one packet: with 128
    streams 32 MiB of a connection, if each stream's own window were all that bounds it.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self.missing = 0
        """Bytes from the ends of what came in order to the furthest that came, of all streams."""
        self.granted = window
        super().__init__(frame_type=QuicFrameType.MAX_DATA, name="max_data", value=window)

    @property
    def value(self) -> int:
        furthest = self.used - self.missing + self._window
        if furthest - self.granted >= self._window // 2:
            self.granted = furthest
        return self.granted

    @value.setter
    def value(self, _: int) -> None:
        """Only what has been received moves it."""


class StreamKeeper(QuicConnection):
    """A connection that knows which of its streams have something to say."""

    def __init__(self, *, configuration: QuicConfiguration, original_destination_connection_id: bytes) -> None:
        super().__init__(
            configuration=configuration, original_destination_connection_id=original_destination_connection_id
        )
        self._received = self._local_max_data = ReceivedLimit(configuration.max_data)
        self._recovery = self._loss = Recovery(
            congestion_control_algorithm=configuration.congestion_control_algorithm,
            initial_rtt=configuration.initial_rtt,
            max_datagram_size=self._max_datagram_size,
            peer_completed_address_validation=True,  # as a server's always is
            quic_logger=self._quic_logger,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self._due: dict[QuicStream, None] = {}
        """Streams that may have something to say, in the order of their turns."""
        self._look = False
        """Whether aioquic's own code has run, so that all streams have to be looked at first."""
        self._unusual = True
        """Whether there may be something to write that aioquic's own code writes."""
        self._limits_moved = True
        """Whether a limit of the client's may have to be raised."""

    def reset_stream(self, stream_id: int, error_code: int) -> None:
        """aioquic's, and marks the stream. What nobody will get is not kept until the reset is acknowledged."""
        super().reset_stream(stream_id, error_code)
        sender = self._streams[stream_id].sender
        if sender._reset_error_code is not None:
            sender._buffer.clear()
            sender._buffer_start = sender._buffer_stop
        self._look = True

    def stop_stream(self, stream_id: int, error_code: int) -> None:
        """aioquic's, and marks the stream."""
        super().stop_stream(stream_id, error_code)
        self._look = True

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id, gap = self._gap(buf)
        super()._handle_stream_frame(context, frame_type, buf)
        self._received.missing += self._gap_of(stream_id) - gap

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id, gap = self._gap(buf)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        self._received.missing += self._gap_of(stream_id) - gap

    def _gap(self, buf: Buffer) -> tuple[int, int]:
        """The stream of a frame that begins with its number, and what `_gap_of` says of it."""
        begin = buf.tell()
        stream_id = buf.pull_uint_var()
        buf.seek(begin)
        return stream_id, self._gap_of(stream_id)

    def _gap_of(self, stream_id: int) -> int:
        """How much of a stream lies behind a gap, the gap included. Of one that was reset nothing is waited for."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            return 0
        return stream.receiver.highest_offset - stream.receiver._buffer_start

    def _look_at_streams(self) -> None:
        """Let finished streams go, and mark those that have something to say; turns are kept."""
        self._look = self._recovery.stirred = False
        self._limits_moved = True
        self._unusual = self._rarities()
        self._streams_queue.clear()
        for stream in list(self._streams.values()):
            sender, receiver = stream.sender, stream.receiver
            if sender.is_finished and receiver.is_finished:
                self._discard(stream)
            elif sender.reset_pending or receiver.stop_pending:
                self._unusual = True
                self._due[stream] = None
            elif not sender.buffer_is_empty or stream.max_stream_data_local_sent != stream.max_stream_data_local:
                self._due[stream] = None

    def _rarities(self) -> bool:
        """Whether something is to be written that comes of aioquic's own code alone, streams aside."""
        path = self._network_paths[0]
        return bool(
            not self._handshake_confirmed
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or (len(self._network_paths) > 1 and any(map(_has_probes, self._network_paths[1:])))
            or not path.is_validated
            or path.remote_challenges
            or not self._crypto_streams[Epoch.ONE_RTT].sender.buffer_is_empty
            or not all(each.was_sent for each in self._host_cids)
        )

    def _queue_all_streams(self) -> None:
        """Before aioquic's own code writes: all streams, those with something to say in the order of their turns."""
        due = [stream for stream in self._due if stream.stream_id in self._streams]
        self._streams_queue = due + [each for each in self._streams.values() if each not in self._due]
        self._look = True

    def _discard(self, stream: QuicStream) -> None:
        """A stream that is over on both sides; the client may open one more (RFC 9000 section 4.6)."""
        assert stream.stream_id is not None  # only TLS's own streams have none
        if self._streams.pop(stream.stream_id, None) is not None and stream.stream_id % 2 == 0:
            self._stream_limit(stream.stream_id).value += 1
            self._limits_moved = True
        self._due.pop(stream, None)

    def _opened(self, stream_id: int) -> QuicStream | None:
        """The next request stream of the client, opened by its first frame. None: aioquic has to judge the frame."""
        limit = self._local_max_streams_bidi
        if stream_id != 4 * limit.used or limit.used >= limit.value:
            return None
        limit.used += 1
        self._limits_moved = True
        stream = self._streams[stream_id] = QuicStream(
            stream_id=stream_id,
            max_stream_data_local=self._local_max_stream_data_bidi_remote,
            max_stream_data_remote=self._remote_max_stream_data_bidi_local,
        )
        return stream

    def _on_stream_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool
    ) -> None:
        """A STREAM frame of ours was acknowledged or lost: mostly the oldest bytes, which go from the buffer."""
        sender = stream.sender
        if delivery is not QuicDeliveryState.ACKED:
            sender.on_data_delivery(delivery, start, stop, fin)
            self._due[stream] = None
            return
        if sender._buffer_start != start or sender._reset_error_code is not None or len(sender._acked):
            sender.on_data_delivery(delivery, start, stop, fin)
        else:
            del sender._buffer[: stop - start]
            sender._buffer_start = stop
            sender._acked_fin = sender._acked_fin or fin
            if sender._acked_fin and stop == sender._buffer_fin:
                sender.is_finished = True
        if sender.is_finished and stream.receiver.is_finished:
            self._discard(stream)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        self._look = self._look or delivery is not QuicDeliveryState.ACKED


def _has_probes(path: QuicNetworkPath) -> bool:
    """Whether something is to be said on a path beside the one in use. One that the client has left stays for good."""
    return bool(path.remote_challenges) or not (path.is_validated or path.local_challenge_sent)

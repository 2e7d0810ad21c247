# SPDX-License-Identifier: Apache-2.0
"""Inference datagrams, over UDP or inside one QUIC connection: exchanges in, walks started, replies out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

from backends.body import Body
from backends.messages import Pieces, Reply
from inferlane.errors import Reason, Refused
from inferlane.wire import MAX_DATAGRAM, MAX_FRAGMENTS
from proxy.arrival import Answered, Walk
from proxy.listeners.exchanges import Exchanges
from proxy.listeners.quic import Peer
from proxy.protocols.answers import problem
from proxy.protocols.cookies import CookieJar
from proxy.protocols.holdings import Holdings, Key
from proxy.protocols.inference import Cancelled, Dropped, InferenceServer, Message, Send
from proxy.protocols.native import error_header, inference, reply_header
from qos.timeline import Timeline

__all__ = ["DatagramExchanges"]

SendBack = Callable[[bytes, Hashable, str | None, int], None]
"""A datagram, the peer it goes to, the class of its request once it has one, and the DSCP that came."""


class DatagramExchanges:
    """The inference datagrams of one socket, or of one QUIC connection.

    transport: "udp" or "datagram". cookies: None where the transport has proved the address. connection: the QUIC
    connection whose one mark all of them ride. holdings: shared with the listener's others.
    """

    def __init__(  # noqa: PLR0913  one line each at its single caller
        self,
        walk: Walk,
        send: SendBack,
        *,
        transport: str,
        listener: str,
        clock: Callable[[], float],
        counts: Counter[str],
        cookies: CookieJar | None,
        max_datagram: int = MAX_DATAGRAM,
        connection: Peer | None = None,
        holdings: Holdings | None = None,
    ) -> None:
        self.connection = connection
        self._server = InferenceServer(cookies=cookies, max_datagram=max_datagram, holdings=holdings)
        self._exchanges = Exchanges(walk)
        self._send = send
        self._transport = transport
        self._listener = listener
        self._clock = clock
        self._counts = counts

    def __repr__(self) -> str:
        return f"<DatagramExchanges {len(self._exchanges)} in flight, {self._server!r}>"

    @property
    def idle(self) -> bool:
        return not self._exchanges

    def receive(self, datagram: bytes, peer: Hashable, *, client: str, dscp: int, rtt_s: float | None = None) -> None:
        """One datagram, with what its transport knows of it."""
        now = self._clock()
        match self._server.receive(datagram, peer, now):
            case Message() as message:
                self._begin(message, client, dscp, Timeline(message.began, rtt_s=rtt_s))
            case Send(datagrams, class_name):
                if self._spares(datagrams, class_name):
                    self.send(datagrams, peer, class_name, dscp)
                else:
                    self._counts["policed"] += 1
            case Cancelled(key):
                self._exchanges.cancel(key)
            case Dropped(reason):
                self._counts[reason] += 1

    def send(self, datagrams: list[bytes], peer: Hashable, class_name: str | None, dscp: int) -> None:
        """Datagrams back to a peer."""
        for each in datagrams:
            self._send(each, peer, class_name, dscp)

    def cancel_all(self) -> None:
        """The peer, or the socket, is gone."""
        self._exchanges.cancel_all()
        self._server.close()

    def _spares(self, datagrams: list[bytes], class_name: str | None) -> bool:
        """Whether a kept reply may go once more."""
        if self.connection is None or class_name is None:
            return True
        return self.connection.spares(class_name, sum(map(len, datagrams)))

    def _begin(self, message: Message, client: str, dscp: int, timeline: Timeline) -> None:
        arrival = inference(
            message.header,
            Body.of(message.body),
            transport=self._transport,
            listener=self._listener,
            client=client,
            dscp=dscp,
            timeline=timeline,
        )
        responder = _Responder(self, self._server, message.key)
        self._exchanges.start(message.key, arrival, responder, ended=lambda: self._server.forget(message.key))


class _Responder:
    """The way back of one exchange."""

    def __init__(self, exchanges: DatagramExchanges, server: InferenceServer, key: Key) -> None:
        self._exchanges = exchanges
        self._server = server
        self._key = key

    def judged(self, answered: Answered) -> None:
        if self._exchanges.connection is not None:
            self._exchanges.connection.judged(answered.traffic_class)

    async def reply(self, reply: Reply, answered: Answered) -> None:
        body = reply.body if isinstance(reply.body, bytes) else await _gather(reply.body)
        answered.bytes_out = len(body)
        class_name = answered.traffic_class.name
        if self._exchanges.connection is not None:
            await self._exchanges.connection.admit(class_name, len(body))
        header = reply_header(self._key[1], reply, answered, length=len(body))
        self._send(self._server.answer(self._key, header, body), answered)

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        header = error_header(self._key[1], refusal, answered)
        document = problem(refusal, answered.arrival.request_id)
        self._send(self._server.refuse(self._key, header, document), answered)

    def _send(self, datagrams: list[bytes], answered: Answered) -> None:
        self._exchanges.send(datagrams, self._key[0], answered.traffic_class.name, answered.arrival.dscp)


async def _gather(pieces: Pieces) -> bytes:
    """A piecewise body as a whole, as far as datagrams can carry one."""
    body, most = bytearray(), MAX_FRAGMENTS * MAX_DATAGRAM
    async for piece in pieces:
        body += piece
        if len(body) > most:
            raise Refused(Reason.USE_STREAM, f"the answer is longer than {most} bytes; ask over quic:// or https://")
    return bytes(body)

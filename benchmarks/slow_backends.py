# SPDX-License-Identifier: Apache-2.0
"""Servers that take one request at a time and a fixed time for each, as a GPU does: several ports of one process.

What comes meanwhile waits inside, first come first served, as in most model servers; a request whose connection was
closed before its turn is passed over.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import deque
from functools import partial

import httptools

_ANSWER = b'{"model_name":"m","outputs":[]}'
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_ANSWER), _ANSWER)


class SlowServer:
    """One port. slots: requests at once; service_s: what each takes; hung: takes them and never answers."""

    def __init__(self, *, slots: int, service_s: float, hung: bool = False) -> None:
        self._slots = slots
        self._service_s = service_s
        self._hung = hung
        self._waiting: deque[SlowConnection] = deque()
        self._busy = 0
        self.served = 0

    def ask(self, connection: SlowConnection) -> None:
        """One more request."""
        self._waiting.append(connection)
        self._start()

    def _start(self) -> None:
        while self._waiting and self._busy < self._slots:
            connection = self._waiting.popleft()
            if connection.gone:
                continue
            self._busy += 1
            if not self._hung:
                asyncio.get_running_loop().call_later(self._service_s, self._done, connection)

    def _done(self, connection: SlowConnection) -> None:
        self._busy -= 1
        self.served += 1
        connection.answer(_REPLY)
        self._start()


class SlowConnection(asyncio.Protocol):
    """One HTTP/1.1 connection. GET is answered at once: it asks for health."""

    def __init__(self, server: SlowServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True

    def on_message_complete(self) -> None:
        """httptools: a request is whole."""
        if self._parser.get_method() == b"GET":
            self.answer(_REPLY)
        else:
            self._server.ask(self)

    def answer(self, reply: bytes) -> None:
        """Send it, if anybody is left."""
        if self._transport is not None and not self.gone:
            self._transport.write(reply)


async def serve(first_port: int, count: int, *, slots: int, service_s: float, hung: int) -> None:
    """`count` servers on consecutive ports, the first `hung` of them silent, until the process ends."""
    loop = asyncio.get_running_loop()
    for index in range(count):
        server = SlowServer(slots=slots, service_s=service_s, hung=index < hung)
        await loop.create_server(partial(SlowConnection, server), "127.0.0.1", first_port + index, backlog=4096)
    await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--first-port", type=int, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--service-ms", type=float, default=50)
    parser.add_argument("--hung", type=int, default=0)
    arguments = parser.parse_args()
    asyncio.run(
        serve(
            arguments.first_port,
            arguments.count,
            slots=arguments.slots,
            service_s=arguments.service_ms / 1e3,
            hung=arguments.hung,
        )
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""A model server that speaks tokens: a stream of server-sent events at a fixed gap, each stamped when it is sent.

POST anything with `max_tokens` in its JSON body; GET is answered at once, for health. The stamp is `sent_ns` of each
event, the machine's real-time clock, which the kernel's receive stamps of `token_load.py` share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from functools import partial

import httptools

__all__ = ["TOKEN"]

TOKEN = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"text":" token","finish_reason":null}],"sent_ns":%d}\n\n'
)
_DONE = b"data: [DONE]\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_WELL = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class TokenConnection(asyncio.Protocol):
    """One HTTP/1.1 connection, one stream at a time. gap_s: before each token, the first one too."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._body = bytearray()
        self._left = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def on_body(self, data: bytes) -> None:
        """httptools: a part of a request's body."""
        self._body += data

    def on_message_complete(self) -> None:
        """httptools: a request is whole."""
        assert self._transport is not None
        if self._parser.get_method() == b"GET":
            self._transport.write(_WELL)
            return
        self._left = int(json.loads(self._body)["max_tokens"])
        self._body.clear()
        self._transport.write(_HEAD)
        self._due = time.monotonic()
        self._next()

    def _next(self) -> None:
        # From when the last one was due: a late timer must not stretch the stream.
        self._due += self._gap_s
        self._timer = asyncio.get_running_loop().call_at(self._due, self._send)

    def _send(self) -> None:
        if self._transport is None:
            return
        self._left -= 1
        self._transport.write(_chunk(TOKEN % time.time_ns()))
        if self._left:
            self._next()
        else:
            self._transport.write(_chunk(_DONE) + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(port: int, gap_s: float) -> None:
    """Until the process ends."""
    loop = asyncio.get_running_loop()
    await loop.create_server(partial(TokenConnection, gap_s), "127.0.0.1", port, backlog=4096)
    await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-ms", type=float, default=20)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.gap_ms / 1e3))


if __name__ == "__main__":
    main()

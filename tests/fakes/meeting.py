# SPDX-License-Identifier: Apache-2.0
"""An upstream whose guests wait for one another: proof that requests are in flight together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes.programs import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where it listens, and how many must come before the first is answered."""

    port: int
    guests: int


@contextmanager
def meeting(guests: int) -> Iterator[Meeting]:
    """An HTTP/1.1 server that answers each request with its own body, as soon as so many are there."""
    together = threading.Barrier(guests, timeout=PATIENCE_S)

    class Answering(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                together.wait()
                self.send_response(200)
            except threading.BrokenBarrierError:
                self.send_response(500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Standard error is for failures."""

    class Listening(ThreadingHTTPServer):
        request_queue_size = guests  # the default, 5, drops the sixth that connects at once
        daemon_threads = True

    server = Listening(("127.0.0.1", 0), Answering)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        yield Meeting(port=server.server_address[1], guests=guests)
    finally:
        together.abort()
        server.shutdown()
        server.server_close()
        serving.join(PATIENCE_S)

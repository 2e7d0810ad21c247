# SPDX-License-Identifier: Apache-2.0
"""An admin socket with a pool behind it, in a thread of its own, for the commands that ask it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from backends.pool import Pool
from proxy.control import Control
from proxy.endpoints import Endpoints
from tests.fakes.fleet import PATIENCE_S, watched_pool


@contextmanager
def control_running(path: Path, *endpoints: str) -> Iterator[Pool]:
    """Serve a pool `digits` with these endpoints at `path`."""
    pool, _ = watched_pool(*endpoints)
    loop = asyncio.new_event_loop()
    running = Control(path, Endpoints([pool], changed=lambda _: None))
    loop.run_until_complete(running.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield pool
    finally:
        asyncio.run_coroutine_threadsafe(running.close(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


@contextmanager
def answer_once(body: bytes, *, status: int = 200) -> Iterator[int]:
    """A TCP port that answers one request so."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.timeout = PATIENCE_S
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_port
        thread.join(PATIENCE_S)

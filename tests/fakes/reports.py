# SPDX-License-Identifier: Apache-2.0
"""Reports on promises, and an admin port that tells one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from qos.promise import Breach, Part, Promise, Refusals, Report, Spent

__all__ = ["BROKEN", "KEPT", "admin_port"]

_PROMISE = Promise(
    traffic_class="realtime",
    pool="magika",
    deadline_s=0.05,
    kept=998,
    missed=2,
    refused=3,
    holds=False,
    whole=Spent(median_s=0.0123, p99_s=1.5, share=1.0),
    parts={Part.QUEUE: Spent(median_s=0.0005, p99_s=0.049, share=0.9)},
    breaches=[Breach(part=Part.QUEUE, share=1.0, median_s=0.049, usual_s=0.0005)],
    refusals=[Refusals(reason="queue_full", place="gate", count=3)],
    words=["Add endpoints to pools[magika].endpoints."],
)
BROKEN = Report(window_s=300.0, holds=False, promises=[_PROMISE])
KEPT = Report(window_s=300.0, holds=True, promises=[])


@contextmanager
def admin_port(body: bytes, status: int = 200) -> Iterator[int]:
    """Answers every GET with that body; the port, on 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/v1/diagnose"
            self.send_response(status if found else 404)
            self.end_headers()
            self.wfile.write(body if found else b"{}")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()

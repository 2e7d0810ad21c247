# SPDX-License-Identifier: Apache-2.0
"""What the gateway adds to one inference datagram in flight, over asking `inferlane serve` directly.

An identity model, so that nothing is measured but the way; one packet each way; direct and through the gateway by
turns, request by request, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from rich.table import Table

from benchmarks.processes import ServerError, cpu_seconds, quantile, server
from benchmarks.report import console, median, spread, write_report
from inferlane.oip import encode_request
from inferlane.wire import Header, Type, decode, fragments

MODEL = "identity"
HTTP_PORT, SERVE_PORT, GATEWAY_PORT, ADMIN_PORT = 8633, 4634, 4633, 9633
VALUES = 64
ANSWER_TIMEOUT_S = 1.0
CONFIG = f"""\
version: 1
listeners:
  - {{name: main, bind: ["127.0.0.1:{GATEWAY_PORT}"], accept: [udp]}}
pools:
  - name: {MODEL}
    model: {MODEL}
    endpoints: [{{datagram: "127.0.0.1:{SERVE_PORT}"}}]
admin: {{bind: "127.0.0.1:{ADMIN_PORT}"}}
log: {{level: warning}}
"""


class Asker:
    """One UDP socket that asks one server, one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        self._cookie: bytes | None = None
        self._ids = count(time.monotonic_ns())
        values = np.arange(VALUES, dtype=np.float32).reshape(1, VALUES)
        self._body, self._json_length = encode_request({"x": values})

    def ask(self) -> float:
        """Seconds from the request to its reply. ServerError: another answer, or none."""
        request_id = next(self._ids)
        start = time.perf_counter()
        self._send(request_id)
        header = self._receive()
        if header.type is Type.CHALLENGE:
            self._cookie = header.cookie
            self._send(request_id)
            header = self._receive()
        elapsed = time.perf_counter() - start
        if header.type is not Type.REPLY or header.request_id != request_id or header.count != 1:
            raise ServerError(f"expected a reply in one datagram, got {header}")
        return elapsed

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _send(self, request_id: int) -> None:
        header = Header(
            type=Type.REQUEST,
            request_id=request_id,
            model=MODEL,
            cookie=self._cookie,
            json_length=self._json_length or 0,
        )
        (datagram,) = fragments(header, self._body)
        self._socket.send(datagram)

    def _receive(self) -> Header:
        try:
            return decode(self._socket.recv(2048))[0]
        except TimeoutError:
            raise ServerError(f"no answer in {ANSWER_TIMEOUT_S:g} s") from None


@contextmanager
def servers(scratch: Path) -> Iterator[dict[str, int]]:
    """`inferlane serve` with the identity model, and a gateway before it; their process ids."""
    model = scratch / "models" / MODEL / "model.onnx"
    model.parent.mkdir(parents=True)
    onnx.save(identity(), model)
    config = scratch / "gateway.yaml"
    config.write_text(CONFIG)
    inferlane = [sys.executable, "-m", "proxy"]
    serve = [*inferlane, "serve", str(model.parent.parent)]
    serve += ["--http", f"127.0.0.1:{HTTP_PORT}", "--udp", f"127.0.0.1:{SERVE_PORT}"]
    ready = f"http://127.0.0.1:{HTTP_PORT}/v2/health/ready"
    with (
        server(serve, ready_url=ready, log=scratch / "serve.log") as serving,
        server(
            [*inferlane, "run", str(config)],
            ready_url=f"http://127.0.0.1:{ADMIN_PORT}/readyz",
            log=scratch / "gateway.log",
        ) as forwarding,
    ):
        yield {"serve": serving, "gateway": forwarding}


def identity() -> onnx.ModelProto:
    """y = x."""
    shape: list[str | int | None] = ["batch", VALUES]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measure(rounds: int, requests: int, pids: dict[str, int]) -> list[dict[str, Any]]:
    """Per round: latency both ways in us, and the gateway's CPU per request."""
    direct, through = Asker(SERVE_PORT), Asker(GATEWAY_PORT)
    try:
        for _ in range(requests // 10):  # warm-up, with the address validation
            direct.ask()
            through.ask()
        results = []
        for _ in range(rounds):
            cpu = cpu_seconds(pids["gateway"])
            pairs = [(direct.ask(), through.ask()) for _ in range(requests)]
            results.append(
                {
                    "direct_us": _quantiles([pair[0] for pair in pairs]),
                    "through_us": _quantiles([pair[1] for pair in pairs]),
                    "gateway_cpu_us": (cpu_seconds(pids["gateway"]) - cpu) / requests * 1e6,
                }
            )
        return results
    finally:
        direct.close()
        through.close()


def table_of(results: list[dict[str, Any]]) -> Table:
    """Medians over the rounds, of the difference also its range."""
    table = Table(title="One inference datagram in flight, µs")
    for heading in ("", "direct", "through the gateway", "added"):
        table.add_column(heading, justify="right")
    for name in ("p50", "p99"):
        direct, through = ([result[way][name] for result in results] for way in ("direct_us", "through_us"))
        added = [b - a for a, b in zip(direct, through, strict=True)]
        table.add_row(name, f"{median(direct):.0f}", f"{median(through):.0f}", spread(added, digits=0))
    table.add_row("CPU", "", f"{median(result['gateway_cpu_us'] for result in results):.0f}", "")
    return table


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"p50": quantile(ordered, 0.5) * 1e6, "p99": quantile(ordered, 0.99) * 1e6}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="each way and round")
    arguments = parser.parse_args()
    screen = console()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-datagram-") as scratch, servers(Path(scratch)) as pids:
            results = measure(arguments.rounds, arguments.requests, pids)
    except ServerError as error:
        screen.print(error, style="red", markup=False)
        return 1
    screen.print(table_of(results))
    screen.print(write_report("datagram", {"rounds": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

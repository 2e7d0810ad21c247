# SPDX-License-Identifier: Apache-2.0
"""CPU per request against connections, requests in flight, body size and endpoints: plots for docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from benchmarks.h3.compare import KIB, MIB, Point, load
from benchmarks.h3.servers import ADDRESSES, OURS, PORTS, ROOT, Start, gateway, upstream
from benchmarks.report import median
from benchmarks.sim.plot import Axis, line_plot

__all__ = ["draw", "measure"]

PLOTS = ROOT / "docs" / "performance"
CONNECTIONS = tuple(Point(count, count, part=0.5) for count in (1, 4, 16, 64, 256))
IN_FLIGHT = tuple(Point(count, 1 if count <= 128 else count // 64) for count in (1, 4, 16, 64, 256))
SIZES = (
    Point(4, 1),
    Point(4, 1, 64 * KIB, 64 * KIB, part=0.1),
    Point(4, 1, MIB, MIB, part=0.01),
)
ENDPOINTS = (1, 4, 16, 64)
AT_ENDPOINTS = Point(32, 1)
Line = list[tuple[float, float]]
Lines = dict[str, dict[str, Line]]
"""By plot, then by gateway: (what varies, CPU µs a request)."""
_TITLES = {
    "connections": "connections, one request in flight on each",
    "in-flight": "requests in flight, 64 to 128 a connection",
    "body": "body of request and answer, bytes",
    "endpoints": "endpoints of the pool",
}


def measure(scratch: Path, starts: Mapping[str, Start], rounds: int, requests: int, screen: Console) -> Lines:
    """All of it, the gateways in turns at each point."""
    across = {
        "connections": [(float(point.connections), point) for point in CONNECTIONS],
        "in-flight": [(float(point.in_flight), point) for point in IN_FLIGHT],
        "body": [(float(point.body), point) for point in SIZES],
    }
    lines: Lines = {}
    with ExitStack() as running:
        running.enter_context(upstream(scratch))
        pids = {name: running.enter_context(start(scratch)) for name, start in starts.items()}
        for plot, points in across.items():
            lines[plot] = {name: [] for name in pids}
            for x, point in points:
                screen.log(f"{plot}: {point.name}")
                for name, cost in _costs(pids, point, rounds, requests).items():
                    lines[plot][name].append((x, cost))
    lines["endpoints"] = {OURS: _by_endpoints(scratch, rounds, requests, screen)}
    return lines


def _costs(pids: Mapping[str, int], point: Point, rounds: int, requests: int) -> dict[str, float]:
    count = max(20, point.in_flight, int(requests * point.part))
    found: dict[str, list[float]] = {name: [] for name in pids}
    for turn in range(rounds):
        for name in pids if turn % 2 == 0 else reversed(list(pids)):
            found[name].append(load(PORTS[name], pids[name], point, count)["server_cpu_us"])
    return {name: median(values) for name, values in found.items()}


def _by_endpoints(scratch: Path, rounds: int, requests: int, screen: Console) -> Line:
    line: Line = []
    for count in ENDPOINTS:
        screen.log(f"endpoints: {count}")
        with _many(scratch, count) as pid:
            line.append((float(count), _costs({OURS: pid}, AT_ENDPOINTS, rounds, requests)[OURS]))
    return line


@contextmanager
def _many(scratch: Path, count: int) -> Iterator[int]:
    """Our gateway with so many endpoints, all of them the same nginx under other addresses of loopback."""
    addresses = ", ".join(f'{{oip: "http://{address}:5030"}}' for address in ADDRESSES[:count])
    text = (ROOT / "conf" / "bench-forward.yaml").read_text()
    one = 'endpoints: [{oip: "http://127.0.0.1:5030"}]'
    if one not in text:
        raise AssertionError("conf/bench-forward.yaml has other endpoints than this expects")
    config = scratch / f"endpoints-{count}.yaml"
    config.write_text(text.replace(one, f"endpoints: [{addresses}]"))
    with upstream(scratch), gateway(scratch, config) as pid:
        yield pid


def draw(lines: Lines) -> list[Path]:
    """One SVG a plot."""
    PLOTS.mkdir(exist_ok=True)
    files = []
    for plot, by_gateway in lines.items():
        across, up = Axis(_TITLES[plot], logarithmic=True), Axis("CPU µs a request", least=0.0)
        if plot == "body":
            up = Axis("CPU µs a request", logarithmic=True)
        file = PLOTS / f"{plot}.svg"
        file.write_text(line_plot(f"What one HTTP/3 request costs: {plot}", across, up, by_gateway))
        files.append(file)
    return files

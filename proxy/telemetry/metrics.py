# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of one gateway.

What merely is (queues, places, connections) is read from its owner when somebody scrapes; what happens is counted in
plain numbers beside this. Every label comes from the config or a fixed list, never from a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from proxy.telemetry.door_metrics import DoorCounts, TcpDoorCounts, door_families, tcp_door_families
from proxy.telemetry.exposition import process, render
from proxy.telemetry.families import Exported, Family, exported
from proxy.telemetry.gate_metrics import GateCounts, gate_families
from proxy.telemetry.link_metrics import LinksSeen, link_families
from proxy.telemetry.lookout_metrics import DiscoveryCounts, ProbeCounts, discovery_families, probe_families
from proxy.telemetry.request_metrics import RequestMetrics
from qos.traffic_class import ClassTable

__all__ = ["Metrics"]


class Metrics:
    """All metrics of one gateway."""

    def __init__(self, *, version: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._version = version
        self._clock = clock
        self.requests = RequestMetrics()
        self._gates: list[GateCounts] = []
        self._classes: ClassTable | None = None
        self._links: LinksSeen | None = None
        self._doors: list[tuple[str, DoorCounts]] = []
        self._tcp_doors: list[tuple[str, TcpDoorCounts]] = []
        self._probing: ProbeCounts | None = None
        self._discovery: DiscoveryCounts | None = None

    def watch_gate(self, gate: GateCounts, classes: ClassTable) -> None:
        """Read this gate and its endpoints at every scrape."""
        self._gates.append(gate)
        self._classes = classes

    def use_classes(self, classes: ClassTable) -> None:
        """The classes have changed, for every gate."""
        self._classes = classes

    def show_links(self, seen: LinksSeen) -> None:
        """What traffic control was when it was last read: a scrape waits for nobody."""
        self._links = seen

    def watch_door(self, listener: str, counts: DoorCounts) -> None:
        """Read this listener's counts at every scrape."""
        self._doors.append((listener, counts))

    def watch_tcp_door(self, listener: str, counts: TcpDoorCounts) -> None:
        """Read the counts of this listener's TCP side at every scrape."""
        self._tcp_doors.append((listener, counts))

    def watch_probing(self, probing: ProbeCounts) -> None:
        """Read these counts at every scrape."""
        self._probing = probing

    def watch_discovery(self, discovery: DiscoveryCounts) -> None:
        """Read these counts at every scrape."""
        self._discovery = discovery

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, in the format that an Accept field prefers; and its content type."""
        return render(self.export(), accept)

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """The same, for the admin's address."""
        return self.page(accept)

    def export(self) -> list[Exported]:
        """Everything as it stands, this process among it."""
        return [*exported(self._families(), self.requests.histograms()), *process()]

    def _families(self) -> Iterator[Family]:
        build = Family("inferlane_build_info", "The version that runs; always 1.", ("version",), across="max")
        build.samples.append(((self._version,), 1))
        yield build
        yield from self.requests.families()
        yield from gate_families(self._gates, self._classes or (), self._clock())
        yield from door_families(self._doors)
        yield from tcp_door_families(self._tcp_doors)
        if self._probing is not None:
            yield from probe_families(self._probing)
        if self._discovery is not None:
            yield from discovery_families(self._discovery)
        if self._links is not None:
            yield from link_families(self._links)

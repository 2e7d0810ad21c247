# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told: the one door to its client library, which formats the page.

Requests are counted here in plain numbers, for the library's own counters cost 1 us and its histograms 3 us each time.
What merely is (queues, places, connections) is read from its owner when somebody scrapes. Every label comes from the
config or a fixed list, never from a request, so their number is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.arrival import Answered
from proxy.gate import Gate
from proxy.telemetry.link_metrics import Family, LinksSeen, link_families
from qos.timeline import Parts
from qos.traffic_class import ClassTable, TrafficClass

__all__ = ["DoorCounts", "Metrics"]

# 100 us is a datagram to an idle model, 60 s a long batch; three steps a decade tell p50 from p99.
_BOUNDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class DoorCounts(Protocol):
    """A listener's own counts, as they stand."""

    @property
    def datagrams_received(self) -> int:
        """Datagrams read from its sockets."""
        ...

    @property
    def datagrams_sent(self) -> int:
        """Datagrams written to its sockets."""
        ...

    @property
    def datagrams_dropped(self) -> Mapping[str, int]:
        """Datagrams not used or not sent, by reason: a fixed list of names."""
        ...

    @property
    def connections(self) -> int:
        """Open QUIC connections."""
        ...

    @property
    def handshakes(self) -> int:
        """QUIC handshakes completed."""
        ...


class _Seconds:
    """One histogram's series: how many took how long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.sum += seconds


@dataclass(slots=True)
class _OfClass:
    """What one class did in one pool; a pool's name is empty where none was reached."""

    whole: _Seconds = field(default_factory=_Seconds)
    queue: _Seconds = field(default_factory=_Seconds)
    backend: _Seconds = field(default_factory=_Seconds)
    compute: _Seconds = field(default_factory=_Seconds)
    bytes_in: int = 0
    bytes_out: int = 0


class Metrics(Collector):
    """All metrics of one gateway, in a registry of its own."""

    def __init__(self, *, version: str) -> None:
        self._version = version
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._of_class: defaultdict[tuple[str, str], _OfClass] = defaultdict(_OfClass)
        self._rtt: defaultdict[str, _Seconds] = defaultdict(_Seconds)
        self._gates: list[Gate] = []
        self._classes: ClassTable | None = None
        self._links: LinksSeen | None = None
        self._doors: list[tuple[str, DoorCounts]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def watch_gate(self, gate: Gate, classes: ClassTable) -> None:
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

    def request_finished(self, answered: Answered, parts: Parts, *, reason: str) -> None:
        """Count one request and its parts. reason: ok, or a Reason's label."""
        arrival, class_name, pool = answered.arrival, answered.traffic_class.name, answered.pool
        self._requests[arrival.listener, arrival.transport, class_name, pool, answered.endpoint, reason] += 1
        of_class = self._of_class[class_name, pool]
        of_class.bytes_in += arrival.body.received
        of_class.bytes_out += answered.bytes_out
        timeline = arrival.timeline
        if timeline.finished is not None and reason == "ok":
            of_class.whole.observe(timeline.finished - timeline.received)
        if parts.queue is not None:
            of_class.queue.observe(parts.queue)
        if parts.backend is not None:
            of_class.backend.observe(parts.backend)
        if parts.compute is not None:
            of_class.compute.observe(parts.compute)
        if parts.network is not None:
            self._rtt[arrival.listener].observe(parts.network)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text, in the format that an Accept field prefers; and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The library asks for everything as it stands."""
        build = GaugeMetricFamily("inferlane_build_info", "The version that runs; always 1.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield from self._finished_requests()
        yield from self._times()
        yield from _gates(self._gates, self._classes or ())
        yield from _doors(self._doors)
        if self._links is not None:
            yield from map(_links, link_families(self._links))

    def _finished_requests(self) -> Iterator[Metric]:
        labels = ["listener", "transport", "class", "pool", "endpoint", "reason"]
        requests = CounterMetricFamily(
            "inferlane_requests", "Requests, and ok or why they were refused.", labels=labels
        )
        for key, count in self._requests.items():
            requests.add_metric(key, count)
        bytes_in = CounterMetricFamily("inferlane_request_bytes", "Bytes of request bodies.", labels=["class", "pool"])
        bytes_out = CounterMetricFamily("inferlane_reply_bytes", "Bytes of reply bodies.", labels=["class", "pool"])
        for class_and_pool, each in self._of_class.items():
            bytes_in.add_metric(class_and_pool, each.bytes_in)
            bytes_out.add_metric(class_and_pool, each.bytes_out)
        yield from (requests, bytes_in, bytes_out)

    def _times(self) -> Iterator[Metric]:
        whole = HistogramMetricFamily(
            "inferlane_request_seconds", "First byte in to last byte out, reason ok only.", labels=["class", "pool"]
        )
        stage = HistogramMetricFamily(
            "inferlane_stage_seconds",
            "Disjoint parts: waiting here, the backend without its model, the model itself.",
            labels=["class", "pool", "stage"],
        )
        rtt = HistogramMetricFamily(
            "inferlane_client_rtt_seconds", "Smoothed round trip of the client, per request.", labels=["listener"]
        )
        for (class_name, pool), each in self._of_class.items():
            _add(whole, [class_name, pool], each.whole)
            for name, seconds in (("queue", each.queue), ("backend", each.backend), ("compute", each.compute)):
                _add(stage, [class_name, pool, name], seconds)
        for listener, seconds in self._rtt.items():
            _add(rtt, [listener], seconds)
        yield from (whole, stage, rtt)


def _add(family: HistogramMetricFamily, labels: list[str], seconds: _Seconds) -> None:
    bounds = [*map(str, _BOUNDS), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(seconds.counts), strict=True)), seconds.sum)


def _gates(gates: Iterable[Gate], classes: Iterable[TrafficClass]) -> Iterator[Metric]:
    labels = ["pool", "endpoint"]
    waiting = GaugeMetricFamily("inferlane_gate_waiting", "Requests waiting for a place.", labels=["pool", "class"])
    in_flight = GaugeMetricFamily("inferlane_in_flight", "Requests that an endpoint has now.", labels=labels)
    slots = GaugeMetricFamily("inferlane_endpoint_slots", "Requests that an endpoint may have.", labels=labels)
    ready = GaugeMetricFamily("inferlane_endpoint_ready", "1: it takes requests.", labels=labels)
    for gate in gates:
        for traffic_class in classes:
            waiting.add_metric([gate.pool.name, traffic_class.name], gate.depth(traffic_class))
        for endpoint in gate.pool.endpoints:
            names = [gate.pool.name, endpoint.name]
            in_flight.add_metric(names, endpoint.in_flight)
            slots.add_metric(names, endpoint.slots)
            ready.add_metric(names, endpoint.backend.ready)
    yield from (waiting, in_flight, slots, ready)


def _doors(doors: list[tuple[str, DoorCounts]]) -> Iterator[Metric]:
    datagrams = CounterMetricFamily(
        "inferlane_datagrams", "Datagrams on a listener's sockets.", labels=["listener", "direction"]
    )
    dropped = CounterMetricFamily(
        "inferlane_datagrams_dropped", "Datagrams not used or not sent.", labels=["listener", "reason"]
    )
    connections = GaugeMetricFamily("inferlane_quic_connections", "Open connections.", labels=["listener"])
    handshakes = CounterMetricFamily("inferlane_quic_handshakes", "Handshakes completed.", labels=["listener"])
    for listener, counts in doors:
        datagrams.add_metric([listener, "in"], counts.datagrams_received)
        datagrams.add_metric([listener, "out"], counts.datagrams_sent)
        for reason, count in counts.datagrams_dropped.items():
            dropped.add_metric([listener, reason], count)
        connections.add_metric([listener], counts.connections)
        handshakes.add_metric([listener], counts.handshakes)
    yield from (datagrams, dropped, connections, handshakes)


def _links(family: Family) -> Metric:
    kind = CounterMetricFamily if family.counts else GaugeMetricFamily
    made = kind(family.name, family.help, labels=family.labels)
    for labels, value in family.samples:
        made.add_metric(labels, value)
    return made

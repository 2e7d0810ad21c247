# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of requests: how many ended how, what they carried, and how long each part of them took.

Every label comes from the config, a fixed list or a pool's endpoints, never from a request; what is kept is bounded.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy.arrival import Answered
from proxy.telemetry.families import Family, Histogram, Seconds
from qos.timeline import Parts

__all__ = ["MOST_SERIES", "RequestMetrics"]

MOST_SERIES = 4096
"""Request counts that are kept without asking whether their endpoint is still there: addresses of a name that is
looked up come and go for as long as this process runs."""

_OF_CLASS = ("class", "pool")
_STAGES = ("upload", "queue", "backend", "backend_queue", "compute", "download")


@dataclass(slots=True)
class _OfClass:
    """What one class did in one pool; a pool's name is empty where none was reached."""

    whole: Seconds = field(default_factory=Seconds)
    upload: Seconds = field(default_factory=Seconds)
    queue: Seconds = field(default_factory=Seconds)
    backend: Seconds = field(default_factory=Seconds)
    backend_queue: Seconds = field(default_factory=Seconds)
    compute: Seconds = field(default_factory=Seconds)
    download: Seconds = field(default_factory=Seconds)
    first_byte: Seconds = field(default_factory=Seconds)
    gap: Seconds = field(default_factory=Seconds)
    bytes_in: int = 0
    bytes_out: int = 0


class RequestMetrics:
    """Counted in plain numbers, for the library's own counters cost 1 us and its histograms 3 us each time."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._counted: Counter[tuple[str, ...]] = Counter()
        """As the counts were when there were too many."""
        self._most = MOST_SERIES
        self._of_class: defaultdict[tuple[str, str], _OfClass] = defaultdict(_OfClass)
        self._rtt: defaultdict[str, Seconds] = defaultdict(Seconds)

    def __repr__(self) -> str:
        return f"<RequestMetrics {sum(self._requests.values())} requests>"

    def finished(self, answered: Answered, parts: Parts, *, reason: str) -> None:
        """Count one request and its parts. reason: ok, or a Reason's label."""
        arrival, class_name, pool = answered.arrival, answered.traffic_class.name, answered.pool
        self._requests[arrival.listener, arrival.transport, class_name, pool, answered.endpoint, reason] += 1
        if len(self._requests) > self._most:
            self._let_go()
        of_class = self._of_class[class_name, pool]
        of_class.bytes_in += arrival.body.received
        of_class.bytes_out += answered.bytes_out
        timeline = arrival.timeline
        if timeline.finished is not None and reason == "ok":
            of_class.whole.observe(timeline.finished - timeline.received)
        _observe_parts(of_class, parts)
        if parts.network is not None:
            self._rtt[arrival.listener].observe(parts.network)

    def _let_go(self) -> None:
        """Forget those that have not moved since the last time: their endpoints are gone, or nobody's any more."""
        moved = {key: count for key, count in self._requests.items() if count != self._counted.get(key)}
        self._requests, self._counted = Counter(moved), Counter(moved)
        self._most = max(MOST_SERIES, 2 * len(moved))

    def first_piece(self, answered: Answered, seconds: float) -> None:
        """The first piece of a token stream is out, so long after its request was received."""
        self._of_class[answered.traffic_class.name, answered.pool].first_byte.observe(seconds)

    def piece_sent(self, answered: Answered, gap_s: float) -> None:
        """A later piece of a token stream is out, so long after the one before."""
        self._of_class[answered.traffic_class.name, answered.pool].gap.observe(gap_s)

    def families(self) -> Iterator[Family]:
        """The counts."""
        labels = ("listener", "transport", "class", "pool", "endpoint", "reason")
        requests = Family("inferlane_requests", "Requests, and ok or why they were refused.", labels, True)
        requests.samples.extend(self._requests.items())
        bytes_in = Family("inferlane_request_bytes", "Bytes of request bodies.", _OF_CLASS, True)
        bytes_out = Family("inferlane_reply_bytes", "Bytes of reply bodies.", _OF_CLASS, True)
        for class_and_pool, each in self._of_class.items():
            bytes_in.samples.append((class_and_pool, each.bytes_in))
            bytes_out.samples.append((class_and_pool, each.bytes_out))
        yield from (requests, bytes_in, bytes_out)

    def histograms(self) -> Iterator[Histogram]:
        """The times."""
        whole = Histogram("inferlane_request_seconds", "First byte in to last byte out, reason ok only.", _OF_CLASS)
        stage = Histogram("inferlane_stage_seconds", _STAGE_HELP, (*_OF_CLASS, "stage"))
        first = Histogram("inferlane_first_byte_seconds", "Token streams: request to first piece out.", _OF_CLASS)
        gap = Histogram("inferlane_token_gap_seconds", "Token streams: from one piece out to the next.", _OF_CLASS)
        rtt = Histogram(
            "inferlane_client_rtt_seconds", "Smoothed round trip of the client, per request.", ("listener",)
        )
        for names, each in self._of_class.items():
            whole.samples.append((names, each.whole))
            stage.samples.extend(((*names, name), getattr(each, name)) for name in _STAGES)
            if any(each.first_byte.counts):  # most pools stream nothing
                first.samples.append((names, each.first_byte))
                gap.samples.append((names, each.gap))
        rtt.samples.extend(((listener,), seconds) for listener, seconds in self._rtt.items())
        yield from (whole, stage, first, gap, rtt)


_STAGE_HELP = (
    "Disjoint parts: the body on its way here, waiting here, the backend without the next two, waiting there, "
    "the model itself, the reply on its way out."
)


def _observe_parts(of_class: _OfClass, parts: Parts) -> None:
    if parts.upload is not None:
        of_class.upload.observe(parts.upload)
    if parts.queue is not None:
        of_class.queue.observe(parts.queue)
    if parts.backend is not None:
        waited = parts.backend_queue
        if waited is None:
            of_class.backend.observe(parts.backend)
        else:
            of_class.backend.observe(max(0.0, parts.backend - waited))
            of_class.backend_queue.observe(waited)
    if parts.compute is not None:
        of_class.compute.observe(parts.compute)
    if parts.download is not None:
        of_class.download.observe(parts.download)

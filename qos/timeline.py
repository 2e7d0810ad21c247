# SPDX-License-Identifier: Apache-2.0
"""One request's clock readings, stage by stage, and the disjoint parts they add up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Parts", "Timeline"]


class Parts(NamedTuple):
    """Where the time went, in seconds; None: that stage was not reached, or nobody measured it."""

    network: float | None
    """Smoothed round-trip time of the client's connection."""
    queue: float | None
    """Waiting in the gateway for a place: queued to dispatched."""
    backend: float | None
    """Dispatched to first byte, less compute."""
    compute: float | None
    """As the backend reports it."""
    upload: float | None = None
    """First byte of the request to its body being here, as far as is waited for."""
    backend_queue: float | None = None
    """Waiting inside the backend, as it reports it; a part of `backend`."""
    download: float | None = None
    """First byte of the reply to its last; of a token stream, as long as it was made."""


@dataclass(slots=True)
class Timeline:
    """Monotonic seconds at which a request passed each stage; None: not reached."""

    received: float
    queued: float | None = None
    """The body is here, as far as is waited for: what came before is the client's upload, not our queue."""
    dispatched: float | None = None
    first_byte: float | None = None
    finished: float | None = None
    rtt_s: float | None = None
    compute_s: float | None = None
    backend_queue_s: float | None = None

    def waits(self) -> tuple[float | None, float | None]:
        """Two of the parts: queue and backend."""
        if self.dispatched is None:
            return None, None
        queue = self.dispatched - (self.received if self.queued is None else self.queued)
        if self.first_byte is None:
            return queue, None
        backend = self.first_byte - self.dispatched - (self.compute_s or 0.0)
        return queue, backend if backend > 0.0 else 0.0

    def parts(self) -> Parts:
        """The disjoint parts that Server-Timing, metrics and the log line show."""
        queue, backend = self.waits()
        upload = None if self.queued is None else self.queued - self.received
        download = None
        if self.first_byte is not None and self.finished is not None:
            download = max(0.0, self.finished - self.first_byte)
        return Parts(self.rtt_s, queue, backend, self.compute_s, upload, self.backend_queue_s, download)

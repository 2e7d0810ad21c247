# SPDX-License-Identifier: Apache-2.0
"""One inference as the application sees it (Reply, Timing), and as transports carry it (encoded)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

__all__ = ["EncodedReply", "EncodedRequest", "Reply", "Stages", "Timing", "request_name"]

LONGEST_WAIT_S = 900.0
"""Where no timeout is given. The longest deadline of the reference config is 10 minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the time went, in seconds; None: nobody measured it."""

    network: float | None = None
    """Round trip as the gateway measured it; on datagrams and raw streams: what `total` has beyond the rest."""
    queue: float | None = None
    """Waiting in the gateway."""
    backend: float | None = None
    """Dispatched to first byte, less compute."""
    compute: float | None = None
    """The model's own time, where the backend reports it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing(Stages):
    """The stages, and what the client waited in all."""

    total: float
    """Seconds from `infer` to the decoded reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answered inference."""

    model: str
    version: str
    outputs: Mapping[str, NDArray[Any]]
    timing: Timing
    request_id: str
    """The id in the gateway's log."""
    served_class: str | None
    """The traffic class that the gateway gave the request."""
    dscp_seen: int | None
    """The DSCP that reached the gateway, 0..63. Other than `dscp_sent`: something on the path changes marks."""
    dscp_sent: int = 0
    """The DSCP that the client marked its packets with."""
    endpoint: str | None
    """Who answered; told to trusted clients over HTTP/3."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {_shape(array)}" for name, array in self.outputs.items())
        return f"<Reply {self.model}: {shapes}; class {self.served_class}, {self.timing.total * 1e3:.3f} ms>"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRequest:
    """An Open Inference Protocol body and what a transport must know beside it."""

    request_id: int
    """64 bits, unique among the requests of a connection."""
    model: str
    version: str
    class_name: str | None
    body: bytes
    json_length: int | None
    """Bytes of JSON before the binary tensors; None: all of it is JSON."""
    started: float
    """Monotonic seconds when it was asked."""
    timeout_s: float | None
    """What the client gives it, and tells the gateway; None: its class's deadline decides."""

    @property
    def name(self) -> str:
        """The request id as text: in the body, in HTTP fields, in the gateway's log."""
        return request_name(self.request_id)

    @property
    def deadline(self) -> float:
        """Monotonic seconds after which nobody waits any more."""
        return self.started + (LONGEST_WAIT_S if self.timeout_s is None else self.timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedReply:
    """The body of a good answer and what came beside it."""

    body: bytes
    json_length: int | None
    stages: Stages
    request_id: str | None = None
    served_class: str | None = None
    dscp_seen: int | None = None
    endpoint: str | None = None


def _shape(array: NDArray[Any]) -> str:
    return f"{array.dtype}{list(array.shape)}"


def request_name(request_id: int) -> str:
    """64 bits as the 16 hexadecimal digits that bodies, fields and logs show."""
    return f"{request_id:016x}"

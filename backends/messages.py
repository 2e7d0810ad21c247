# SPDX-License-Identifier: Apache-2.0
"""The request and the reply that backends exchange with the walk: nothing of the transport they came by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, Self

from backends.body import Body
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

__all__ = ["Api", "Fields", "Pieces", "Reply", "Request"]

Fields = tuple[tuple[bytes, bytes], ...]
"""HTTP header fields: lower-case names, clean values (proxy/protocols/fields.py)."""


class Api(Enum):
    """What requests to a pool look like."""

    OIP = "oip"
    """Open Inference Protocol v2."""
    OPENAI = "openai"
    """The OpenAI-compatible `/v1` paths."""


@dataclass(slots=True, kw_only=True)
class Request:
    """One inference to be made."""

    request_id: str
    model: str
    version: str = ""
    """A version's name; "" lets the backend choose."""
    traffic_class: TrafficClass
    deadline: float
    """Monotonic seconds by which the whole reply must be there."""
    body: Body
    json_length: int | None = None
    """Bytes of JSON before the binary tensors (Inference-Header-Content-Length); None: all of it is JSON."""
    timeline: Timeline
    fields: Fields = ()
    """The client's end-to-end fields; a backend hands on what RFC 9110 lets pass."""
    traceparent: str | None = None
    dscp_seen: int = 0
    """The DSCP the request arrived with."""
    client: str = ""
    """Among whom a class's turn is shared: the peer's address."""
    path: str = ""
    """Of an OpenAI-compatible request, `/v1/chat/completions`; the Open Inference Protocol's follows from the model."""
    streaming: bool = False
    """Whether the client asked for the answer token by token: then the deadline is until its first byte."""
    evict: Callable[[], None] | None = None
    """Ends it for a higher class; None: it is not sheddable."""


class Pieces(Protocol):
    """A body as its backend sends it. Whoever got it closes it, read to its end or not."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None:
        """Let go of what is behind it; a backend still sending is cut off."""
        ...


@dataclass(slots=True, kw_only=True)
class Reply:
    """One answer, as it goes back through any door."""

    status: int = 200
    body: bytes | Pieces
    """Whole, or in pieces as the backend sends them; a piecewise body raises Refused where it breaks off."""
    json_length: int | None = None
    fields: Fields = field(default=())
    """End-to-end fields of the backend's reply, content-type among them."""
    compute_s: float | None = None
    """The model's own time in seconds, where the backend says it."""
    backend_queue_s: float | None = None
    """Waiting inside the backend, where it says so."""
    streaming: bool = False
    """An event stream, whose first byte is here: what follows comes as it is made."""

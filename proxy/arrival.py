# SPDX-License-Identifier: Apache-2.0
"""What a door hands to the walk, and what the walk hands back: the words between protocols and pipeline."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from backends.body import Body
from backends.messages import Fields, Reply
from inferlane.errors import Refused
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

__all__ = ["Answered", "Arrival", "Operation", "Responder", "Walk"]


class Operation(Enum):
    """What a request asks for: of the Open Inference Protocol, or of the OpenAI-compatible paths."""

    INFER = "infer"
    METADATA = "metadata"
    MODEL_READY = "model_ready"
    SERVER_METADATA = "server_metadata"
    LIVE = "live"
    READY = "ready"
    OPENAI = "openai"
    """A POST whose body names its model."""
    OPENAI_MODELS = "openai_models"
    UNKNOWN = "unknown"
    """Nothing that there is: the arrival carries its refusal."""


@dataclass(slots=True, kw_only=True)
class Arrival:
    """One request as it reached a door, before anybody judged it."""

    request_id: str
    transport: str
    """h3, stream, datagram, udp or http."""
    listener: str
    client: str
    """The peer's IP address."""
    dscp: int
    """0..63, as it arrived."""
    path: str
    operation: Operation
    model: str = ""
    version: str = ""
    asked_class: str | None = None
    """Inferlane-Class, or the datagram's class field."""
    urgency: int | None = None
    """RFC 9218 urgency 0..7, where the request carried a Priority field."""
    timeout_s: float | None = None
    """Remaining time the client gives it, seconds."""
    traceparent: str | None = None
    fields: Fields = ()
    body: Body
    json_length: int | None = None
    whole: bytes | None = None
    """The body, where it had to be read to know the model."""
    timeline: Timeline
    refusal: Refused | None = None
    """What the door itself found wrong with it: the walk then only answers and records it."""


@dataclass(slots=True, kw_only=True)
class Answered:
    """What the walk knows of a request besides its reply: the source of reply headers, metrics and the log line."""

    arrival: Arrival
    traffic_class: TrafficClass
    why: str
    """Why it got this class."""
    trusted: bool
    """Whether the client may see which endpoint answered."""
    deadline: float
    """Monotonic seconds."""
    pool: str = ""
    endpoint: str = ""
    bytes_out: int = 0
    """Bytes of reply body that the door has sent."""
    detail: str | None = None
    """What a refusal told the client, for the log."""
    attempts: int = 0
    """Endpoints that were asked."""
    hedged: bool = False
    """Whether a second copy was sent while the first ran."""
    streaming: bool = False
    """Whether its reply was a token stream."""
    pieces: int = 0
    """Of a token stream, sent."""

    def asked(self, endpoint: str) -> None:
        """One more endpoint is asked; where several were, the last that was asked or the one that answered is told."""
        self.attempts += 1
        self.endpoint = endpoint


class Responder(Protocol):
    """A door's way back for one request."""

    def judged(self, answered: Answered) -> None:
        """The request has its class, before anything else happens to it; what goes back may be marked from here on."""
        ...

    async def reply(self, reply: Reply, answered: Answered) -> None:
        """Send the reply, a piecewise body as it comes and no faster than the client reads."""
        ...

    async def refuse(self, refusal: Refused, answered: Answered) -> None:
        """Send the refusal; after the head of a reply is out, break the exchange off visibly."""
        ...


Walk = Callable[[Arrival, Responder], Coroutine[Any, Any, None]]
"""The pipeline as doors see it. Never raises but CancelledError: a cancelled walk is a client that went away."""

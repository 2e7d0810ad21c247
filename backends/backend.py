# SPDX-License-Identifier: Apache-2.0
"""What every kind of backend can do. One instance talks to one endpoint."""

from __future__ import annotations

from typing import Protocol

from backends.messages import Api, Reply, Request

__all__ = ["Backend"]


class Backend(Protocol):
    """The code behind one endpoint.

    Failures are `inferlane.errors.Refused` with a reason; cancelling `infer` cancels the work that has not begun.
    """

    @property
    def ready(self) -> bool:
        """Whether it can take requests now, as far as it knows itself. What asking tells is choosing/health.py's."""
        ...

    @property
    def api(self) -> Api:
        """Which requests it understands."""
        ...

    async def start(self) -> None:
        """Load, connect, warm up. Raises `backends.errors.BackendError` with one line that says what to do."""
        ...

    async def infer(self, request: Request) -> Reply:
        """Answer one request before its deadline. Stamps `request.timeline.first_byte`."""
        ...

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """The model's Open Inference Protocol metadata, as JSON."""
        ...

    async def probe(self, *, deadline: float) -> None:
        """Ask the server by its protocol's own means whether it is ready. Raises Refused where it is not."""
        ...

    async def close(self) -> None:
        """Let go of everything; what is in flight fails."""
        ...

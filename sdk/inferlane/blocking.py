# SPDX-License-Identifier: Apache-2.0
"""The client for programs without an event loop: a Client on a private loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from inferlane.client import MAX_REPLY, Client
from inferlane.errors import ConnectionFailed
from inferlane.messages import Reply
from inferlane.target import Target

__all__ = ["BlockingClient"]

_CLOSE_TIMEOUT_S = 5.0
_T = TypeVar("_T")


class BlockingClient:
    """`inferlane.Client` with methods that wait. Any number of threads may use one at once."""

    def __init__(
        self,
        url: str,
        *,
        ca: str | Path | None = None,
        insecure: bool = False,
        server_name: str | None = None,
        dscp: Mapping[str, int] | None = None,
        max_reply: int = MAX_REPLY,
    ) -> None:
        """As `Client`. Starts the thread, connects nowhere yet."""
        self._client = Client(url, ca=ca, insecure=insecure, server_name=server_name, dscp=dscp, max_reply=max_reply)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        # A daemon: a program that forgets to close still ends.
        self._thread = threading.Thread(target=self._serve, name=f"inferlane {self._client.target}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<BlockingClient of {self._client!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def target(self) -> Target:
        """The gateway, as the URL names it."""
        return self._client.target

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        cls: str | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] = (),
        version: str = "",
    ) -> Reply:
        """As `Client.infer`. Interrupted (KeyboardInterrupt), it cancels the request in the gateway."""
        asking = self._client.infer(model, inputs, cls=cls, timeout=timeout, outputs=outputs, version=version)
        running = self._submit(asking)
        try:
            return running.result()  # Client.infer has its own deadline
        except CancelledError:
            raise ConnectionFailed("the client was closed") from None
        finally:
            running.cancel()

    def close(self) -> None:
        """Close every connection and end the thread; what other threads wait for fails with ConnectionFailed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closing = asyncio.run_coroutine_threadsafe(self._client.close(), self._loop)
        try:
            closing.result(_CLOSE_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _submit(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:  # nothing is handed to a loop that close() has stopped
            if self._closed:
                coroutine.close()
                raise ConnectionFailed("the client is closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()

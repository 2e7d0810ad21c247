# SPDX-License-Identifier: Apache-2.0
"""The asynchronous client: numpy arrays in, a reply out, one connection for each traffic class."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from inferlane import oip
from inferlane.errors import ConnectionFailed, Reason, Refused
from inferlane.messages import EncodedReply, EncodedRequest, Reply, Timing, request_name
from inferlane.target import Target, parse_target
from inferlane.transports.marking import DEFAULT_DSCP
from inferlane.transports.open import Transport, connect, transport_for
from inferlane.transports.quic import Trust

__all__ = ["Client"]

CONNECT_TIMEOUT_S = 5.0
MAX_REPLY = 256 << 20
MOST_MOVES = 3
"""How often one request may be sent to another connection, because the gateway is being upgraded."""
_MAX_DSCP = 63
_MAX_NAME = 255  # a datagram carries the class behind one length byte (docs/wire.md)


@dataclass(slots=True, eq=False)
class _Line:
    """One class's connection while it is in use."""

    transport: Transport
    in_flight: int = 0
    leaving: bool = False
    """The gateway drains it: no new requests, and closed after the last."""


class Client:
    """Asks one gateway. Any number of `infer` at once; belongs to one event loop.

    url: https://host:4433 (HTTP/3), quic:// (raw streams), quic+datagram:// or udp:// (datagrams, for small tensors).
    ca: a PEM file with the authority of the gateway's certificate; default: the public authorities.
    insecure: accept any certificate. server_name: the name to verify, where it is not the URL's host.
    dscp: the mark for each class's packets, 0..63, over the defaults EF, AF21, AF11, LE of
        realtime, interactive, batch, background; a class without one travels unmarked.
    """

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
        """Connects nowhere yet. ValueError or OSError: an argument that cannot work."""
        self._target = parse_target(url)
        self._trust = Trust.load(ca, insecure=insecure, server_name=server_name)
        self._dscp = {**DEFAULT_DSCP, **(dscp or {})}
        for name, value in self._dscp.items():
            if not 0 <= value <= _MAX_DSCP:
                raise ValueError(f"dscp of {name}: {value} is not in 0..{_MAX_DSCP}")
        self._max_reply = max_reply
        self._opening: dict[str | None, asyncio.Task[_Line]] = {}
        self._lines: set[_Line] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Client {self._target}, {len(self._lines)} connections>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def target(self) -> Target:
        """The gateway, as the URL names it."""
        return self._target

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        cls: str | None = None,
        timeout: float | None = None,
        outputs: Sequence[str] = (),
        version: str = "",
    ) -> Reply:
        """Ask a model.

        cls: the traffic class to ask for; None leaves it to the gateway's rules. timeout: seconds for everything,
        told to the gateway; None: the class's deadline. outputs: which to return, all by default.
        Raises Refused (`reason`, `detail`, `retry_after_s`) or ConnectionFailed; ValueError for impossible arguments.
        Cancelling it cancels the request in the gateway.
        """
        request = _encode(model, inputs, cls=cls, timeout=timeout, outputs=outputs, version=version)
        return _decode(await self._exchange(request), request, dscp_sent=self._mark_of(cls))

    async def close(self) -> None:
        """Close every connection; what is in flight fails with ConnectionFailed."""
        self._closed = True
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for line in self._lines:
            line.transport.close()
        self._lines.clear()

    async def _exchange(self, request: EncodedRequest) -> EncodedReply:
        try:
            async with asyncio.timeout(request.deadline - monotonic()) as limit:
                return await self._ask_and_move(request)
        except TimeoutError:
            if not limit.expired():
                raise
            waited = request.deadline - request.started
            raise Refused(Reason.DEADLINE, f"{self._target} did not answer within {waited:g} s") from None

    async def _ask_and_move(self, request: EncodedRequest) -> EncodedReply:
        """A gateway that is upgraded has its clients connect again, at once: it did nothing for this request yet."""
        for _ in range(MOST_MOVES):
            line = await self._line(request.class_name)
            try:
                return await self._ask(line, request)
            except Refused as refusal:
                if refusal.reason is not Reason.DRAINING or refusal.retry_after_s is not None:
                    raise
        return await self._ask(await self._line(request.class_name), request)

    async def _ask(self, line: _Line, request: EncodedRequest) -> EncodedReply:
        line.in_flight += 1
        try:
            return await line.transport.exchange(request)
        except Refused as refusal:
            line.leaving |= refusal.reason is Reason.DRAINING
            raise
        finally:
            line.in_flight -= 1
            if line.leaving and not line.in_flight:
                self._drop(line)

    async def _line(self, name: str | None) -> _Line:
        """The class's connection: the one that is there, the one being made, or a new one."""
        if self._closed:
            raise ConnectionFailed("the client is closed")
        task = self._opening.get(name)
        if task is not None and task.done() and not self._usable(task):
            task = None
        if task is None:
            self._opening[name] = task = asyncio.create_task(self._open(name), name=f"connect {self._target} {name}")
        try:
            return await asyncio.shield(task)
        except ConnectionFailed as error:
            raise ConnectionFailed(str(error)) from None  # each waiter its own, for tracebacks grow on exceptions
        except asyncio.CancelledError:
            asking = asyncio.current_task()
            if task.cancelled() and not (asking and asking.cancelling()):  # close() did it, nobody cancelled us
                raise ConnectionFailed("the client was closed") from None
            raise

    def _usable(self, task: asyncio.Task[_Line]) -> bool:
        if task.cancelled() or task.exception() is not None:
            return False
        line = task.result()
        if not line.transport.alive:
            self._drop(line)
            return False
        return not line.leaving

    async def _open(self, name: str | None) -> _Line:
        make = transport_for(self._target, self._trust, dscp=self._mark_of(name), max_reply=self._max_reply)
        line = _Line(await connect(self._target, make, timeout=CONNECT_TIMEOUT_S))
        self._lines.add(line)
        return line

    def _mark_of(self, name: str | None) -> int:
        return 0 if name is None else self._dscp.get(name, 0)

    def _drop(self, line: _Line) -> None:
        line.transport.close()
        self._lines.discard(line)


def _encode(
    model: str,
    inputs: Mapping[str, NDArray[Any]],
    *,
    cls: str | None,
    timeout: float | None,
    outputs: Sequence[str],
    version: str,
) -> EncodedRequest:
    """What was asked, as transports carry it. ValueError names the argument that cannot work."""
    if not model:
        raise ValueError("model: a name is needed")
    if cls is not None and not (cls.isascii() and cls.isprintable() and 0 < len(cls) <= _MAX_NAME and " " not in cls):
        raise ValueError(f"cls: {cls[:40]!r} cannot be a traffic class: printable ASCII without spaces")
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"timeout: {timeout} is not a positive number of seconds")
    started = monotonic()
    request_id = secrets.randbits(64)
    body, json_length = oip.encode_request(inputs, outputs=outputs, request_id=request_name(request_id))
    return EncodedRequest(
        request_id=request_id,
        model=model,
        version=version,
        class_name=cls,
        body=body,
        json_length=json_length,
        started=started,
        timeout_s=timeout,
    )


def _decode(encoded: EncodedReply, request: EncodedRequest, *, dscp_sent: int) -> Reply:
    try:
        body = oip.decode_reply(encoded.body, encoded.json_length)
    except oip.OipError as error:
        raise Refused(Reason.BACKEND_FAILED, f"the reply is no Open Inference Protocol reply: {error}") from None
    stages = encoded.stages
    return Reply(
        model=body.model or request.model,
        version=body.version,
        outputs=body.outputs,
        parameters=body.parameters,
        timing=Timing(
            network=stages.network,
            queue=stages.queue,
            backend=stages.backend,
            compute=stages.compute,
            total=monotonic() - request.started,
        ),
        request_id=encoded.request_id or request.name,
        served_class=encoded.served_class,
        dscp_seen=encoded.dscp_seen,
        dscp_sent=dscp_sent,
        endpoint=encoded.endpoint,
    )

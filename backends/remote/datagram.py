# SPDX-License-Identifier: Apache-2.0
"""Asks another machine's `inferlane serve` by inference datagram (`datagram:`): one packet there, one back.

What a datagram carries is small by nature; a body that does not fit is refused with the remedy, never sent in part.
"""

from __future__ import annotations

import asyncio
import secrets
from time import monotonic

from backends.body import Body
from backends.messages import Api, Reply, Request
from backends.remote.lane import Lane, Path
from backends.settings import parse_host_port
from inferlane.errors import Reason, Refused
from inferlane.wire import MAX_DATAGRAM, MAX_FRAGMENTS, Header, Type, WireError, microseconds
from qos.marking import UNMARKED, Mark, mark_of

__all__ = ["DatagramBackend"]

MOST_BODY = MAX_FRAGMENTS * MAX_DATAGRAM
"""No body longer than this can fit; how much less fits depends on the header."""


class DatagramBackend:
    """One server. address: host:port.

    Each traffic class has a socket of its own and marks it once: no packet pays for its mark, what is repeated has it
    too, and bulk that waits in its socket's send buffer delays no other class.
    """

    ready = True  # as far as it knows itself; what requests and probes tell is `backends.choosing.health`'s
    api = Api.OIP

    def __init__(self, address: str) -> None:
        self._address = address
        self._path = Path(*parse_host_port(address))
        self._lanes: dict[str, Lane] = {}

    def __repr__(self) -> str:
        return f"<DatagramBackend {self._address} {list(self._lanes.values())!r}>"

    async def start(self) -> None:
        """Nothing is sent before the first request."""

    async def close(self) -> None:
        """Close its sockets; what is in flight fails."""
        for lane in tuple(self._path.lanes):
            lane.close(Refused(Reason.BACKEND_FAILED, "the gateway closed its sockets to this backend"))
        self._lanes.clear()

    async def infer(self, request: Request) -> Reply:
        """Send the request and bring the reply."""
        body = await _whole(request.body, request.deadline)
        lane = await self._lane(request.traffic_class.name, mark_of(request.traffic_class), request.deadline)
        try:
            answer = await lane.ask(_header(request), body, deadline=request.deadline)
        except WireError as error:
            raise Refused(Reason.BAD_REQUEST, f"the request cannot go by datagram: {error}") from None
        except Refused as refused:
            if refused.reason is Reason.USE_STREAM:
                raise _too_long(refused.detail) from None
            raise
        request.timeline.first_byte = answer.first_byte
        return _reply(answer.header, answer.body)

    async def metadata(self, model: str, version: str, *, deadline: float) -> Reply:
        """Refused: inference datagrams carry requests only."""
        raise Refused(
            Reason.NOT_FOUND,
            f"the metadata of {model!r} cannot be asked by datagram; add an `oip:` endpoint of the same server",
        )

    async def probe(self, *, deadline: float) -> None:
        """A ping, on a socket that no class has. Raises Refused where nobody answers it."""
        lane = await self._lane("", UNMARKED, deadline)
        await lane.ping(deadline=deadline)

    async def _lane(self, name: str, mark: Mark, deadline: float) -> Lane:
        lane = self._lanes.get(name)
        if lane is None or lane.retired:
            opened = await self._path.open(deadline, mark)
            lane = self._lanes.get(name)
            if lane is None or lane.retired:
                lane = self._lanes[name] = Lane(name, opened, self._path, mark)
            else:
                opened.close()  # another request was faster
        lane.carry(mark)
        return lane


async def _whole(body: Body, deadline: float) -> bytes:
    """The request's body, if it can fit at all."""
    if body.complete and body.received <= MOST_BODY:
        return await body.read_all()
    pieces = []
    try:
        async with asyncio.timeout(deadline - monotonic()):
            while body.received <= MOST_BODY and (piece := await body.read()):
                pieces.append(piece)
    except TimeoutError:
        raise Refused(Reason.DEADLINE, "the request's time was up before its body was there") from None
    if body.received > MOST_BODY:
        raise _too_long(f"the body has more than {MOST_BODY} bytes, too many for datagrams")
    return b"".join(pieces)


def _too_long(detail: str) -> Refused:
    return Refused(Reason.USE_STREAM, f"{detail}; this pool's `datagram:` endpoint needs an `oip:` endpoint beside it")


def _header(request: Request) -> Header:
    return Header(
        type=Type.REQUEST,
        request_id=secrets.randbits(64),
        remaining_us=max(1, microseconds(request.deadline - monotonic())),
        json_length=request.json_length or 0,
        class_name=request.traffic_class.name,
        model=request.model,
        version=request.version,
    )


def _reply(header: Header, body: bytes) -> Reply:
    kind = b"application/octet-stream" if header.json_length else b"application/json"
    return Reply(
        status=header.status,
        body=body,
        json_length=header.json_length or None,
        fields=((b"content-type", kind),),
        compute_s=None if header.compute_us is None else header.compute_us / 1e6,
    )

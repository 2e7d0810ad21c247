# SPDX-License-Identifier: Apache-2.0
"""What an admin may see and change of the endpoints of one gateway, whoever asks: its own socket, or a supervisor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, Protocol

import structlog

from backends.endpoint import Endpoint
from backends.lookout.overview import endpoint_document, pools_document
from backends.pool import Pool

__all__ = ["Commands", "Endpoints", "NotDone"]

_log = structlog.get_logger("inferlane.control")


class NotDone(Exception):  # noqa: N818  not an error of ours
    """Why a command is not done; names: what it could have named instead."""

    def __init__(self, status: int, detail: str, **names: Sequence[str]) -> None:
        super().__init__(detail)
        self.status = status
        self.document: dict[str, Any] = {"error": detail, **names}


class Commands(Protocol):
    """What the admin's socket does for those whom it lets in."""

    async def pools(self) -> Any:
        """Every endpoint as it is."""
        ...

    async def drain(self, pool: str, endpoint: str, *, draining: bool, uid: int) -> Any:
        """Take an endpoint out or put it back, for this user; how it stands then. Raises NotDone."""
        ...


class Endpoints:
    """Of all pools of a gateway in this process.

    pools: what there is now; changed: told a pool's name when an endpoint of it was taken out or put back.
    """

    def __init__(
        self, pools: Iterable[Pool], *, changed: Callable[[str], None], clock: Callable[[], float] = monotonic
    ) -> None:
        self._pools = {pool.name: pool for pool in pools}
        self._changed = changed
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Endpoints of {', '.join(self._pools)}>"

    async def pools(self) -> dict[str, Any]:
        """Every endpoint as it is."""
        return pools_document(self._pools.values(), self._clock())

    async def drain(self, pool: str, endpoint: str, *, draining: bool, uid: int) -> dict[str, Any]:
        """Take an endpoint out or put it back, for this user; how it stands then. Raises NotDone."""
        found = self._found(pool, endpoint)
        if found.draining is not draining:
            found.draining = draining
            event = "endpoint_draining" if draining else "endpoint_undrained"
            _log.info(event, pool=pool, endpoint=endpoint, in_flight=found.in_flight, uid=uid)
            self._changed(pool)
        return {"pool": pool} | endpoint_document(found, self._clock())

    def _found(self, pool_name: str, name: str) -> Endpoint:
        pool = self._pools.get(pool_name)
        if pool is None:
            raise NotDone(404, f"no pool is named {pool_name}", pools=list(self._pools))
        endpoint = pool.find(name)
        if endpoint is None:
            names = [each.name for each in pool.endpoints]
            raise NotDone(404, f"no endpoint of pool {pool_name} is named {name}", endpoints=names)
        return endpoint

# SPDX-License-Identifier: Apache-2.0
"""Everything that is asked but inference: answered here, or by a backend without a place, for it costs no GPU time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from backends.choosing.health import HealthState
from backends.endpoint import Endpoint
from backends.messages import Api, Reply
from backends.pool import Pool
from backends.remote.openai import OpenAiBackend
from backends.routes import Routes
from inferlane.errors import Reason, Refused
from proxy.arrival import Answered, Operation
from proxy.walk import refusals

__all__ = ["VERSION", "Describing"]

VERSION = "0.1.0"
"""The gateway's, as pyproject.toml has it."""
_MODELS_S = 1.0
"""A server that does not tell its models within this is passed over."""
_JSON = ((b"content-type", b"application/json"),)
_SERVER = msgspec.json.encode({"name": "inferlane", "version": VERSION, "extensions": ["binary_tensor_data"]})


class Describing:
    """Liveness, readiness, metadata, lists of models."""

    def __init__(self, routes: Routes, *, clock: Callable[[], float]) -> None:
        self._routes = routes
        self._clock = clock

    def __repr__(self) -> str:
        return f"<Describing {self._routes!r}>"

    async def reply(self, answered: Answered, *, draining: bool) -> Reply:
        """The answer to an arrival that is no inference. Raises Refused."""
        match answered.arrival.operation:
            case Operation.SERVER_METADATA:
                return Reply(body=_SERVER, fields=_JSON)
            case Operation.LIVE:
                return Reply(body=b'{"live":true}', fields=_JSON)
            case Operation.READY:
                return _readiness(all(pool.ready for pool in self._routes.pools) and not draining)
            case Operation.MODEL_READY:
                return _readiness(self.pool(answered).ready)
            case Operation.OPENAI_MODELS:
                return await self._models(answered)
            case _:
                return await self._metadata(answered)

    def pool(self, answered: Answered) -> Pool:
        """Who serves the model that was asked for. Raises Refused UNKNOWN_MODEL."""
        model = answered.arrival.model
        pool = self._routes.pool_for(model)
        if pool is None:
            raise Refused(Reason.UNKNOWN_MODEL, f"no pool here serves model {model!r}")
        answered.pool = pool.name
        return pool

    async def _metadata(self, answered: Answered) -> Reply:
        pool, arrival = self.pool(answered), answered.arrival
        endpoint = next(iter(_well_first(pool)), None)
        if endpoint is None:
            raise refusals.no_endpoint(pool.name)
        return await endpoint.backend.metadata(arrival.model, arrival.version, deadline=answered.deadline)

    async def _models(self, answered: Answered) -> Reply:
        """What the OpenAI-compatible pools have, each model once and only where requests for it would go."""
        pools = [pool for pool in self._routes.pools if pool.api is Api.OPENAI and pool.ready]
        lists = await asyncio.gather(*(self._models_of(pool, answered.deadline) for pool in pools))
        found = {
            each["id"]: each
            for pool, models in zip(pools, lists, strict=True)
            for each in models
            if self._routes.pool_for(each["id"]) is pool
        }
        wanted = answered.arrival.model
        if not wanted:
            return Reply(body=msgspec.json.encode({"object": "list", "data": list(found.values())}), fields=_JSON)
        if wanted not in found:
            raise Refused(Reason.UNKNOWN_MODEL, f"no pool here serves model {wanted!r}")
        return Reply(body=msgspec.json.encode(found[wanted]), fields=_JSON)

    async def _models_of(self, pool: Pool, deadline: float) -> Iterable[dict[str, Any]]:
        """As the first endpoint that answers tells; a pool whose servers are all silent has none to show."""
        for endpoint in _well_first(pool):
            if isinstance(endpoint.backend, OpenAiBackend):
                patience = min(deadline, self._clock() + _MODELS_S)
                try:
                    return await endpoint.backend.models(deadline=patience)
                except Refused:
                    continue  # the next one has the same models; none answering is what the empty list says
        return ()


def _well_first(pool: Pool) -> list[Endpoint]:
    """Who could answer; those that fail or hang are asked last, for they may take all the time there is."""
    usable = [each for each in pool.endpoints if each.usable]
    return sorted(usable, key=lambda each: each.health.state is not HealthState.HEALTHY)


def _readiness(ready: bool) -> Reply:
    return Reply(status=200 if ready else 503, body=b'{"ready":true}' if ready else b'{"ready":false}', fields=_JSON)

# SPDX-License-Identifier: Apache-2.0
"""From the config's pools to backends, endpoints and routes. To add a kind of backend, add it to the table here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from backends.backend import Backend
from backends.choosing.health import HealthRules
from backends.choosing.picker import PICKERS
from backends.endpoint import Endpoint
from backends.messages import Api
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.remote.datagram import DatagramBackend
from backends.remote.oip import OipBackend
from backends.remote.openai import OpenAiBackend
from backends.remote.origin import parse_origin
from backends.remote.served import ServedModel
from backends.routes import Routes
from backends.settings import (
    AdaptiveSettings,
    DatagramSettings,
    EndpointSettings,
    OipSettings,
    OnnxSettings,
    OpenAiSettings,
)
from qos.limit import AdaptiveLimit, FixedLimit, Limit

__all__ = ["REMOTE_SLOTS", "build", "endpoint_of"]

REMOTE_SLOTS = 16
"""Requests in flight to a server whose slots are not configured."""


class _Built(NamedTuple):
    name: str
    """For logs and metrics, unless another endpoint of the pool has it too."""
    backend: Backend
    limit: Limit


Models = Mapping[tuple[str, int], Path]
"""Unix sockets of models that another process runs, by pool and place among its endpoints."""
_HERE: Models = MappingProxyType({})


def build(pools: Sequence[PoolSettings], models: Models = _HERE) -> Routes:
    """All pools, none of them started. Endpoints whose names are looked up again and again, or which a watched file
    lists, join later (backends/lookout/discovery.py)."""
    return Routes((_pool(each, models), each.model) for each in pools)


def endpoint_of(
    settings: EndpointSettings,
    taken: Collection[str],
    *,
    address: str | None = None,
    served_at: Path | None = None,
) -> Endpoint:
    """One endpoint, not started, whose name is none of those taken.

    address: the IP address that its host's name was resolved to; None connects to the name. served_at: the Unix socket
    of the process that runs its model; None runs it in this one.
    """
    if isinstance(settings, OnnxSettings) and served_at is not None:
        built = _served(settings, served_at)
    else:
        built = _KINDS[type(settings)](settings, address)
    name = built.name
    if name in taken:
        name = next(numbered for n in count(2) if (numbered := f"{name}#{n}") not in taken)
    return Endpoint(name, built.backend, built.limit, zone=settings.zone)


def _pool(settings: PoolSettings, models: Models) -> Pool:
    endpoints: dict[str, Endpoint] = {}
    for index, each in enumerate(settings.endpoints):
        if isinstance(each, OnnxSettings) or each.resolve is None:
            endpoint = endpoint_of(each, endpoints, served_at=models.get((settings.name, index)))
            endpoints[endpoint.name] = endpoint
    pool = Pool(
        settings.name,
        list(endpoints.values()),
        PICKERS[settings.pick],
        zones=settings.zones,
        rules=HealthRules.of(settings.health),
    )
    if any(isinstance(each, OpenAiSettings) for each in settings.endpoints):
        pool.api_to_come = Api.OPENAI
    return pool


def _onnx(settings: OnnxSettings, address: str | None) -> _Built:
    # here and not above: a gateway that only forwards need not load ONNX Runtime
    from backends.local.onnx import OnnxBackend

    return _Built(_onnx_name(settings), OnnxBackend(settings), FixedLimit(_places(settings)))


def _served(settings: OnnxSettings, path: Path) -> _Built:
    """The same endpoint, whose model several workers share: one process has the GPU's memory and makes the batches."""
    places = _places(settings)
    return _Built(_onnx_name(settings), ServedModel(path, slots=places), FixedLimit(places))


def _onnx_name(settings: OnnxSettings) -> str:
    folder = f"{settings.onnx.parent.name}/" if settings.onnx.parent.name else ""
    return f"onnx:{folder}{settings.onnx.name}"


def _places(settings: OnnxSettings) -> int:
    return (settings.slots or 1) * settings.batch.max_size


def _oip(settings: OipSettings, address: str | None) -> _Built:
    return _http("oip", OipBackend, settings.oip, settings, address)


def _openai(settings: OpenAiSettings, address: str | None) -> _Built:
    return _http("openai", OpenAiBackend, settings.openai, settings, address)


def _http(
    kind: str,
    backend: type[OipBackend] | type[OpenAiBackend],
    url: str,
    settings: OipSettings | OpenAiSettings,
    address: str | None,
) -> _Built:
    origin = parse_origin(url)
    asked = backend(
        url,
        slots=_most(settings.slots),
        ca=settings.tls.ca if settings.tls is not None else None,
        key=settings.key,
        priority=settings.priority,
        address=address,
    )
    where = f"{origin.authority.decode()}{origin.base}"
    return _Built(_at(f"{kind}:{where}", address), asked, _limit(settings.slots))


def _datagram(settings: DatagramSettings, address: str | None) -> _Built:
    name = f"datagram:{settings.datagram}"
    if address is None:
        return _Built(name, DatagramBackend(settings.datagram), _limit(settings.slots))
    port = settings.datagram.rpartition(":")[2]
    literal = f"[{address}]" if ":" in address else address
    return _Built(_at(name, address), DatagramBackend(f"{literal}:{port}"), _limit(settings.slots))


def _at(name: str, address: str | None) -> str:
    """One name may have several addresses, each an endpoint of its own."""
    return name if address is None else f"{name}@{address}"


def _limit(slots: int | AdaptiveSettings | None) -> Limit:
    if isinstance(slots, AdaptiveSettings):
        return AdaptiveLimit(slots.floor, slots.ceiling)
    return FixedLimit(slots or REMOTE_SLOTS)


def _most(slots: int | AdaptiveSettings | None) -> int:
    return slots.ceiling if isinstance(slots, AdaptiveSettings) else slots or REMOTE_SLOTS


_KINDS: dict[type[EndpointSettings], Callable[[Any, str | None], _Built]] = {
    OnnxSettings: _onnx,
    OipSettings: _oip,
    OpenAiSettings: _openai,
    DatagramSettings: _datagram,
}

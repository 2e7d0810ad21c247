# SPDX-License-Identifier: Apache-2.0
"""From the config's pools to backends, endpoints and routes. To add a kind of backend, add it to the table here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

from backends.backend import Backend
from backends.endpoint import Endpoint
from backends.picker import PICKERS
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.remote.datagram import DatagramBackend
from backends.remote.oip import OipBackend
from backends.remote.origin import parse_origin
from backends.routes import Routes
from backends.settings import DatagramSettings, EndpointSettings, OipSettings, OnnxSettings

__all__ = ["build"]

REMOTE_SLOTS = 16
"""Requests in flight to a server whose slots are not configured."""


class _Built(NamedTuple):
    name: str
    """For logs and metrics, unless another endpoint of the pool has it too."""
    backend: Backend
    slots: int


def build(pools: Sequence[PoolSettings]) -> Routes:
    """All pools, none of them started."""
    return Routes((Pool(each.name, _endpoints(each.endpoints), PICKERS[each.pick]), each.model) for each in pools)


def _endpoints(settings: Sequence[EndpointSettings]) -> list[Endpoint]:
    endpoints: dict[str, Endpoint] = {}
    for each in settings:
        name, backend, slots = _KINDS[type(each)](each)
        if name in endpoints:
            name = next(numbered for n in count(2) if (numbered := f"{name}#{n}") not in endpoints)
        endpoints[name] = Endpoint(name, backend, slots)
    return list(endpoints.values())


def _onnx(settings: OnnxSettings) -> _Built:
    # here and not above: a gateway that only forwards need not load ONNX Runtime
    from backends.local.onnx import OnnxBackend

    folder = f"{settings.onnx.parent.name}/" if settings.onnx.parent.name else ""
    places = (settings.slots or 1) * settings.batch.max_size
    return _Built(f"onnx:{folder}{settings.onnx.name}", OnnxBackend(settings), places)


def _oip(settings: OipSettings) -> _Built:
    slots = settings.slots or REMOTE_SLOTS
    backend = OipBackend(settings.oip, slots=slots, ca=settings.tls.ca if settings.tls is not None else None)
    origin = parse_origin(settings.oip)
    return _Built(f"oip:{origin.authority.decode()}{origin.base}", backend, slots)


def _datagram(settings: DatagramSettings) -> _Built:
    return _Built(f"datagram:{settings.datagram}", DatagramBackend(settings.datagram), settings.slots or REMOTE_SLOTS)


_KINDS: dict[type[EndpointSettings], Callable[[Any], _Built]] = {
    OnnxSettings: _onnx,
    OipSettings: _oip,
    DatagramSettings: _datagram,
}

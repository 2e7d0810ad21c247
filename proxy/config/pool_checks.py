# SPDX-License-Identifier: Apache-2.0
"""What the parts of a pool must not say of one another: keys without effect, endpoints that do not go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import chain
from urllib.parse import urlsplit

from backends.settings import parse_host_port
from proxy.config.errors import Fault, unknown_name
from proxy.config.positions import Path
from proxy.config.tables import Table, duration, tables

__all__ = ["pool_faults"]

_KINDS = ("onnx", "oip", "openai", "datagram")


def pool_faults(config: Table) -> Iterator[Fault]:
    """Everything that is wrong inside pools."""
    return chain.from_iterable(check(config) for check in _CHECKS)


def _batches(config: Table) -> Iterator[Fault]:
    for path, endpoint in tables(config, "pools", "endpoints"):
        batch = endpoint.get("batch")
        if isinstance(batch, dict) and batch.get("max_size", 1) == 1 and (duration(batch.get("max_wait")) or 0) > 0:
            yield Fault(
                (*path, "batch", "max_wait"), "nothing to wait for while max_size is 1; raise it or remove this"
            )


def _certificates(config: Table) -> Iterator[Fault]:
    for path, endpoint in tables(config, "pools", "endpoints"):
        url = endpoint.get("oip", endpoint.get("openai"))
        if "tls" in endpoint and isinstance(url, str) and url.startswith("http:"):
            yield Fault((*path, "tls"), "nothing to check behind http://; write https:// or remove this", at_key=True)


def _names_to_resolve(config: Table) -> Iterator[Fault]:
    for path, endpoint in tables(config, "pools", "endpoints"):
        host = _host(endpoint)
        if "resolve" in endpoint and host is not None and _is_address(host):
            yield Fault((*path, "resolve"), f"{host} is an address, with no name to look up; remove this", at_key=True)


def _one_api(config: Table) -> Iterator[Fault]:
    """A request cannot be told in the other API's words."""
    for path, pool in tables(config, "pools"):
        openai = [(rest, "openai" in endpoint) for rest, endpoint in _endpoints(pool)]
        for rest, each in openai[1:]:
            if each != openai[0][1]:
                first = "OpenAI-compatible" if openai[0][1] else "the Open Inference Protocol's"
                message = f"the pool's first endpoint is {first}, and this one is not; give it a pool of its own"
                yield Fault((*path, *rest), message)
                break


def _zones(config: Table) -> Iterator[Fault]:
    for path, pool in tables(config, "pools"):
        zones = pool.get("zones", ())
        if not isinstance(zones, tuple) or not all(isinstance(each, str) for each in zones):
            continue
        for rest, endpoint in _endpoints(pool):
            zone = endpoint.get("zone")
            if isinstance(zone, str) and zone not in zones:
                said = unknown_name("zone", zone, list(zones)) if zones else "the pool has no `zones` that say its rank"
                yield Fault((*path, *rest, "zone"), said)


def _probes(config: Table) -> Iterator[Fault]:
    for path, pool in tables(config, "pools"):
        health = pool.get("health")
        probe = health.get("probe") if isinstance(health, dict) else None
        kind = probe.get("kind") if isinstance(probe, dict) else None
        for _, endpoint in _endpoints(pool):
            by_datagram = "datagram" in endpoint
            if (kind == "ping" and not by_datagram) or (kind in ("http", "tcp", "ready") and by_datagram):
                whom = (
                    "datagram endpoints are asked by ping" if by_datagram else "only datagram endpoints answer a ping"
                )
                yield Fault((*path, "health", "probe", "kind"), f"{whom}; leave kind out")
                break
        if isinstance(probe, dict) and kind != "http" and "path" in probe:
            yield Fault((*path, "health", "probe", "path"), "only kind: http asks for a path", at_key=True)


def _endpoints(pool: Table) -> Iterator[tuple[Path, Table]]:
    for path, endpoint in tables(pool, "endpoints"):
        if any(key in endpoint for key in _KINDS):
            yield path, endpoint


def _host(endpoint: Table) -> str | None:
    url, address = endpoint.get("oip", endpoint.get("openai")), endpoint.get("datagram")
    try:
        if isinstance(url, str):
            return urlsplit(url).hostname
        return parse_host_port(address)[0] if isinstance(address, str) else None
    except ValueError:
        return None  # said by its type


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_CHECKS: tuple[Callable[[Table], Iterator[Fault]], ...] = (
    _batches,
    _certificates,
    _names_to_resolve,
    _one_api,
    _zones,
    _probes,
)

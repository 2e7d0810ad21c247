# SPDX-License-Identifier: Apache-2.0
"""Pools as the config file writes them: who answers, who is chosen, who is left out for a while, who is tried again."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from backends.settings import Endpoint, Refresh
from qos.schema import FilePath, ModelName, Name, Settings, Share, misplaced, one_of

__all__ = ["DiscoverySettings", "HealthSettings", "PoolSettings", "ProbeKind", "ProbeSettings", "RetrySettings"]

ProbeKind = Literal["ready", "http", "tcp", "ping"]


class ProbeSettings(Settings):
    """Asking endpoints whether they are there, besides what requests tell."""

    kind: Annotated[ProbeKind, one_of("ready", "http", "tcp", "ping")] | None = None
    """ready: the protocol's own; http: GET `path`, 200 to 399 is well; tcp: a connection; ping: an inference datagram;
    default: ready, for datagram endpoints ping."""
    path: Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=1024)] = "/"
    """For kind http."""
    every: Refresh = Field(default=2.0, json_schema_extra={"default": "2s"})
    """Between two probes of an endpoint, give or take a quarter."""
    timeout: Refresh = Field(default=1.0, json_schema_extra={"default": "1s"})
    """After which a probe has failed."""
    failures: int = Field(default=2, ge=1, le=100)
    """So many in a row eject the endpoint."""


class HealthSettings(Settings):
    """When an endpoint is ejected, and how it comes back."""

    failures: int = Field(default=5, ge=1, le=1000)
    """Requests failed in a row."""
    failure_rate: Share = Field(default=0.5, json_schema_extra={"default": "50%"})
    """Part of the requests of the last 10 s that failed, of 20 at least."""
    eject: Refresh = Field(default=5.0, json_schema_extra={"default": "5s"})
    """Until it is tried with one request again; doubled each time that fails, up to 12 times this."""
    max_ejected: Share = Field(default=0.5, json_schema_extra={"default": "50%"})
    """Most of a pool's endpoints that failed requests may eject."""
    probe: ProbeSettings | None = None
    """Ask them, too; default: requests alone tell."""


class RetrySettings(Settings):
    """A second try at another endpoint, of requests that can safely be repeated."""

    most: int = Field(default=2, ge=0, le=10)
    """Retries of one request."""
    budget: Share = Field(default=0.2, json_schema_extra={"default": "20%"})
    """Retries as a part of the pool's requests."""


class DiscoverySettings(Settings):
    """More endpoints, from a file that is watched."""

    file: FilePath
    """A YAML list of endpoints, as written under `endpoints`."""
    every: Refresh = Field(default=2.0, json_schema_extra={"default": "2s"})
    """How often it is looked at."""


Pick = Literal["least_latency", "round_robin", "least_in_flight"]
_PICKS: tuple[Pick, ...] = ("least_latency", "round_robin", "least_in_flight")
_MODEL = {"type": "string", "minLength": 1, "maxLength": 255}


def _in_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class PoolSettings(Settings):
    """Endpoints that serve the same models."""

    name: Name
    """For logs and metrics."""
    model: Annotated[
        tuple[ModelName, ...],
        Field(min_length=1),
        BeforeValidator(_in_tuple),
        WithJsonSchema({"anyOf": [_MODEL, {"type": "array", "items": _MODEL, "minItems": 1}]}),
    ]
    """The models served: a name, a pattern with * ? [...], or a list of them. Names go before patterns."""
    pick: Annotated[Pick, one_of(*_PICKS)] = "least_latency"
    """How one of the free endpoints is chosen."""
    zones: tuple[Name, ...] = ()
    """Zones by preference: a later one is used where it answers sooner in spite of the way; default: all alike."""
    health: HealthSettings = HealthSettings()
    """When an endpoint is ejected, and how it comes back."""
    retry: RetrySettings = RetrySettings()
    """A second try at another endpoint."""
    endpoints: tuple[Endpoint, ...] = Field(default=(), min_length=1)
    """Who answers; each has one of the keys onnx, oip, openai, datagram."""
    endpoints_from: DiscoverySettings | None = None
    """More of them, from a file that is watched; default: none."""

    @model_validator(mode="after")
    def _somebody(self) -> PoolSettings:
        if not self.endpoints and self.endpoints_from is None:
            raise misplaced("at least one endpoint is needed, or endpoints_from", key="endpoints")
        return self

# SPDX-License-Identifier: Apache-2.0
"""Pools and endpoints as the config file writes them. An endpoint's kind is told by its key: onnx, oip, datagram."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from qos.schema import Duration, FilePath, ModelName, Name, Settings, did_you_mean, misplaced, one_of, shown

__all__ = [
    "BatchSettings",
    "CaSettings",
    "DatagramSettings",
    "EndpointSettings",
    "OipSettings",
    "OnnxSettings",
    "PoolSettings",
    "parse_host_port",
]

# A label of a host's name (RFC 1123 section 2.1), and the underscore that container networks put into theirs.
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_HOST_PORT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})")


def parse_host_port(text: str) -> tuple[str, int]:
    """`host:port`, `[IPv6 address]:port` -> both. ValueError says how to write it."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(text)} is not host:port; write 127.0.0.1:4434 or [::1]:4434")
    bracketed, plain, port = match.groups()
    if int(port) > 65535:
        raise ValueError(f"port {port} is beyond 65535")
    if bracketed is not None and not _is_ipv6(bracketed):
        raise ValueError(f"{shown(bracketed)} is not an IPv6 address; only those stand in [ ]")
    if plain is not None and not _is_host(plain):
        raise ValueError(f"{shown(plain)} is neither a host's name nor an IPv4 address")
    return bracketed or plain, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    if re.fullmatch(r"[0-9.]+", text) is None:
        return len(text) <= 253 and all(map(_LABEL.fullmatch, text.removesuffix(".").split(".")))
    try:
        ip_address(text)  # digits and dots only: an IPv4 address or a slip
    except ValueError:
        return False
    return True


def _datagram_address(text: str) -> str:
    if parse_host_port(text)[1] == 0:
        raise ValueError("port 0 is nowhere to send to; allowed: 1 to 65535")
    return text


def _http_url(text: str) -> str:
    wrong = f"{shown(text)} is not a server's URL; write it as http://10.20.0.5:8000 or https://host:8000"
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise ValueError(wrong) from None
    # urlsplit quietly drops tabs and line ends: the text itself is checked.
    if re.search(r"[\s?#]", text) or not text.isprintable() or "@" in url.netloc:
        raise ValueError(f"{wrong}; a user, a query or a fragment has no place in it")
    known = _is_ipv6(host) if "[" in url.netloc else _is_host(host)
    if url.scheme not in ("http", "https") or port == 0 or not known:
        raise ValueError(wrong)
    return text


_LATER = ("openai", "udp", "zone", "key", "priority")

Provider = Literal["cpu", "cuda", "tensorrt"]
Slots = Annotated[int, Field(ge=1, le=65536)]


class BatchSettings(Settings):
    """Requests run as one."""

    max_size: int = Field(default=1, ge=1, le=4096)
    """Most rows in one batch; 1 does not batch."""
    max_wait: Duration = Field(default=0.0, json_schema_extra={"default": "0ms"})
    """Longest wait of a request for others to join its batch."""


class OnnxSettings(Settings):
    """A model that runs in this process, by ONNX Runtime."""

    later: ClassVar = _LATER

    onnx: FilePath
    """The model's file."""
    providers: tuple[Annotated[Provider, one_of("cpu", "cuda", "tensorrt")], ...] = Field(
        default=("cpu",), min_length=1
    )
    """Where it runs, in order of preference."""
    batch: BatchSettings = BatchSettings()
    """Requests run as one."""
    slots: Slots | None = Field(default=None, json_schema_extra={"default": 1})
    """Batches in flight; default 1."""


class CaSettings(Settings):
    """Whom to believe on the other side."""

    ca: FilePath
    """Certificates of the authorities that may sign the server's, PEM."""


class OipSettings(Settings):
    """Another server that speaks the Open Inference Protocol over HTTP/1.1."""

    later: ClassVar = _LATER

    oip: Annotated[str, AfterValidator(_http_url), Field(json_schema_extra={"pattern": "^https?://"})]
    """The server's URL."""
    slots: Slots | None = Field(default=None, json_schema_extra={"default": 16})
    """Requests in flight; default 16."""
    tls: CaSettings | None = None
    """Whom to believe behind https; default: the system's authorities."""


class DatagramSettings(Settings):
    """Another machine's `inferlane serve`, by inference datagram."""

    later: ClassVar = _LATER

    datagram: Annotated[str, AfterValidator(_datagram_address)]
    """host:port."""
    slots: Slots | None = Field(default=None, json_schema_extra={"default": 16})
    """Requests in flight; default 16."""


_KINDS: dict[str, type[Settings]] = {"onnx": OnnxSettings, "oip": OipSettings, "datagram": DatagramSettings}
_LATER_KINDS = ("openai", "udp")


def _with_one_kind(value: Any) -> Any:
    """Refuse an endpoint that has none or two of the keys that name kinds."""
    if not isinstance(value, dict):
        return value
    kinds = [key for key in value if key in _KINDS]
    if len(kinds) == 1:
        return value
    allowed = f"an endpoint has one of the keys {', '.join(_KINDS)}"
    if kinds:
        raise misplaced(f"{kinds[0]} stands here already; {allowed}", key=kinds[1])
    later = next((key for key in value if key in _LATER_KINDS), None)
    if later is not None:
        raise misplaced(f"not available yet; {allowed}", key=later)
    guess = next(filter(None, (did_you_mean(key, _KINDS) for key in value)), "")
    raise ValueError(f"names nobody to ask{guess}; {allowed}")


def _kind(value: Any) -> str:
    """The tag of a variant: its table's name in angle brackets, which no key that is allowed looks like."""
    if isinstance(value, Settings):
        return f"<{type(value).__name__}>"
    table = next((table for key, table in _KINDS.items() if isinstance(value, dict) and key in value), OipSettings)
    return f"<{table.__name__}>"


EndpointSettings = OnnxSettings | OipSettings | DatagramSettings

Endpoint = Annotated[
    Annotated[OnnxSettings, Tag("<OnnxSettings>")]
    | Annotated[OipSettings, Tag("<OipSettings>")]
    | Annotated[DatagramSettings, Tag("<DatagramSettings>")],
    Discriminator(_kind),
    BeforeValidator(_with_one_kind),
]


Pick = Literal["round_robin", "least_in_flight"]
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
    pick: Annotated[Pick, one_of("round_robin", "least_in_flight", later=("least_latency",))] = "least_in_flight"
    """How one of the free endpoints is chosen."""
    endpoints: tuple[Endpoint, ...] = Field(min_length=1)
    """Who answers; each has one of the keys onnx, oip, datagram."""

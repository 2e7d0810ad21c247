# SPDX-License-Identifier: Apache-2.0
"""Endpoints as the config file writes them. Their kind is told by a key: onnx, oip, openai, datagram."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from qos.schema import Duration, FilePath, Name, Settings, did_you_mean, misplaced, one_of, shown

__all__ = [
    "AdaptiveSettings",
    "BatchSettings",
    "CaSettings",
    "DatagramSettings",
    "Endpoint",
    "EndpointSettings",
    "OipSettings",
    "OnnxSettings",
    "OpenAiSettings",
    "Refresh",
    "SecretSettings",
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


HttpUrl = Annotated[str, AfterValidator(_http_url), Field(json_schema_extra={"pattern": "^https?://"})]

_LATER = ("udp",)

Provider = Literal["cpu", "cuda", "tensorrt"]
Slots = Annotated[int, Field(ge=1, le=65536)]
PriorityField = Literal["vllm", "triton"]


_SLOTS = {"type": "integer", "minimum": 1, "maximum": 65536}


class AdaptiveSettings(Settings):
    """A number of places that follows the latency."""

    floor: Slots = 1
    """Never fewer."""
    ceiling: Slots = 256
    """Never more."""

    @model_validator(mode="after")
    def _room(self) -> AdaptiveSettings:
        if self.floor > self.ceiling:
            raise misplaced("floor is above the ceiling", key="floor")
        return self


def _adaptive(value: object) -> object:
    if value == "adaptive":
        return AdaptiveSettings()
    if isinstance(value, str):
        raise ValueError(
            f"{shown(value)} is not known; allowed: a number, adaptive, or a mapping with floor and ceiling"
        )
    return value


def _slots_kind(value: Any) -> str:
    return "<AdaptiveSettings>" if isinstance(value, (dict, AdaptiveSettings)) else "<int>"


RemoteSlots = Annotated[
    Annotated[Slots, Tag("<int>")] | Annotated[AdaptiveSettings, Tag("<AdaptiveSettings>")],
    Discriminator(_slots_kind),
    BeforeValidator(_adaptive),
    WithJsonSchema(
        {
            "anyOf": [
                _SLOTS,
                {"const": "adaptive"},
                {
                    "type": "object",
                    "properties": {"floor": _SLOTS, "ceiling": _SLOTS},
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
"""A fixed number, or one that follows the latency."""


class SecretSettings(Settings):
    """Where a secret is, which has no place in this file."""

    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """An environment variable."""
    file: FilePath | None = None
    """A file whose first line it is."""

    @model_validator(mode="after")
    def _one_of_them(self) -> SecretSettings:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret has one of the keys env, file")
        return self


def _refresh(seconds: float) -> float:
    if not 0.1 <= seconds <= 86_400:
        raise ValueError("at least 100ms and at most 1440m")
    return seconds


Refresh = Annotated[Duration, AfterValidator(_refresh)]


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
    zone: Name | None = None
    """Where it is, as the pool's `zones` name it."""


class CaSettings(Settings):
    """Whom to believe on the other side."""

    ca: FilePath
    """Certificates of the authorities that may sign the server's, PEM."""


class _RemoteSettings(Settings):
    """What all servers elsewhere have."""

    later: ClassVar = _LATER

    slots: RemoteSlots | None = Field(default=None, json_schema_extra={"default": 16})
    """Requests in flight: a number, `adaptive`, or bounds for it; default 16."""
    zone: Name | None = None
    """Where it is, as the pool's `zones` name it."""
    resolve: Refresh | None = None
    """Look its name up again this often: each address is an endpoint of its own; default: one endpoint."""


class _HttpSettings(_RemoteSettings):
    """What servers behind HTTP/1.1 have."""

    tls: CaSettings | None = None
    """Whom to believe behind https; default: the system's authorities."""
    key: SecretSettings | None = None
    """Sent as `Authorization: Bearer`; default: none."""
    priority: Annotated[PriorityField, one_of("vllm", "triton")] | None = None
    """Whose `priority` field to set from the class in each request; default: the client's is taken out."""


class OipSettings(_HttpSettings):
    """Another server that speaks the Open Inference Protocol over HTTP/1.1."""

    oip: HttpUrl
    """The server's URL."""


class OpenAiSettings(_HttpSettings):
    """A server with the OpenAI-compatible API over HTTP/1.1: vLLM, SGLang, llama.cpp."""

    openai: HttpUrl
    """The server's URL, without its /v1."""


class DatagramSettings(_RemoteSettings):
    """Another machine's `inferlane serve`, by inference datagram."""

    datagram: Annotated[str, AfterValidator(_datagram_address)]
    """host:port."""


_KINDS: dict[str, type[Settings]] = {
    "onnx": OnnxSettings,
    "oip": OipSettings,
    "openai": OpenAiSettings,
    "datagram": DatagramSettings,
}
_LATER_KINDS = ("udp",)


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


EndpointSettings = OnnxSettings | OipSettings | OpenAiSettings | DatagramSettings

Endpoint = Annotated[
    Annotated[OnnxSettings, Tag("<OnnxSettings>")]
    | Annotated[OipSettings, Tag("<OipSettings>")]
    | Annotated[OpenAiSettings, Tag("<OpenAiSettings>")]
    | Annotated[DatagramSettings, Tag("<DatagramSettings>")],
    Discriminator(_kind),
    BeforeValidator(_with_one_kind),
]

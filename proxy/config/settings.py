# SPDX-License-Identifier: Apache-2.0
"""The whole config as one frozen model: listeners, admin port and log here, the rest from `qos` and `backends`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema

from backends.pool_settings import PoolSettings
from backends.settings import parse_host_port
from qos.classify import Policy
from qos.schema import FilePath, Name, Settings, Size, one_of, shown, written
from qos.settings import BUILT_IN_CLASSES, ClassSettings, RuleSettings, TrustSettings, class_table, policy
from qos.tc.policy import LinkPolicy, link_policy
from qos.tc.settings import FlowSettings, InterfaceSettings, SafetySettings

__all__ = [
    "MOST_WORKERS",
    "AdminSettings",
    "Bind",
    "Config",
    "ListenerSettings",
    "LogSettings",
    "TlsFiles",
    "Transport",
]


@dataclass(frozen=True, slots=True)
class Bind:
    """A local address to listen at."""

    host: str
    """An IP address, without brackets."""
    port: int
    """0 takes a free one."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Bind:
        """`127.0.0.1:4433`, `[::1]:4433`. ValueError says how to write it."""
        host, port = parse_host_port(text)
        try:
            ip_address(host)
        except ValueError:
            remedy = (
                "127.0.0.1 or [::1]" if host == "localhost" else "an IP address, such as 127.0.0.1, 0.0.0.0 or [::]"
            )
            raise ValueError(f"{shown(host)} is a name; write {remedy}") from None
        return cls(host, port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ip_address(self.host).is_loopback


BindAddress = Annotated[
    Bind,
    written(Bind.parse, "an address with its port; write 127.0.0.1:4433 or [::1]:4433"),
    WithJsonSchema({"type": "string", "examples": ["127.0.0.1:4433", "[::1]:4433"]}),
]


class TlsFiles(Settings):
    """A certificate and its key, both PEM."""

    cert: FilePath
    """The certificate, and behind it those that lead to its authority."""
    key: FilePath
    """The certificate's private key."""


def _development(value: object) -> object:
    if value == "development":
        return value
    raise ValueError(f"{shown(value)} is not known; allowed: development, or a mapping with cert and key")


def _tls_kind(value: Any) -> str:
    return "<TlsFiles>" if isinstance(value, (dict, TlsFiles)) else "<development>"


Tls = Annotated[
    Annotated[TlsFiles, Tag("<TlsFiles>")]
    | Annotated[Literal["development"], BeforeValidator(_development), Tag("<development>")],
    Discriminator(_tls_kind),
]

Transport = Literal["h3", "stream", "datagram", "udp", "h1"]
TRANSPORTS: tuple[Transport, ...] = ("h3", "stream", "datagram", "udp", "h1")


class ListenerSettings(Settings):
    """One door: addresses, what is spoken there, and what it may carry."""

    later: ClassVar = ("networks", "forward")

    name: Name
    """For rules, logs and metrics."""
    bind: tuple[BindAddress, ...] = Field(min_length=1)
    """Addresses with their ports; port 0 takes a free one, and the bound addresses are logged."""
    accept: frozenset[Annotated[Transport, one_of(*TRANSPORTS)]] = Field(
        # A list in the file; lax about that, and only that.
        default=frozenset(TRANSPORTS),
        strict=False,
        min_length=1,
        json_schema_extra={"default": list(TRANSPORTS)},
    )
    """HTTP/3; raw QUIC streams; QUIC DATAGRAM; plain UDP datagrams; HTTP/1.1 over TLS on TCP. All at one port."""
    tls: Tls | None = None
    """The certificate for all but plain UDP: files, or `development`, made at start, for loopback."""
    max_class: Name | None = None
    """The highest class this door may carry; default: the default class."""
    max_body: Annotated[Size, Field(ge=1, le=2**32 - 2)] = Field(
        default=64 * 2**20, json_schema_extra={"default": "64MiB"}
    )
    """Longest body of a request."""


class AdminSettings(Settings):
    """The port for metrics and health, reading only; what changes something goes through the Unix socket."""

    bind: BindAddress = Field(default=Bind("127.0.0.1", 9433), json_schema_extra={"default": "127.0.0.1:9433"})
    """TCP address of /metrics, /healthz, /readyz and /v1/..."""
    socket: FilePath | None = None
    """A Unix socket for commands that change something, for root and the gateway's own user; default: none."""


LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


class LogSettings(Settings):
    """One line a request, and what else happens."""

    format: Annotated[LogFormat, one_of("json", "console")] = "json"
    """json for machines, console for people."""
    level: Annotated[LogLevel, one_of("debug", "info", "warning", "error")] = "info"
    """What is not worth a line is below it."""


MOST_WORKERS = 64


def _workers(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_WORKERS):
        return value
    raise ValueError(f"{shown(value)} is not a number of processes; allowed: 1 to {MOST_WORKERS}, or auto")


Workers = Annotated[
    int | Literal["auto"],
    BeforeValidator(_workers),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_WORKERS}, {"const": "auto"}]}),
]


def _version(value: object) -> object:
    if value == 1 and type(value) is int:
        return value
    raise ValueError(f"{shown(value)} is not a version of this file's format; allowed: 1")


class Config(Settings):
    """A whole gateway, verified."""

    later: ClassVar = ("clients",)

    version: Annotated[Literal[1], BeforeValidator(_version)] = 1
    """Of this file's format."""
    classes: tuple[ClassSettings, ...] = Field(default=BUILT_IN_CLASSES, min_length=1)
    """Traffic classes in rank order: the first is served first."""
    rules: tuple[RuleSettings, ...] = ()
    """The first that matches decides; unmatched: what a trusted client asked for, else the default class."""
    trust: TrustSettings = TrustSettings()
    """Who may choose a class."""
    listeners: tuple[ListenerSettings, ...] = Field(min_length=1)
    """Where requests come in."""
    pools: tuple[PoolSettings, ...] = Field(min_length=1)
    """Who answers for which model; a model's exact name goes before patterns, then the first match."""
    interfaces: tuple[InterfaceSettings, ...] = ()
    """Links that traffic control may shape; none: marks only."""
    flows: tuple[FlowSettings, ...] = ()
    """Traffic through this host that is not the gateway's own; the first that matches decides."""
    safety: SafetySettings = SafetySettings()
    """How changes to the kernel are made, kept and undone."""
    admin: AdminSettings = AdminSettings()
    """The port for metrics and health."""
    log: LogSettings = LogSettings()
    """What is written to standard error."""
    workers: Workers = 1
    """Processes that share the doors and the pools' places; auto: one for each CPU that the gateway may use."""

    def policy(self) -> Policy:
        """What `qos.classify` needs of it, the class table among it."""
        listeners = {each.name: each.max_class for each in self.listeners}
        return policy(class_table(self.classes), self.rules, self.trust, listeners)

    def link_policy(self) -> LinkPolicy:
        """What `qos.tc` needs of it."""
        return link_policy(self.classes, self.interfaces, self.flows, self.safety)

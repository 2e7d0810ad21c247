# SPDX-License-Identifier: Apache-2.0
"""A gateway's URL, taken apart: scheme, host, port. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

__all__ = ["DEFAULT_PORT", "Scheme", "Target", "parse_target"]

DEFAULT_PORT = 4433


class Scheme(Enum):
    """How requests travel, by the URL's scheme."""

    HTTP3 = "https"
    STREAM = "quic"
    DATAGRAM = "quic+datagram"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a gateway listens, and which of its transports is meant."""

    scheme: Scheme
    host: str
    port: int

    @property
    def authority(self) -> str:
        """host:port as HTTP writes it (RFC 3986 section 3.2)."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme.value}://{self.authority}"


def parse_target(url: str) -> Target:
    """`https://host:4433` -> Target. ValueError says what is wrong and what is allowed."""
    try:
        parts = urlsplit(url)
        scheme, host, port = Scheme(parts.scheme), parts.hostname, parts.port
    except ValueError as error:
        if "is not a valid Scheme" not in str(error):
            raise ValueError(f"{url!r}: {error}") from None
        schemes = ", ".join(f"{each.value}://" for each in Scheme)
        raise ValueError(f"{url!r}: the scheme must be one of {schemes}") from None
    if not host:
        raise ValueError(f"{url!r} names no host; write {scheme.value}://HOST:{DEFAULT_PORT}")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: only a scheme, a host and a port belong here; models are named in infer()")
    if port == 0:
        raise ValueError(f"{url!r}: port 0 cannot be asked; the gateway logs the port it bound")
    return Target(scheme, host, DEFAULT_PORT if port is None else port)

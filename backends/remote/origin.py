# SPDX-License-Identifier: Apache-2.0
"""An `oip:` or `openai:` address -> where to connect and what to ask for there. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from inferlane.errors import Reason, Refused

__all__ = ["Origin", "model_path", "parse_origin"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """One server, and the path under which it has its `/v2` or `/v1`."""

    host: str
    """A name in ASCII, or an IP address without brackets."""
    port: int
    tls: bool
    authority: bytes
    """As the Host field has it: without the scheme's own port."""
    base: str
    """"" or a path without a slash at its end."""
    address: str | None = None
    """The IP address to connect to instead of looking the host up; TLS and the Host field keep the name."""
    unix: Path | None = None
    """The Unix socket to connect to instead of any of these."""


def parse_origin(url: str, address: str | None = None, unix: Path | None = None) -> Origin:
    """`http://host:port/base` taken apart. ValueError says what is wrong and what is allowed.

    address: an IP address that the host's name was resolved to; unix: a Unix socket to connect to instead.
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"{url!r}: an address starts with http:// or https://")
    if not parts.hostname:
        raise ValueError(f"{url!r}: the host is missing, as in http://10.20.0.5:8000")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: only a host, a port and a path are allowed, no user, query or fragment")
    try:
        host = parts.hostname.encode("idna").decode() if ":" not in parts.hostname else parts.hostname
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError as error:  # UnicodeError of the name among them
        raise ValueError(f"{url!r}: {error}") from None
    if port == 0:
        raise ValueError(f"{url!r}: port 0 cannot be connected to")
    named = f"[{host}]" if ":" in host else host
    authority = named if port == _PORTS[parts.scheme] else f"{named}:{port}"
    base = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    tls = parts.scheme == "https"
    named_so = authority.encode()
    return Origin(host=host, port=port, tls=tls, authority=named_so, base=base, address=address, unix=unix)


def model_path(base: str, model: str, version: str) -> str:
    """The path of a model's metadata; `/infer` behind it asks. Refused where a name would leave its place."""
    if model in ("", ".", "..") or version in (".", ".."):
        # dots stay dots under percent-encoding (RFC 3986 section 6.2.2.3), so such a name would climb out of /v2
        raise Refused(Reason.UNKNOWN_MODEL, f"{model!r} version {version!r} cannot be the name of a model")
    path = f"{base}/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path

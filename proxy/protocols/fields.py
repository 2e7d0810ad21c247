# SPDX-License-Identifier: Apache-2.0
"""Request hygiene: a decoded HTTP/3 field section becomes a clean request head, or is malformed.

aioquic leaves this to us, and everything let through here is written into an HTTP/1.1 request later:
what two servers could read in two ways is refused, never repaired (RFC 9114 section 4.1.2, RFC 9110
section 5.5; request smuggling). Where the grammar is wider than inference needs, we take the narrower reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from backends.messages import Fields

__all__ = ["MAX_FIELDS", "MAX_FIELD_SECTION", "FieldsTooLarge", "MalformedRequest", "RequestHead", "clean"]

MAX_FIELD_SECTION = 32 * 1024
"""Name + value + 32 bytes a field (RFC 9114 section 4.2.2). nginx and Envoy accept 32 and 60 KiB by default."""
MAX_FIELDS = 100
MAX_PATH = 2048

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch  # RFC 9110 token, lower case only (RFC 9114 section 4.2)
# No controls but HTAB, and no space or HTAB at its ends.
_VALUE = re.compile(rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?").fullmatch
_METHOD = re.compile(rb"[A-Z]{1,16}").fullmatch
_PATH = re.compile(rb"/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*").fullmatch  # RFC 3986 section 3.3
# What a second parser may decode into another path: controls, "/", "\" and "." in percent-encoding, dot
# segments with or without parameters, and a fragment cannot occur because "#" is not in _PATH.
_AMBIGUOUS_PATH = re.compile(rb"%(?:[01][0-9A-Fa-f]|7[Ff]|2[EeFf]|5[Cc])|/\.{1,2}(?:[/;?]|$)").search
# Names of model hubs have slashes, and OpenAI's clients escape those. Such a path is answered here and goes nowhere.
_NAMES_A_MODEL = b"/v1/models/"
_SLASH = re.compile(rb"%2[Ff]")
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9\-._~]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?").fullmatch
_CONTENT_LENGTH = re.compile(rb"[0-9]{1,15}").fullmatch  # not int(): it takes "+3" and "0_3"

_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})
# Envoy in front of us passes its own client's scheme on (RFC 9114 section 4.3.1 allows any); nothing here turns on it.
_SCHEMES = frozenset({b"https", b"http"})
# RFC 9114 section 4.2; a request that carries one is malformed.
_CONNECTION_SPECIFIC = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
# Meant for this hop only: taken note of or ignored here, never handed on.
_FOR_THIS_HOP = frozenset({b"host", b"content-length", b"te", b"expect", b"proxy-authorization", b"proxy-authenticate"})
_AT_MOST_ONCE = frozenset({b"host", b"content-length", b"inference-header-content-length", b"content-type"})


class MalformedRequest(ValueError):  # noqa: N818  what the peer did, in RFC 9114's word
    """The field section breaks a rule; the message says which."""


class FieldsTooLarge(ValueError):  # noqa: N818  RFC 6585's words
    """More fields or bytes than a request may bring."""


class RequestHead(NamedTuple):
    """A clean request head. The path has a leading slash and no ambiguous escapes."""

    method: bytes
    path: bytes
    authority: bytes
    content_length: int | None
    fields: Fields


def clean(section: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """One decoded field section, pseudo-fields first -> the head. Raises MalformedRequest or FieldsTooLarge."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    once: dict[bytes, bytes] = {}
    size = count = 0
    for name, value in section:
        size += len(name) + len(value) + 32
        count += 1
        if size > MAX_FIELD_SECTION or count > MAX_FIELDS:
            raise FieldsTooLarge(f"a request may bring {MAX_FIELDS} fields and {MAX_FIELD_SECTION} bytes of them")
        if name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or fields or once:
                raise MalformedRequest(f"pseudo-field {name!r} is unknown, repeated or after ordinary fields")
            pseudo[name] = value
            continue
        _check_field(name, value)
        if name in _AT_MOST_ONCE:
            if name in once:
                raise MalformedRequest(f"field {name!r} occurs twice")
            once[name] = value
        if name not in _FOR_THIS_HOP:
            fields.append((name, value))
    return _head(pseudo, once, tuple(fields))


def _check_field(name: bytes, value: bytes) -> None:
    if not _NAME(name):
        raise MalformedRequest(f"field name {name!r} is not a lower-case token")
    if not _VALUE(value):
        raise MalformedRequest(f"the value of {name!r} has control characters or spaces around it")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedRequest(f"field {name!r} is connection-specific and has no place in HTTP/3")


def _head(pseudo: dict[bytes, bytes], once: dict[bytes, bytes], fields: Fields) -> RequestHead:
    method, scheme, path = pseudo.get(b":method", b""), pseudo.get(b":scheme"), pseudo.get(b":path", b"")
    host = once.get(b"host")
    authority = pseudo.get(b":authority", b"") or host or b""
    path = _checked(method, scheme, path, authority, host)
    length = once.get(b"content-length")
    if length is not None and not _CONTENT_LENGTH(length):
        raise MalformedRequest("content-length is not a plain decimal number")
    return RequestHead(method, path, authority, None if length is None else int(length), fields)


@lru_cache(maxsize=1024)  # clients ask for few things, many times; what is malformed is not kept
def _checked(method: bytes, scheme: bytes | None, path: bytes, authority: bytes, host: bytes | None) -> bytes:
    """The path as it is read."""
    if not _METHOD(method):
        raise MalformedRequest(":method is missing or not an upper-case word")
    if scheme not in _SCHEMES:
        raise MalformedRequest(":scheme is missing or neither https nor http")
    if path.startswith(_NAMES_A_MODEL):
        path = _SLASH.sub(b"/", path)
    if len(path) > MAX_PATH or not _PATH(path) or _AMBIGUOUS_PATH(path):
        raise MalformedRequest(":path is missing, too long, or has characters or escapes that servers read differently")
    if not _AUTHORITY(authority):
        raise MalformedRequest(":authority is missing or not host[:port]")
    if host not in (None, authority):
        raise MalformedRequest("host and :authority disagree")
    return path

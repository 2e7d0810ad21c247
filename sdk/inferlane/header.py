# SPDX-License-Identifier: Apache-2.0
"""What stands in front of every inference message, and what each type of message may say (docs/wire.md, "Types").

wire.py turns it into bytes and back; everybody imports these names from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

__all__ = [
    "COOKIE_LENGTH",
    "MAX_FRAGMENTS",
    "RULES",
    "UNKNOWN_US",
    "Flag",
    "Header",
    "Rule",
    "Type",
    "WireError",
    "changed",
    "check",
    "check_written",
]

MAX_FRAGMENTS: Final = 16  # as many as a 16-bit map shows; a longer body is a stream's business
UNKNOWN_US: Final = 0xFFFFFFFF
COOKIE_LENGTH: Final = 16
_TAG_LENGTH: Final = 16
_MAX_DATAGRAM_PAYLOAD: Final = 0xFFFF  # no datagram of any kind carries more
_MAX_DSCP: Final = 63


class WireError(ValueError):
    """Bytes that are no message of this version, or a message that has no bytes.

    rule: the broken rule's name in docs/wire.md, one word, fit for a metric's label.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule


class Type(IntEnum):
    """What a message is. From 0x80 on only servers send, so that a reply can never be answered."""

    REQUEST = 0x01
    CANCEL = 0x02
    PING = 0x03
    RECEIVED = 0x04
    REPLY = 0x80
    ERROR = 0x81
    CHALLENGE = 0x82
    ACK = 0x83
    PONG = 0x84


class Flag:
    """Which optional fields are there; they follow the fixed part in this order. Plain numbers: IntFlag is slow."""

    CLASS: Final = 0x01
    MODEL: Final = 0x02
    COOKIE: Final = 0x04
    AUTH: Final = 0x08
    RETRY_AFTER: Final = 0x10
    TIMING: Final = 0x20
    DSCP: Final = 0x40
    BITMAP: Final = 0x80
    ALL: Final = 0xFF


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Header:
    """One message's header. None, or "" for the version: the field is absent.

    Whoever gets one leaves it as it is. It is not frozen because five of them are made for one datagram that goes
    through a gateway: with so many fields that takes 4 us each instead of 1.5, and a copy 10 us instead of 2.5.
    """

    type: Type
    request_id: int
    index: int = 0
    """Of this fragment among `count`."""
    count: int = 1
    reason: int = 0
    """A `Reason.code` in errors, else 0."""
    status: int = 0
    """The HTTP status in replies and errors, else 0."""
    remaining_us: int = 0
    """0: none given, the class's deadline counts."""
    total_length: int = 0
    """Of the body over all fragments; `wire.UNTIL_FIN` on a stream where it is not known yet."""
    json_length: int = 0
    """Bytes of JSON before the binary tensors; 0: all of the body is JSON."""
    class_name: str | None = None
    """The traffic class: asked for in requests, served in replies and errors."""
    model: str | None = None
    version: str = ""
    cookie: bytes | None = None
    auth: tuple[int, bytes] | None = None
    """Key id and tag; carried, not yet checked by anybody."""
    retry_after_ms: int | None = None
    queue_us: int | None = None
    backend_us: int | None = None
    compute_us: int | None = None
    dscp: int | None = None
    """As the server saw it on the request."""
    bitmap: int | None = None
    """Bit i: fragment i is here."""


_FIELDS: Final = Header.__slots__
_values_of = attrgetter(*_FIELDS)


def changed(header: Header, **changes: Any) -> Header:
    """A copy with changes: `dataclasses.replace` at a quarter of its price."""
    return Header(**dict(zip(_FIELDS, _values_of(header), strict=True), **changes))


class Rule(NamedTuple):
    """What messages of one type carry."""

    needed: int = 0
    """Flags that the first fragment must have."""
    allowed: int = 0
    """Flags that the first fragment may have."""
    allowed_later: int = 0
    """Flags that the other fragments may have."""
    most_fragments: int = 1
    body: bool = False
    statuses: range = range(1)


_PROOF = Flag.COOKIE | Flag.AUTH
_ANSWER = Flag.CLASS | Flag.RETRY_AFTER | Flag.TIMING | Flag.DSCP
_FINAL_STATUSES = range(200, 600)  # RFC 9110 section 15, without the interim ones

RULES: dict[int, Rule] = {
    Type.REQUEST: Rule(Flag.MODEL, Flag.CLASS | Flag.MODEL | _PROOF, Flag.COOKIE, MAX_FRAGMENTS, body=True),
    Type.CANCEL: Rule(0, _PROOF),
    Type.PING: Rule(0, _PROOF),
    Type.RECEIVED: Rule(Flag.BITMAP, Flag.BITMAP | _PROOF),
    Type.REPLY: Rule(0, _ANSWER, 0, MAX_FRAGMENTS, body=True, statuses=_FINAL_STATUSES),
    Type.ERROR: Rule(0, _ANSWER, 0, body=True, statuses=_FINAL_STATUSES),
    Type.CHALLENGE: Rule(Flag.COOKIE, Flag.COOKIE),
    Type.ACK: Rule(Flag.BITMAP, Flag.BITMAP),
    Type.PONG: Rule(),
}


def check(header: Header, flags: int, rule: Rule) -> None:
    """Whether a message of this type may say this: the same for what comes and what goes."""
    if not (1 <= header.count <= rule.most_fragments and 0 <= header.index < header.count):
        raise WireError("fragment", f"{header.index} of {header.count}; this type has {rule.most_fragments} at most")
    allowed, needed = (rule.allowed_later, 0) if header.index else (rule.allowed, rule.needed)
    if flags & ~allowed or needed & ~flags:
        raise WireError("flags", f"0x{flags:04x}; here 0x{needed:04x} are needed and 0x{allowed:04x} allowed")
    if header.status not in rule.statuses:
        raise WireError("status", f"{header.status} in a message of type {header.type.name.lower()}")
    if (header.reason != 0) is not (header.type is Type.ERROR):
        raise WireError("reason", f"{header.reason}: errors have one, all else has 0")
    if header.remaining_us and header.type is not Type.REQUEST:
        raise WireError("remaining", f"{header.remaining_us} us, and only requests have a remaining time")
    if header.dscp is not None and header.dscp > _MAX_DSCP:
        raise WireError("dscp", f"{header.dscp} is more than {_MAX_DSCP}")
    _check_lengths(header, rule)


def _check_lengths(header: Header, rule: Rule) -> None:
    total, count = header.total_length, header.count
    if total and not rule.body:
        raise WireError("total_length", f"{total}, and this type has no body")
    if count > 1 and not count <= total <= count * _MAX_DATAGRAM_PAYLOAD:
        raise WireError("total_length", f"{total} bytes cannot come in {count} fragments")
    if header.json_length > total:
        raise WireError("json_length", f"{header.json_length} is more than the body's {total}")


def check_written(header: Header) -> None:
    """What a caller can get wrong and bytes cannot."""
    if header.version and header.model is None:
        raise WireError("name", "a version without a model")
    if header.cookie is not None and len(header.cookie) != COOKIE_LENGTH:
        raise WireError("range", f"a cookie of {len(header.cookie)} bytes, it must have {COOKIE_LENGTH}")
    if header.auth is not None and len(header.auth[1]) != _TAG_LENGTH:
        raise WireError("range", f"a tag of {len(header.auth[1])} bytes, it must have {_TAG_LENGTH}")
    if UNKNOWN_US in (header.queue_us, header.backend_us, header.compute_us):
        raise WireError("range", f"{UNKNOWN_US} us means unknown on the wire; say None, or less")

# SPDX-License-Identifier: Apache-2.0
"""The bytes of every inference message: a Header there and back, long bodies cut to datagrams. Normative: docs/wire.md.

Sans-IO and without state; transfer.py has the conversation. Whatever the bytes, decoding raises nothing but WireError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from inferlane.errors import Reason, Refused
from inferlane.header import (
    COOKIE_LENGTH,
    MAX_FRAGMENTS,
    RULES,
    UNKNOWN_US,
    Flag,
    Header,
    Type,
    WireError,
    changed,
    check,
    check_written,
)

__all__ = [
    "COOKIE_LENGTH",
    "FIXED_LENGTH",
    "MAGIC",
    "MAX_DATAGRAM",
    "MAX_FRAGMENTS",
    "MAX_HEADER",
    "UNKNOWN_US",
    "UNTIL_FIN",
    "VERSION",
    "Header",
    "Type",
    "WireError",
    "decode",
    "encode",
    "fragments",
    "header_length",
    "heads",
    "microseconds",
    "split",
]

MAGIC: Final = 0x0A  # RFC 9443 section 3 gives 4..15 to no protocol, so QUIC can share the UDP port
VERSION: Final = 1
MAX_DATAGRAM: Final = 1200  # what every path that carries QUIC must carry (RFC 9000 section 14)
UNTIL_FIN: Final = 0xFFFFFFFF
FIXED_LENGTH: Final = 32
MAX_HEADER: Final = 855  # all optional fields at their longest; what claims more is rubbish, not worth reading on for
_MAX_NAME: Final = 255
_NAMES: Final = 512  # checked and converted once: classes, models and versions are few
_CONTROLS: Final = bytes((*range(0x20), 0x7F))  # names end up in log lines and URLs

_FIXED = struct.Struct("!6BHQHHIII")
_AUTH = struct.Struct("!I16s")
_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_TIMING = struct.Struct("!III")

# Keyed by plain numbers: an enum member's hash is a Python call, and this is looked up for every datagram.
_TYPES = {int(each): (each, RULES[each]) for each in Type}


def decode(data: bytes) -> tuple[Header, int]:
    """A message's header and its length, behind which the payload starts. WireError says what is wrong."""
    length = header_length(data)
    if length is None or length > len(data):
        raise WireError("truncated", f"{len(data)} bytes are not a whole header")
    _, _, code, index, count, reason, flags, request_id, status, _, remaining, total, json = _FIXED.unpack_from(data)
    if code not in _TYPES:
        raise WireError("type", f"0x{code:02x} is no message of version {VERSION}")
    kind, rule = _TYPES[code]
    header = Header(
        type=kind,
        request_id=request_id,
        index=index,
        count=count,
        reason=reason,
        status=status,
        remaining_us=remaining,
        total_length=total,
        json_length=json,
        **_read_optional(data[:length], flags),
    )
    check(header, flags, rule)
    return header, length


def encode(header: Header) -> bytes:
    """The header's bytes; the payload follows. WireError: no peer would take it."""
    return _encode(header, *_write_optional(header))


def _encode(header: Header, flags: int, optional: bytes) -> bytes:
    check_written(header)
    check(header, flags, _TYPES[header.type][1])
    try:
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            header.type,
            header.index,
            header.count,
            header.reason,
            flags,
            header.request_id,
            header.status,
            FIXED_LENGTH + len(optional),
            header.remaining_us,
            header.total_length,
            header.json_length,
        )
    except struct.error as error:
        raise WireError("range", str(error)) from None
    return fixed + optional


def header_length(data: bytes) -> int | None:
    """How long the header is that begins `data`; None: too little is there to tell, so read on."""
    if data and data[0] != MAGIC:
        raise WireError("magic", f"the first byte is 0x{data[0]:02x}, not 0x{MAGIC:02x}")
    if len(data) > 1 and data[1] != VERSION:
        raise WireError("version", f"{data[1]}, and only {VERSION} is known here")
    if len(data) < FIXED_LENGTH:
        return None
    length = int(_U16.unpack_from(data, 18)[0])
    if not FIXED_LENGTH <= length <= MAX_HEADER:
        raise WireError("header_length", f"{length} is not in {FIXED_LENGTH}..{MAX_HEADER}")
    return length


def microseconds(seconds: float) -> int:
    """Seconds as the wire counts them; what does not fit becomes the nearest that does."""
    us = seconds * 1e6
    return round(us if 0 <= us < UNKNOWN_US - 1 else min(max(us, 0), UNKNOWN_US - 1))


def fragments(header: Header, body: bytes, *, max_datagram: int = MAX_DATAGRAM) -> list[bytes]:
    """A message as the datagrams that carry it. Refused(USE_STREAM) when it needs too many."""
    flags, optional = _write_optional(header)
    if len(body) <= max_datagram - FIXED_LENGTH - len(optional):
        if (header.index, header.count, header.total_length) != (0, 1, len(body)):
            header = changed(header, index=0, count=1, total_length=len(body))
        return [_encode(header, flags, optional) + body]
    payloads = split(header, body, max_datagram=max_datagram)
    return [head + payload for head, payload in zip(heads(header, payloads), payloads, strict=True)]


def split(header: Header, body: bytes, *, max_datagram: int) -> list[bytes]:
    """The body in pieces that fit behind the heads of its fragments. Refused(USE_STREAM) when they are too many."""
    first_room = max_datagram - FIXED_LENGTH - len(_write_optional(header)[1])
    if len(body) <= first_room:
        return [body]
    if first_room < 1:
        raise WireError("fragment", f"datagrams of {max_datagram} bytes leave no room behind the header")
    room = max_datagram - FIXED_LENGTH - len(header.cookie or b"")
    most = first_room + (MAX_FRAGMENTS - 1) * room
    if len(body) > most:
        raise Refused(Reason.USE_STREAM, f"the body has {len(body)} bytes, datagrams here carry {most}; use a stream")
    return [body[:first_room], *(body[at : at + room] for at in range(first_room, len(body), room))]


def heads(header: Header, payloads: Sequence[bytes]) -> list[bytes]:
    """The encoded headers of a message's fragments. Of the optional fields, later ones carry the cookie only."""
    count, total = len(payloads), sum(map(len, payloads))
    if (header.index, header.count, header.total_length) != (0, count, total):
        header = changed(header, index=0, count=count, total_length=total)
    first = encode(header)
    if count == 1:
        return [first]
    later = encode(
        Header(
            type=header.type,
            request_id=header.request_id,
            index=1,
            count=count,
            status=header.status,
            remaining_us=header.remaining_us,
            total_length=total,
            json_length=header.json_length,
            cookie=header.cookie,
        )
    )
    return [first, *(later[:3] + index.to_bytes(1) + later[4:] for index in range(1, count))]


def _read_optional(head: bytes, flags: int) -> dict[str, Any]:
    """The fields behind the fixed part, as Header's arguments."""
    fields: dict[str, Any] = {}
    at = FIXED_LENGTH
    try:
        if flags & (Flag.CLASS | Flag.MODEL):
            at = _read_names(head, at, flags, fields)
        if flags & Flag.COOKIE:
            fields["cookie"], at = head[at : at + COOKIE_LENGTH], at + COOKIE_LENGTH
        if flags & Flag.AUTH:
            fields["auth"], at = _AUTH.unpack_from(head, at), at + _AUTH.size
        if flags & Flag.RETRY_AFTER:
            fields["retry_after_ms"], at = _U32.unpack_from(head, at)[0], at + _U32.size
        if flags & Flag.TIMING:
            at = _read_timing(head, at, fields)
        if flags & Flag.DSCP:
            fields["dscp"], at = head[at], at + 1
        if flags & Flag.BITMAP:
            fields["bitmap"], at = _U16.unpack_from(head, at)[0], at + _U16.size
    except (struct.error, IndexError):
        at = len(head) + 1
    if at != len(head):
        raise WireError("header_length", f"{len(head)} is not what the fields of flags 0x{flags:04x} add up to")
    return fields


def _read_names(head: bytes, at: int, flags: int, fields: dict[str, Any]) -> int:
    if flags & Flag.CLASS:
        fields["class_name"], at = _read_name(head, at)
    if flags & Flag.MODEL:
        fields["model"], at = _read_name(head, at)
        fields["version"], at = _read_name(head, at, may_be_empty=True)
    return at


def _read_name(head: bytes, at: int, *, may_be_empty: bool = False) -> tuple[str, int]:
    end = at + 1 + head[at]
    return _text(head[at + 1 : end], may_be_empty), end


@lru_cache(_NAMES)
def _text(raw: bytes, may_be_empty: bool) -> str:
    _check_name(raw, may_be_empty)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WireError("name", f"{raw!r} is not UTF-8") from None


def _read_timing(head: bytes, at: int, fields: dict[str, Any]) -> int:
    queue, backend, compute = (None if us == UNKNOWN_US else us for us in _TIMING.unpack_from(head, at))
    if queue is backend is compute is None:
        raise WireError("timing", "all three are unknown, so the field must be absent")
    fields.update(queue_us=queue, backend_us=backend, compute_us=compute)
    return at + _TIMING.size


def _write_optional(header: Header) -> tuple[int, bytes]:
    """The flags, and the fields they announce."""
    flags, optional = _write_names(header)
    try:
        if header.cookie is not None:
            flags |= Flag.COOKIE
            optional += header.cookie
        if header.auth is not None:
            flags |= Flag.AUTH
            optional += _AUTH.pack(*header.auth)
        if header.retry_after_ms is not None:
            flags |= Flag.RETRY_AFTER
            optional += _U32.pack(header.retry_after_ms)
        stages = (header.queue_us, header.backend_us, header.compute_us)
        if stages != (None, None, None):
            flags |= Flag.TIMING
            optional += _TIMING.pack(*(UNKNOWN_US if us is None else us for us in stages))
        if header.dscp is not None:
            flags |= Flag.DSCP
            optional += header.dscp.to_bytes(1)
        if header.bitmap is not None:
            flags |= Flag.BITMAP
            optional += _U16.pack(header.bitmap)
    except (struct.error, OverflowError) as error:
        raise WireError("range", str(error)) from None
    return flags, optional


def _write_names(header: Header) -> tuple[int, bytes]:
    flags, names = 0, b""
    if header.class_name is not None:
        flags, names = Flag.CLASS, _name(header.class_name, False)
    if header.model is not None:
        flags |= Flag.MODEL
        names += _name(header.model, False) + _name(header.version, True)
    return flags, names


@lru_cache(_NAMES)
def _name(name: str, may_be_empty: bool) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise WireError("name", f"{name!r} has no UTF-8") from None
    _check_name(raw, may_be_empty)
    return len(raw).to_bytes(1) + raw


def _check_name(raw: bytes, may_be_empty: bool) -> None:
    if not raw and not may_be_empty:
        raise WireError("name", "it is empty")
    if len(raw) > _MAX_NAME:
        raise WireError("name", f"{len(raw)} bytes, at most {_MAX_NAME} fit")
    if raw.translate(None, _CONTROLS) != raw:
        raise WireError("name", f"{raw!r} has control characters")

# SPDX-License-Identifier: Apache-2.0
"""What the gateway and the keeper of traffic control say to each other: one JSON object a line, classes by their names.

The gateway can ask and end, nothing more: no message of its changes a qdisc, so that whoever takes the gateway over
gains nothing by it here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "LONGEST_REPORT",
    "LONGEST_REQUEST",
    "ClassReading",
    "Ended",
    "LinkReading",
    "LogLine",
    "Readings",
    "Refusal",
    "Reload",
    "Report",
    "Request",
    "Standing",
    "Statistics",
    "Status",
    "Stop",
    "decode_report",
    "decode_request",
    "encode",
]

LONGEST_REQUEST = 1024
"""Bytes of a line towards the keeper."""
LONGEST_REPORT = 4 * 2**20
"""Bytes of a line towards the gateway: a thousand classes on each of ten links, and both ways, are less."""


class _Asked(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True):
    pass


class Statistics(_Asked, frozen=True, tag="statistics"):
    """Read the counters: answered with Readings."""


class Status(_Asked, frozen=True, tag="status"):
    """Say what stands: answered with Standing."""


class Reload(_Asked, frozen=True, tag="reload"):
    """Read the books again and look at everything: answered with Standing."""


class Stop(_Asked, frozen=True, tag="stop"):
    """Keep or release, as safety.on_exit says, and end: answered with Ended."""


Request = Statistics | Status | Reload | Stop


class _Told(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    pass


class ClassReading(msgspec.Struct, frozen=True, kw_only=True):
    """One traffic class on one link in one direction; counts are since the keeper began, whatever was made anew."""

    name: str
    direction: Literal["egress", "ingress"]
    bytes: int
    packets: int
    drops: int
    borrows: int
    backlog_bytes: int
    rate: int | None
    """Guaranteed, bytes per second; None where the kernel's queue has no such promise."""
    ceiling: int | None


class LinkReading(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of the policy."""

    interface: str
    netns: str | None
    in_force: bool
    """Whether all that was promised was there when last looked at."""
    why: str = ""
    """What is missing; empty: nothing."""
    classes: tuple[ClassReading, ...] = ()


class Readings(_Told, frozen=True, tag="statistics"):
    """Every link of the confirmed policy with its classes."""

    links: tuple[LinkReading, ...]
    repairs: int
    """How often somebody else's change was undone."""


class Standing(_Told, frozen=True, tag="status"):
    """What the keeper keeps, sent whenever that changes."""

    id: str | None
    """Of the confirmed policy; None: nothing is confirmed."""
    digest: str | None
    """Of its content."""
    duty: str
    links: tuple[LinkReading, ...] = ()
    repairs: int = 0


class LogLine(_Told, frozen=True, tag="log"):
    """Something for the gateway's log."""

    level: Literal["info", "warning", "error"]
    name: str
    interface: str = ""
    netns: str | None = None
    detail: str = ""


class Refusal(_Told, frozen=True, tag="refused"):
    """A request that was not understood."""

    detail: str


class Ended(_Told, frozen=True, tag="ended"):
    """The keeper's last word."""

    released: bool
    """Whether all that was made is gone."""
    failure: str = ""


Report = Readings | Standing | LogLine | Refusal | Ended

_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode(message: Request | Report) -> bytes:
    """One line."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """What the gateway asks. ValueError says what was expected."""
    try:
        return _requests.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"not understood: {error}; statistics, status, reload and stop are") from None


def decode_report(line: bytes) -> Report:
    """What the keeper says. ValueError where it is nothing that we know."""
    try:
        return _reports.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"not understood: {error}") from None

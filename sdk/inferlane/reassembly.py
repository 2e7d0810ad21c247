# SPDX-License-Identifier: Apache-2.0
"""A message's fragments, put together again (docs/wire.md, "Fragments"); for clients and servers."""

from __future__ import annotations

from inferlane.wire import UNTIL_FIN, Header, WireError

__all__ = ["Reassembly", "whole"]

_OPEN = "only a message on a stream may leave its length open"


def whole(header: Header, payload: bytes) -> bytes:
    """The body of a message that is one fragment: most are, and need no reassembly. WireError as by `Reassembly`."""
    if header.total_length == UNTIL_FIN:
        raise WireError("total_length", _OPEN)
    if len(payload) != header.total_length:
        raise WireError("payload", f"{len(payload)} bytes where {header.total_length} are the message")
    return payload


class Reassembly:
    """A message's fragments until they are whole; what was stored once is never overwritten.

    Holds at most the message's `total_length`. WireError: the fragment cannot belong to this message, nothing changed.
    """

    __slots__ = ("_first", "_payloads", "_stored", "bitmap", "head")

    def __init__(self, first: Header) -> None:
        """first: the header of whichever fragment came first; `add` takes its payload."""
        if first.total_length == UNTIL_FIN:
            raise WireError("total_length", _OPEN)
        self._first = first
        self._payloads: list[bytes | None] = [None] * first.count
        self._stored = 0
        self.bitmap = 0
        """Bit i: fragment i is here."""
        self.head = first
        """Fragment 0's header, which has the optional fields; until it comes, the first one's."""

    def __repr__(self) -> str:
        return (
            f"<Reassembly of {self._first.type.name.lower()} {self._first.request_id:016x}, "
            f"{self.bitmap.bit_count()} of {self._first.count} fragments>"
        )

    @property
    def missing(self) -> tuple[int, ...]:
        """The indexes still to come."""
        return tuple(index for index, payload in enumerate(self._payloads) if payload is None)

    def add(self, header: Header, payload: bytes) -> bytes | None:
        """One more fragment; the whole body with the last one, else None. A repeat changes nothing."""
        if _identity(header) != _identity(self._first):
            raise WireError("mismatch", f"fragment {header.index} belongs to another message")
        if self._payloads[header.index] is not None:
            return None
        self._check_payload(payload)
        self._payloads[header.index] = payload
        self._stored += len(payload)
        self.bitmap |= 1 << header.index
        if header.index == 0:
            self.head = header
        return None if None in self._payloads else b"".join(filter(None, self._payloads))

    def _check_payload(self, payload: bytes) -> None:
        others = self._payloads.count(None) - 1
        room = self._first.total_length - self._stored
        if others == 0 and len(payload) != room:
            raise WireError("payload", f"{len(payload)} bytes where {room} complete the message")
        if others and not 1 <= len(payload) <= room - others:
            raise WireError("payload", f"{len(payload)} bytes of {room} with {others} more fragments to come")


def _identity(header: Header) -> tuple[int, int, int, int, int, int]:
    """What all fragments of one message have in common."""
    return header.type, header.request_id, header.count, header.total_length, header.json_length, header.status

# SPDX-License-Identifier: Apache-2.0
"""Bytes from an HTTP/1.1 backend -> replies. The only door to httptools; no sockets, no clock, no waiting.

llhttp runs strict: two lengths, a length beside a transfer coding, obs-fold, bare LF and control characters are
errors, because a reader that guesses is a reader that another hop disagrees with (RFC 9112 section 11.1).
"""

from __future__ import annotations

from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from backends.messages import Fields
from backends.remote.fields import Said, said_by

__all__ = ["LONGEST_KNOWN", "MAX_HEAD", "MOST_KNOWN", "Garbage", "Heads", "ReplyReader"]

MAX_HEAD = 64 * 1024
"""Most bytes of a reply's head, and of all that is not body: interim replies, chunk extensions, trailers.
nginx's and Envoy's own limits for a response head are 8 and 60 KiB."""

LONGEST_KNOWN = 1024
"""Bytes of a head that is known again: those of common servers have 100 to 300."""
MOST_KNOWN = 64
"""Heads of one server that are known at a time."""
_HEAD_END = b"\r\n\r\n"
_VERSIONS = ("1.1", "1.0")


class Garbage(Exception):  # noqa: N818  a verdict on what the backend sent
    """What came is not a reply that RFC 9112 allows; the connection cannot be used any more."""


class _Head(NamedTuple):
    """A head that was read once, and is known again by its bytes."""

    status: int
    fields: Fields
    said: Said
    content_length: int


class Heads:
    """Heads of whole replies that one server has sent, so that its next reply with the same head need not be parsed.

    A head comes in here only if the parser took it, and the bytes behind it, for one whole reply after which the
    connection goes on. What the parser makes of a reply that has a length depends on the head and on how many bytes
    follow, never on what those are: the same head with as many bytes behind it is the same verdict.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, _Head] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes) -> tuple[_Head, bytes] | None:
        """If `data` is one whole reply with a head known here: the head, and the body."""
        end = data.find(_HEAD_END, 0, LONGEST_KNOWN) + 4
        head = self._known.get(data[:end])
        if head is None or len(data) - end != head.content_length:
            return None
        return head, data[end:]

    def learn(self, data: bytes, reader: ReplyReader) -> None:
        """All of `data` was fed to this reader before anything else, and its reply is complete."""
        end = data.find(_HEAD_END, 0, LONGEST_KNOWN) + 4
        length = reader.content_length
        if end < 4 or length is None or not reader.keep_alive or len(data) - end != length:
            return
        if reader.first != data[end:]:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()  # a server that dates its replies makes all of them old every second
        self._known[data[:end]] = _Head(reader.status, reader.fields, reader.said, length)


class ReplyReader:
    """Reads the replies of one connection, one after the other: `begin`, then `feed` until `complete`.

    heads: what was read before on the connections of the same server.
    """

    __slots__ = (
        "_body",
        "_fields",
        "_fresh",
        "_head_bytes",
        "_heads",
        "_interim",
        "_parser",
        "_quiet",
        "buffered",
        "complete",
        "content_length",
        "fields",
        "head_complete",
        "keep_alive",
        "said",
        "status",
        "until_close",
    )

    said: Said

    def __init__(self, heads: Heads | None = None) -> None:
        self._heads = Heads() if heads is None else heads
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self.begin()

    def __repr__(self) -> str:
        stage = "complete" if self.complete else "body" if self.head_complete else "head"
        return f"<ReplyReader {stage}, {self.buffered} bytes unread>"

    def begin(self) -> None:
        """Expect the next reply."""
        self.status = 0
        self.fields: Fields = ()
        self.content_length: int | None = None
        self.head_complete = False
        self.complete = False
        self.keep_alive = True
        self.until_close = False
        """The body has no length of its own: it ends where the connection does (RFC 9112 section 6.3)."""
        self.buffered = 0
        self._fresh = True

    def feed(self, data: bytes) -> None:
        """Read what arrived. Raises Garbage, after which only this connection's end is left."""
        if not self._fresh:
            self._parse(data)
            return
        self._fresh = False
        self._body.clear()
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._quiet = 0
        self._interim = False
        found = self._heads.find(data)
        if found is not None:
            head, body = found
            self.status, self.fields, self.said, self.content_length = head
            self.head_complete = self.complete = True
            if body:
                self._body.append(body)
                self.buffered = len(body)
            return
        self._parse(data)
        if self.complete:
            self._heads.learn(data, self)

    def _parse(self, data: bytes) -> None:
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            raise Garbage("it switched protocols, which nobody asked for") from None
        except HttpParserError as error:
            if not self.complete:
                cause = error.__context__
                raise cause if isinstance(cause, Garbage) else Garbage(str(error)) from None
            self.keep_alive = False  # bytes after the reply: the reply stands, the connection does not
        if self._quiet > MAX_HEAD and not self.complete:
            raise Garbage(f"more than {MAX_HEAD} bytes came without any of the body")

    def end(self) -> bool:
        """The connection was closed in good order. Whether that completes the reply."""
        if self.head_complete and self.until_close:
            self.complete = True
        return self.complete

    @property
    def first(self) -> bytes:
        """The bytes that `take` begins with, as many as came at once."""
        return self._body[0] if self._body else b""

    def take(self) -> bytes:
        """The body's bytes that were read so far and not yet taken."""
        body = self._body
        whole = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self.buffered = 0
        return whole

    # Called by the parser, in the order of the message.

    def on_message_begin(self) -> None:
        if self.complete:
            raise Garbage("bytes after the reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4  # ": " and CRLF
        if self._head_bytes > MAX_HEAD:
            raise Garbage(f"its head is longer than {MAX_HEAD} bytes")
        if self.head_complete:
            return  # trailers: nothing here reads them (RFC 9110 section 6.5.1 lets us drop them)
        name = name.lower()
        value = value.strip(b" \t")
        if name == b"content-length":
            self.content_length = int(value)  # llhttp has checked that it is digits, and one
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise Garbage("it uses a transfer coding other than chunked, which nobody offered with TE")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        if parser.get_http_version() not in _VERSIONS:
            raise Garbage(f"it speaks HTTP/{parser.get_http_version()}")
        if 100 <= status < 200 and status != 101:
            self._interim = True
            self._fields, self.content_length = [], None  # neither is the reply's
            return
        if not 200 <= status <= 599:
            raise Garbage(f"its status is {status:03}")
        self.status = status
        self.fields = tuple(self._fields)
        self.said = said_by(self.fields)
        self.head_complete = True
        self.keep_alive = parser.should_keep_alive()
        self.until_close = self._has_no_length()

    def on_body(self, data: bytes) -> None:
        self._quiet = 0
        self.buffered += len(data)
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self.complete = True

    def _has_no_length(self) -> bool:
        if self.content_length is not None or self.status in (204, 304):
            return False
        return not any(name == b"transfer-encoding" for name, _ in self.fields)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.remote.http1 import LONGEST_KNOWN, MAX_HEAD, MOST_KNOWN, Garbage, Heads, ReplyReader

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


def read(*parts: bytes) -> ReplyReader:
    reader = ReplyReader()
    for part in parts:
        reader.feed(part)
    return reader


def test_a_reply_with_a_length():
    reader = read(OK + b"Content-Type:  text/plain \t\r\ncontent-length: 5\r\n\r\nhello")
    assert (reader.status, reader.complete, reader.keep_alive) == (200, True, True)
    assert reader.fields == ((b"content-type", b"text/plain"), (b"content-length", b"5"))
    assert (reader.content_length, reader.buffered) == (5, 5)
    assert reader.take() == b"hello"
    assert (reader.take(), reader.buffered) == (b"", 0)


def test_a_reply_in_chunks_with_extensions_and_trailers():
    reader = read(CHUNKED, b"3;a=b\r\nabc\r\n", b"2\r\nde\r\n0\r\nx-checksum: 1\r\n\r\n")
    assert reader.complete
    assert reader.keep_alive
    assert reader.take() == b"abcde"
    assert reader.fields == ((b"transfer-encoding", b"chunked"),)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_statuses_that_have_no_body(status):
    reader = read(b"HTTP/1.1 " + status + b"\r\ncontent-length: 5\r\n\r\n")
    assert reader.complete
    assert reader.keep_alive
    assert not reader.until_close
    assert reader.take() == b""


def test_interim_replies_are_skipped():
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    reader = read(b"HTTP/1.1 100 Continue\r\n\r\n" + hints, OK + b"content-length: 1\r\n\r\nx")
    assert (reader.status, reader.take()) == (200, b"x")
    assert reader.fields == ((b"content-length", b"1"),)


def test_a_length_that_an_interim_reply_has_is_not_the_reply_s():
    reader = read(b"HTTP/1.1 103 Early Hints\r\ncontent-length: 7\r\n\r\n", OK + b"\r\nabc")
    assert (reader.content_length, reader.until_close) == (None, True)
    assert reader.end()
    assert reader.take() == b"abc"


def test_a_body_without_a_length_ends_with_the_connection():
    reader = read(OK + b"\r\nabc", b"def")
    assert (reader.until_close, reader.complete, reader.keep_alive) == (True, False, False)
    assert reader.end()
    assert reader.take() == b"abcdef"


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 O", OK + b"content-length: 5\r\n\r\nhell", CHUNKED + b"3\r\nab"])
def test_a_reply_cut_short_is_not_complete(cut):
    reader = read(cut) if cut else ReplyReader()
    assert not reader.end()


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n", True),
    ],
)
def test_whether_the_connection_lives_on(head, keep_alive):
    assert read(head + b"content-length: 0\r\n\r\n").keep_alive is keep_alive


@pytest.mark.parametrize("surplus", [b"x", OK, OK + b"content-length: 0\r\n\r\n"])
@pytest.mark.parametrize("connection", [b"", b"connection: close\r\n"])
def test_bytes_after_a_reply_leave_the_reply_but_not_the_connection(surplus, connection):
    reader = read(OK + connection + b"content-length: 1\r\n\r\na" + surplus)
    assert reader.complete
    assert not reader.keep_alive
    assert (reader.status, reader.take()) == (200, b"a")


def test_one_reader_reads_reply_after_reply():
    reader = ReplyReader()
    for body in (b"one", b"three", b""):
        reader.begin()
        reader.feed(OK + b"content-length: %d\r\n\r\n" % len(body))
        reader.feed(body or b"\r\n")  # an empty line between messages is allowed (RFC 9112 section 2.2)
        assert reader.complete
        assert reader.take() == body


GARBAGE = {
    "not HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n\r\n",
    "status 000": b"HTTP/1.1 000 No\r\n\r\n",
    "status 600": b"HTTP/1.1 600 No\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 No\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "switching protocols without a word": b"HTTP/1.1 101 S\r\n\r\n",
    "two lengths": OK + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "the same length twice": OK + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "a list of lengths": OK + b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": OK + b"content-length: +3\r\n\r\nabc",
    "an empty length": OK + b"content-length:\r\n\r\nabc",
    "a length of 20 digits": OK + b"content-length: 99999999999999999999\r\n\r\n",
    "a length and a coding": OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
    "a coding and a length": OK + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n",
    "a coding nobody offered": OK + b"transfer-encoding: gzip, chunked\r\n\r\n",
    "chunked twice": OK + b"transfer-encoding: chunked, chunked\r\n\r\n",
    "a folded field": OK + b"a: b\r\n c\r\n\r\n",
    "a space before the colon": OK + b"a : b\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "NUL in a value": OK + b"a: b\0c\r\n\r\n",
    "a control in a value": OK + b"a: b\x01c\r\n\r\n",
    "a chunk size that is none": CHUNKED + b"zz\r\nabc",
    "a chunk longer than its size": CHUNKED + b"1\r\nabc\r\n",
    "a chunk size that overflows": CHUNKED + b"f" * 17 + b"\r\n",
    "a head too long": OK + b"a: " + b"x" * MAX_HEAD + b"\r\n\r\n",
    "a head of too many fields": OK + b"a: b\r\n" * (MAX_HEAD // 4) + b"\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_reply(data):
    with pytest.raises(Garbage):
        read(data)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"HTTP/1.1 200 ", b"x" * 4096),
        (OK + b"a: ", b"x" * 4096),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (CHUNKED + b"1;", b"x" * 4096),
        (CHUNKED + b"0\r\nt: ", b"x" * 4096),
        (CHUNKED + b"0\r\n", b"t: v\r\n" * 1000),
    ],
    ids=["status line", "value", "interim replies", "chunk extension", "trailer", "trailers"],
)
def test_nothing_but_body_is_endless(start, more):
    reader = ReplyReader()
    with pytest.raises(Garbage):
        for fed in [start or more, *[more] * 64]:
            reader.feed(fed)


def test_a_long_body_is_no_long_head():
    body = b"x" * (4 * MAX_HEAD)
    reader = read(OK + b"content-length: %d\r\n\r\n" % len(body) + body[:1], body[1:])
    assert reader.complete
    assert reader.take() == body


def frame(body: bytes, chunk: int | None) -> bytes:
    if chunk is None:
        return OK + b"content-length: %d\r\n\r\n" % len(body) + body
    chunks = (body[at : at + chunk] for at in range(0, len(body), chunk))
    return CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"


@given(body=st.binary(max_size=200), chunk=st.none() | st.integers(1, 50), cuts=st.lists(st.integers(0, 300)))
def test_how_the_bytes_arrive_makes_no_difference(body, chunk, cuts):
    data = frame(body, chunk)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = ReplyReader()
    taken = b""
    for start, end in pairwise(edges):
        reader.feed(data[start:end])
        taken += reader.take()
    assert reader.complete
    assert taken == body


@given(st.lists(st.binary(max_size=100) | st.sampled_from([OK, b"\r\n\r\n", b"a: b\r\n", b"content-length: 3\r\n"])))
def test_whatever_comes_is_a_reply_or_garbage(parts):
    reader = ReplyReader()
    try:
        for part in parts:
            reader.feed(part)
    except Garbage as garbage:
        assert str(garbage)
    assert reader.buffered == len(reader.take())


KNOWN = OK + b"content-type: text/plain\r\ncontent-length: 5\r\n\r\n"


def taken(reader: ReplyReader) -> tuple[object, ...]:
    """All that a reply says, and what it says of its connection."""
    head = (reader.status, reader.fields, reader.said, reader.content_length)
    return (*head, reader.complete, reader.keep_alive, reader.until_close, reader.buffered, reader.first, reader.take())


def test_a_head_that_was_read_before_says_the_same_again():
    heads = Heads()
    first, second = ReplyReader(heads), ReplyReader(heads)
    first.feed(KNOWN + b"hello")
    second.feed(KNOWN + b"again")
    assert len(heads) == 1
    assert (first.take(), second.take()) == (b"hello", b"again")
    first.begin()
    first.feed(KNOWN + b"there")
    second.begin()
    second.feed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    assert taken(first) == taken(read(KNOWN + b"there"))
    assert taken(second)[:2] == (404, ((b"content-length", b"0"),))


@pytest.mark.parametrize(
    "reply",
    [
        KNOWN + b"hell",  # the rest comes later
        KNOWN + b"hello!",
        CHUNKED + b"0\r\n\r\n",
        OK + b"\r\nuntil the end",
        OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" + KNOWN + b"hello",
        OK + b"x: " + b"y" * LONGEST_KNOWN + b"\r\ncontent-length: 5\r\n\r\nhello",
    ],
)
def test_what_is_more_than_one_whole_reply_with_a_length_is_read_anew_each_time(reply):
    heads = Heads()
    ReplyReader(heads).feed(reply)
    assert len(heads) == 0


def test_a_known_head_with_another_number_of_bytes_behind_it_is_read():
    heads = Heads()
    ReplyReader(heads).feed(KNOWN + b"hello")
    short, long = ReplyReader(heads), ReplyReader(heads)
    short.feed(KNOWN + b"hel")
    assert not short.complete
    short.feed(b"lo")
    assert (short.complete, short.keep_alive, short.take()) == (True, True, b"hello")
    long.feed(KNOWN + b"hello" + KNOWN)
    assert (long.complete, long.keep_alive, long.take()) == (True, False, b"hello")


def test_bytes_after_a_reply_whose_head_is_known_end_the_connection():
    heads = Heads()
    ReplyReader(heads).feed(KNOWN + b"hello")
    reader = ReplyReader(heads)
    reader.feed(KNOWN + b"hello")
    reader.feed(KNOWN + b"hello")
    assert (reader.complete, reader.keep_alive) == (True, False)


def test_only_so_many_heads_are_known():
    heads = Heads()
    reader = ReplyReader(heads)
    for number in range(3 * MOST_KNOWN):
        reader.begin()
        reader.feed(OK + b"x-number: %d\r\ncontent-length: 0\r\n\r\n" % number)
        assert 1 <= len(heads) <= MOST_KNOWN


_lines = st.sampled_from(
    [
        b"content-length: 5",
        b"content-length: 0",
        b"Content-Length:\t5 ",
        b"content-length: 5, 5",
        b"content-length: +5",
        b"transfer-encoding: chunked",
        b"connection: close",
        b"connection: keep-alive",
        b"server-timing: compute;dur=1",
        b"x: \xff",
        b" folded",
        b"upgrade: h2c",
        b"\r",
        b"",
    ]
)
_starts = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 No", b"HTTP/1.1 100 Go on", b"HTTP/1.1 304 ", b"", b"\r\n"]
)
_bodies = st.sampled_from([b"", b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n", KNOWN + b"hello"])
_replies = st.builds(
    lambda start, lines, body: b"\r\n".join((start, *lines, b"", body)), _starts, st.lists(_lines, max_size=4), _bodies
)


@given(st.lists(_replies, min_size=2, max_size=6))
def test_what_is_known_never_changes_what_a_reply_is(replies):
    """Two readers go through the same replies, one of them for the second time; each opens a new one as the client
    would open a connection."""
    heads = Heads()
    verdicts = []
    for _ in range(2):
        reader, story = ReplyReader(heads), []
        for reply in replies:
            verdict, goes_on = _verdict(reader, reply)
            story.append(verdict)
            if not goes_on:
                reader = ReplyReader(heads)
        verdicts.append(story)
    alone = [_verdict(ReplyReader(Heads()), reply)[0] for reply in replies]
    assert verdicts == [alone, alone]


def _verdict(reader: ReplyReader, reply: bytes) -> tuple[object, bool]:
    reader.begin()
    try:
        reader.feed(reply)
    except Garbage as garbage:
        return str(garbage), False
    goes_on = reader.complete and reader.keep_alive
    return (taken(reader) if reader.head_complete else None), goes_on

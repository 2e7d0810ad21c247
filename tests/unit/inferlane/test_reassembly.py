# SPDX-License-Identifier: Apache-2.0
"""Fragments put together: in any order, repeated, lying, and as docs/wire.md shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.reassembly import Reassembly, whole
from inferlane.wire import UNTIL_FIN, Header, Type, WireError, decode, fragments
from tests.fakes.wire_page import unhex, vectors

ID = 0x0123456789ABCDEF
REPLY = Header(type=Type.REPLY, request_id=ID, status=200)


@pytest.mark.parametrize("vector", vectors("fragments"), ids=lambda vector: vector["name"])
def test_its_fragments_give_the_body_in_any_order(vector):
    datagrams = [unhex(each) for each in vector["datagrams"]]
    arriving = Reassembly(decode(datagrams[-1])[0])
    bodies = [arriving.add(*_parted(each)) for each in reversed(datagrams)]
    assert bodies == [None] * (len(datagrams) - 1) + [unhex(vector["body"])]


@given(st.integers(1, 128), st.data())
def test_any_order_and_any_repeats_give_the_body_once(size, data):
    body = bytes(range(size))
    parts = [_parted(each) for each in fragments(REPLY, body, max_datagram=40)]
    order = data.draw(st.permutations(parts * 2))
    arriving = Reassembly(order[0][0])
    bodies = [arriving.add(*each) for each in order]
    assert [each for each in bodies if each is not None] == [body]
    assert arriving.bitmap == (1 << len(parts)) - 1
    assert arriving.head == parts[0][0]


@given(st.integers(2, 16), st.data())
def test_it_never_holds_more_than_the_total_length_says(count, data):
    total = data.draw(st.integers(count, 100))
    header = replace(REPLY, count=count, total_length=total)
    arriving, held = Reassembly(header), {}
    for index in data.draw(st.lists(st.integers(0, count - 1), max_size=40)):
        payload = bytes(data.draw(st.integers(0, 60)))
        before = arriving.bitmap
        try:
            body = arriving.add(replace(header, index=index), payload)
        except WireError as error:
            assert error.rule == "payload"
            assert arriving.bitmap == before
            continue
        held.setdefault(index, payload)
        assert sum(map(len, held.values())) + len(arriving.missing) <= total
        assert body is None or len(body) == total
        assert set(arriving.missing) == set(range(count)) - held.keys()


@pytest.mark.parametrize(
    "other",
    [
        {"request_id": ID + 1},
        {"count": 3},
        {"total_length": 5},
        {"json_length": 1},
        {"status": 201},
        {"type": Type.REQUEST, "status": 0},
    ],
)
def test_a_fragment_that_does_not_agree_is_an_error_and_changes_nothing(other):
    header = replace(REPLY, count=2, total_length=4)
    arriving = Reassembly(header)
    with pytest.raises(WireError, match="mismatch"):
        arriving.add(replace(header, index=1, **other), b"34")
    assert (arriving.bitmap, arriving.missing) == (0, (0, 1))


def test_what_was_stored_stays():
    header = replace(REPLY, count=2, total_length=4)
    arriving = Reassembly(header)
    assert arriving.add(header, b"12") is None
    assert arriving.add(header, b"XX") is None
    assert arriving.add(replace(header, index=1), b"34") == b"1234"


def test_an_empty_body_is_whole_at_once():
    assert Reassembly(REPLY).add(REPLY, b"") == b""


def test_a_message_without_a_length_belongs_on_a_stream():
    with pytest.raises(WireError, match="total_length"):
        Reassembly(replace(REPLY, total_length=UNTIL_FIN))


def test_it_shows_what_is_here():
    header = replace(REPLY, count=2, total_length=4)
    arriving = Reassembly(header)
    arriving.add(header, b"12")
    assert repr(arriving) == "<Reassembly of reply 0123456789abcdef, 1 of 2 fragments>"


def _parted(datagram):
    header, length = decode(datagram)
    return header, datagram[length:]


@pytest.mark.parametrize(("total", "payload"), [(4, b"1234"), (0, b""), (4, b"123"), (4, b"12345"), (UNTIL_FIN, b"1")])
def test_one_fragment_is_taken_or_refused_as_by_a_reassembly(total, payload):
    header = replace(REPLY, total_length=total)

    def judged(take):
        try:
            return take(header, payload)
        except WireError as error:
            return error.rule

    assert judged(whole) == judged(lambda first, body: Reassembly(first).add(first, body))

# SPDX-License-Identifier: Apache-2.0
"""The wire against its own page, docs/wire.md, and against any bytes at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason, Refused
from inferlane.header import RULES, Flag
from inferlane.wire import (
    FIXED_LENGTH,
    MAX_DATAGRAM,
    MAX_FRAGMENTS,
    MAX_HEADER,
    UNKNOWN_US,
    UNTIL_FIN,
    Header,
    Type,
    WireError,
    decode,
    encode,
    fragments,
    header_length,
    heads,
    microseconds,
    split,
)
from tests.fakes.wire_page import header_of, table, unhex, vectors

HEADERS = vectors("headers")
MALFORMED = vectors("malformed")
FRAGMENTS = vectors("fragments")
REQUEST = Header(type=Type.REQUEST, request_id=7, model="m")

named = {"ids": lambda vector: vector["name"]}
u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
names = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=0x20, exclude_characters="\x7f"), max_size=60)
cookies = st.binary(min_size=16, max_size=16)
times = st.none() | st.integers(0, UNKNOWN_US - 1)


@st.composite
def headers(draw):
    """Any header that some message of version 1 may have."""
    kind = draw(st.sampled_from(Type))
    rule = RULES[kind]
    count = draw(st.integers(1, rule.most_fragments))
    index = draw(st.integers(0, count - 1))
    flags = draw(st.integers(0, Flag.ALL)) & (rule.allowed_later if index else rule.allowed)
    flags |= 0 if index else rule.needed
    total = draw(st.integers(count, count * 1200) if count > 1 else u32) if rule.body else 0
    optional = {
        Flag.CLASS: {"class_name": names.filter(bool)},
        Flag.MODEL: {"model": names.filter(bool), "version": names},
        Flag.COOKIE: {"cookie": cookies},
        Flag.AUTH: {"auth": st.tuples(u32, cookies)},
        Flag.RETRY_AFTER: {"retry_after_ms": u32},
        Flag.TIMING: {"queue_us": times, "backend_us": times, "compute_us": times},
        Flag.DSCP: {"dscp": st.integers(0, 63)},
        Flag.BITMAP: {"bitmap": u16},
    }
    drawn = {name: draw(values) for flag, fields in optional.items() if flags & flag for name, values in fields.items()}
    return Header(
        type=kind,
        request_id=draw(u64),
        index=index,
        count=count,
        reason=draw(st.integers(1, 255)) if kind is Type.ERROR else 0,
        status=draw(st.sampled_from(rule.statuses)),
        remaining_us=draw(u32) if kind is Type.REQUEST else 0,
        total_length=total,
        json_length=draw(st.integers(0, total)),
        **drawn,
    )


class TestThePage:
    @pytest.mark.parametrize("vector", HEADERS, **named)
    def test_bytes_mean_what_it_says(self, vector):
        message = unhex(vector["hex"])
        header, length = decode(message)
        assert header == header_of(vector["header"])
        assert length == header_length(message) == vector["header_length"]
        assert message[length:] == unhex(vector["payload"])

    @pytest.mark.parametrize("vector", HEADERS, **named)
    def test_what_it_says_becomes_its_bytes(self, vector):
        assert encode(header_of(vector["header"])) + unhex(vector["payload"]) == unhex(vector["hex"])

    @pytest.mark.parametrize("vector", MALFORMED, **named)
    def test_malformed_bytes_break_the_rule_it_names(self, vector):
        with pytest.raises(WireError) as caught:
            decode(unhex(vector["hex"]))
        assert caught.value.rule == vector["error"]

    @pytest.mark.parametrize("vector", FRAGMENTS, **named)
    def test_a_body_is_cut_as_it_shows(self, vector):
        body = unhex(vector["body"])
        cut = fragments(header_of(vector["header"]), body, max_datagram=vector["max_datagram"])
        assert cut == [unhex(datagram) for datagram in vector["datagrams"]]
        assert b"".join(each[decode(each)[1] :] for each in cut) == body

    def test_its_vectors_show_every_type_and_every_optional_field(self):
        seen = [unhex(vector["hex"]) for vector in HEADERS]
        assert {message[2] for message in seen} == set(Type)
        assert {bit for message in seen for bit in range(16) if message[7] >> bit & 1} == set(range(8))

    def test_its_tables_are_those_of_the_code(self):
        assert {row[1]: int(row[0], 16) for row in table("Types")} == {each.name.lower(): each for each in Type}
        flags = {row[1]: int(row[0], 16) for row in table("Optional fields")}
        assert flags == {name: getattr(Flag, name) for name in flags}
        assert sum(flags.values()) == Flag.ALL
        reasons = [(row[1], int(row[0]), int(row[2])) for row in table("Reasons")]
        assert reasons == [(each.label, each.code, each.status) for each in Reason]

    def test_every_rule_that_one_header_can_break_has_a_malformed_vector(self):
        told = {name for row in table("When a message is malformed") for name in row[0].split(", ")}
        assert {vector["error"] for vector in MALFORMED} == told - {"payload", "mismatch"}


class TestAnyBytes:
    @given(st.binary(max_size=100))
    def test_random_bytes_raise_nothing_but_a_wire_error(self, data):
        _decodes_or_says_why(data)

    @given(st.binary(max_size=80))
    def test_neither_do_random_bytes_behind_a_good_beginning(self, data):
        _decodes_or_says_why(b"\x0a\x01" + data)

    @given(headers(), st.data())
    def test_neither_do_headers_with_bytes_changed_or_cut_off(self, header, data):
        mutated = bytearray(encode(header))
        for _ in range(data.draw(st.integers(1, 3))):
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
        _decodes_or_says_why(bytes(mutated[: data.draw(st.integers(0, len(mutated)))]))

    @given(headers(), st.binary(max_size=20))
    def test_every_header_survives_the_way_there_and_back(self, header, payload):
        message = encode(header) + payload
        again, length = decode(message)
        assert again == header
        assert message[length:] == payload

    @given(headers(), st.integers(0, MAX_HEADER))
    def test_a_header_cut_short_is_told_from_a_whole_one(self, header, size):
        whole = encode(header)
        part = whole[:size]
        assert header_length(part) == (len(whole) if size >= FIXED_LENGTH else None)
        if len(part) < len(whole):
            with pytest.raises(WireError, match="truncated"):
                decode(part)


class TestEncoding:
    @pytest.mark.parametrize(
        ("wrong", "rule"),
        [
            ({"request_id": 2**64}, "range"),
            ({"request_id": -1}, "range"),
            ({"remaining_us": 2**32}, "range"),
            ({"cookie": b"short"}, "range"),
            ({"auth": (1, b"short")}, "range"),
            ({"auth": (2**32, bytes(16))}, "range"),
            ({"model": "m" * 256}, "name"),
            ({"model": "two\nlines"}, "name"),
            ({"model": "\ud800"}, "name"),
            ({"model": ""}, "name"),
            ({"class_name": ""}, "name"),
            ({"model": None, "version": "1"}, "name"),
            ({"model": None}, "flags"),
            ({"bitmap": 1}, "flags"),
            ({"count": 17}, "fragment"),
            ({"index": -1}, "fragment"),
            ({"json_length": 1}, "json_length"),
        ],
    )
    def test_a_request_that_no_peer_would_take_is_an_error(self, wrong, rule):
        with pytest.raises(WireError) as caught:
            encode(replace(REQUEST, **wrong))
        assert caught.value.rule == rule

    @pytest.mark.parametrize("wrong", [{"retry_after_ms": 2**32}, {"queue_us": UNKNOWN_US}, {"dscp": 256}])
    def test_so_is_a_reply(self, wrong):
        with pytest.raises(WireError, match="range"):
            encode(Header(type=Type.REPLY, request_id=7, status=200, **wrong))

    def test_the_longest_header_stays_within_the_announced_length(self):
        longest = replace(REQUEST, class_name="c" * 255, model="m" * 255, version="v" * 255)
        assert len(encode(replace(longest, cookie=bytes(16), auth=(1, bytes(16))))) == 836 < MAX_HEADER

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [(0.0, 0), (-1.0, 0), (0.00005, 50), (1.5, 1_500_000), (1e9, UNKNOWN_US - 1), (float("inf"), UNKNOWN_US - 1)],
    )
    def test_seconds_become_microseconds_that_fit(self, seconds, expected):
        assert microseconds(seconds) == expected


class TestFragments:
    @given(
        st.integers(0, 3000),
        st.integers(120, MAX_DATAGRAM),
        st.sampled_from([REQUEST, replace(REQUEST, class_name="batch", cookie=bytes(16), auth=(1, bytes(16)))]),
    )
    def test_datagrams_are_full_within_the_limit_and_together_the_body(self, size, limit, header):
        body = (bytes(range(256)) * 12)[:size]
        try:
            cut = fragments(header, body, max_datagram=limit)
        except Refused as refusal:
            assert refusal.reason is Reason.USE_STREAM
            assert len(body) > MAX_FRAGMENTS * (limit - len(encode(header)))
            return
        decoded = [decode(datagram) for datagram in cut]
        assert b"".join(datagram[length:] for datagram, (_, length) in zip(cut, decoded, strict=True)) == body
        assert [each.index for each, _ in decoded] == list(range(len(cut)))
        assert {(each.count, each.total_length, each.cookie) for each, _ in decoded} == {
            (len(cut), len(body), header.cookie)
        }
        assert all(len(datagram) == limit for datagram in cut[:-1]) and len(cut[-1]) <= limit
        assert all(length < len(datagram) for datagram, (_, length) in zip(cut, decoded, strict=True)) or not body

    def test_only_the_first_has_the_optional_fields_and_all_have_the_cookie(self):
        header = replace(REQUEST, class_name="batch", version="2", auth=(1, bytes(16)), cookie=b"c" * 16)
        first, *later = (decode(datagram)[0] for datagram in fragments(header, bytes(2500)))
        assert first == replace(header, count=3, total_length=2500)
        assert [(each.class_name, each.model, each.auth, each.cookie) for each in later] == [
            (None, None, None, b"c" * 16)
        ] * 2

    def test_a_body_that_fills_sixteen_datagrams_passes_and_one_byte_more_asks_for_a_stream(self):
        header = replace(REQUEST, cookie=bytes(16))
        most = 18_432 - 3  # less the model field
        assert len(fragments(header, bytes(most))) == MAX_FRAGMENTS
        with pytest.raises(Refused, match="use a stream") as caught:
            fragments(header, bytes(most + 1))
        assert caught.value.reason is Reason.USE_STREAM

    def test_a_datagram_too_small_for_the_header_is_an_error(self):
        with pytest.raises(WireError, match="no room"):
            fragments(REQUEST, b"body", max_datagram=len(encode(REQUEST)))

    def test_an_error_too_long_for_one_datagram_is_an_error(self):
        header = Header(type=Type.ERROR, request_id=7, reason=1, status=400)
        with pytest.raises(WireError, match="fragment"):
            fragments(header, bytes(MAX_DATAGRAM))

    def test_an_empty_body_is_one_fragment(self):
        assert fragments(REQUEST, b"") == [encode(REQUEST)]

    def test_pieces_are_cut_once_and_headed_again_for_every_try(self):
        body = bytes(range(100))
        header = replace(REQUEST, cookie=bytes(16), remaining_us=900)
        pieces = split(header, body, max_datagram=100)
        later_try = heads(replace(header, cookie=b"c" * 16, remaining_us=100), pieces)
        assert b"".join(pieces) == body
        assert {decode(head)[0].remaining_us for head in later_try} == {100}
        assert [len(head) + len(piece) for head, piece in zip(later_try, pieces, strict=True)] == [100, 99]


def test_the_length_of_a_stream_may_stay_open():
    header = replace(REQUEST, total_length=UNTIL_FIN, json_length=10)
    assert decode(encode(header))[0] == header


def _decodes_or_says_why(data):
    try:
        header, length = decode(data)
    except WireError as error:
        assert error.rule
    else:
        assert encode(header) == data[:length]

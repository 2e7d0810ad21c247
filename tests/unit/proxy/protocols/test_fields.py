# SPDX-License-Identifier: Apache-2.0
"""D9, D11 and D12 of the acceptance list: what two servers may read differently never becomes a request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.fields import MAX_FIELDS, FieldsTooLarge, MalformedRequest, clean

HEAD = [(b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"gw.example:4433"), (b":path", b"/v2")]


def with_fields(*fields: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [*HEAD, *fields]


def with_pseudo(name: bytes, value: bytes) -> list[tuple[bytes, bytes]]:
    return [(each, value if each == name else old) for each, old in HEAD]


def test_a_clean_head_keeps_its_fields_in_order_and_drops_what_is_for_this_hop() -> None:
    head = clean(
        with_fields(
            (b"content-length", b"12"),
            (b"te", b"trailers"),
            (b"host", b"gw.example:4433"),
            (b"x-one", b"1"),
            (b"expect", b"100-continue"),
            (b"proxy-authorization", b"Basic eA=="),
            (b"x-two", b"a\tb \xc3\xa9"),
        )
    )
    assert (head.method, head.path, head.content_length) == (b"POST", b"/v2", 12)
    assert head.fields == ((b"x-one", b"1"), (b"x-two", b"a\tb \xc3\xa9"))


@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"+3")],
        [(b"content-length", b"0_3")],
        [(b"content-length", b" 3")],
        [(b"content-length", b"-1")],
        [(b"content-length", b"")],
        [(b"content-length", b"3, 3")],
        [(b"content-length", b"12345678901234567890")],
        [(b"content-length", b"4"), (b"content-length", b"3")],
        [(b"content-length", b"3"), (b"content-length", b"3")],
        [(b"host", b"other.example")],
        [(b"host", b"gw.example:4433"), (b"host", b"gw.example:4433")],
        [(b"bad(name", b"x")],
        [(b"bad name", b"x")],
        [(b"Upper", b"x")],
        [(b"", b"x")],
        [(b"x", b"a\x01b")],
        [(b"x", b"a\x7f")],
        [(b"x", b"a\r\nevil: 1")],
        [(b"x", b"a\x00")],
        [(b"x", b" a")],
        [(b"x", b"a\t")],
        [(b"connection", b"close")],
        [(b"keep-alive", b"timeout=5")],
        [(b"proxy-connection", b"keep-alive")],
        [(b"transfer-encoding", b"chunked")],
        [(b"upgrade", b"h2c")],
        [(b"te", b"gzip")],
        [(b":path", b"/v2")],
        [(b":protocol", b"connect-udp")],
        [(b"x", b"1"), (b":method", b"GET")],
        [(b"inference-header-content-length", b"1"), (b"inference-header-content-length", b"2")],
    ],
)
def test_a_malformed_field_section_is_refused(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(MalformedRequest):
        clean(with_fields(*fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b":method", b"PO ST"),
        (b":method", b"post"),
        (b":method", b""),
        (b":scheme", b""),
        (b":scheme", b"ftp"),
        (b":authority", b""),
        (b":authority", b"user@gw.example"),
        (b":authority", b"gw.example/x"),
        (b":authority", b"gw example"),
        (b":path", b""),
        (b":path", b"v2"),
        (b":path", b"*"),
        (b":path", b"/v2 HTTP/1.1"),
        (b":path", b"/v2\x01"),
        (b":path", b"/v2\\x"),
        (b":path", b"/v2#x"),
        (b":path", b"/%00"),
        (b":path", b"/%0d%0a"),
        (b":path", b"/%zz"),
        (b":path", b"/a/../b"),
        (b":path", b"/a/..;/b"),
        (b":path", b"/a/%2e%2e/b"),
        (b":path", b"/a%2fb"),
        (b":path", b"/a%5cb"),
        (b":path", b"/v1/models/hub%5Ctiny"),
        (b":path", b"/v1/models/..%2fcompletions"),
        (b":path", b"/v1/models/hub%2F..%2f..%2Fcompletions"),
        (b":path", b"/./a"),
        (b":path", b"/a/.."),
        (b":path", b"/\xc3\xa9"),
        (b":path", b"/" + b"a" * 3000),
    ],
)
def test_a_malformed_request_line_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(MalformedRequest):
        clean(with_pseudo(name, value))


@pytest.mark.parametrize("slash", [b"/", b"%2F", b"%2f"])
def test_a_model_s_name_may_have_slashes_where_it_is_only_looked_up(slash: bytes) -> None:
    assert clean(with_pseudo(b":path", b"/v1/models/hub%btiny" % slash)).path == b"/v1/models/hub/tiny"


@pytest.mark.parametrize("path", [b"/v2/models/m..x/infer", b"/v2/models/a%20b", b"/v2?x=..", b"/v2/models/.hidden"])
def test_dots_and_escapes_that_mean_one_thing_pass(path: bytes) -> None:
    assert clean(with_pseudo(b":path", path)).path == path


@pytest.mark.parametrize("authority", [b"127.0.0.1:4433", b"[::1]:4433", b"gw.example", b"my_host"])
def test_authorities(authority: bytes) -> None:
    assert clean(with_pseudo(b":authority", authority)).authority == authority


def test_missing_pseudo_fields_are_refused() -> None:
    for missing in HEAD:
        with pytest.raises(MalformedRequest):
            clean([each for each in HEAD if each is not missing])


def test_too_many_fields_and_too_many_bytes() -> None:
    with pytest.raises(FieldsTooLarge):
        clean(with_fields(*((b"x", b"1"),) * MAX_FIELDS))
    with pytest.raises(FieldsTooLarge):
        clean(with_fields((b"x", b"a" * 40_000)))


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=30)), max_size=8))
def test_whatever_comes_nothing_dangerous_passes(fields: list[tuple[bytes, bytes]]) -> None:
    try:
        head = clean(with_fields(*fields))
    except (MalformedRequest, FieldsTooLarge):
        return
    for name, value in head.fields:
        assert name == name.lower()
        assert not set(b" \t\r\n\0:") & set(name)
        assert not set(b"\r\n\0") & set(value)

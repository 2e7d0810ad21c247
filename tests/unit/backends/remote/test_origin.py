# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.remote.origin import Origin, model_path, parse_origin
from inferlane.errors import Reason, Refused


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://10.20.0.5:8000", ("10.20.0.5", 8000, False, b"10.20.0.5:8000", "")),
        ("http://10.20.0.5", ("10.20.0.5", 80, False, b"10.20.0.5", "")),
        ("https://Triton.example/", ("triton.example", 443, True, b"triton.example", "")),
        ("https://[fd00:20::5]:8443", ("fd00:20::5", 8443, True, b"[fd00:20::5]:8443", "")),
        ("http://localhost:8000/team/a b/", ("localhost", 8000, False, b"localhost:8000", "/team/a%20b")),
        ("http://bücher.example:8000", ("xn--bcher-kva.example", 8000, False, b"xn--bcher-kva.example:8000", "")),
    ],
)
def test_addresses(url, origin):
    host, port, tls, authority, base = origin
    assert parse_origin(url) == Origin(host=host, port=port, tls=tls, authority=authority, base=base)


def test_a_resolved_address_leaves_the_name_as_it_is():
    origin = parse_origin("https://triton.example:8443/team", address="10.20.0.7")
    assert (origin.address, origin.host, origin.authority) == ("10.20.0.7", "triton.example", b"triton.example:8443")
    assert parse_origin("https://triton.example:8443/team").address is None


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("10.20.0.5:8000", "http:// or https://"),
        ("grpc://host:8001", "http:// or https://"),
        ("http://", "host is missing"),
        ("http://:8000", "host is missing"),
        ("http://user@host", "no user"),
        ("http://host/?q", "query"),
        ("http://host/#f", "fragment"),
        ("http://host:99999", "[Pp]ort"),
        ("http://host:0", "port 0"),
        ("http://host:x", "[Pp]ort"),
        (f"http://{'x' * 64}.example", "label"),
    ],
)
def test_addresses_that_are_none(url, wrong):
    with pytest.raises(ValueError, match=wrong):
        parse_origin(url)


@pytest.mark.parametrize(
    ("base", "model", "version", "path"),
    [
        ("", "magika", "", "/v2/models/magika"),
        ("", "magika", "3", "/v2/models/magika/versions/3"),
        ("/team", "magika", "", "/team/v2/models/magika"),
        ("", "org/model v1?", "", "/v2/models/org%2Fmodel%20v1%3F"),
        ("", "..a", "", "/v2/models/..a"),
    ],
)
def test_paths(base, model, version, path):
    assert model_path(base, model, version) == path


@pytest.mark.parametrize(("model", "version"), [("", ""), (".", ""), ("..", ""), ("m", ".."), ("m", ".")])
def test_names_that_would_leave_their_place(model, version):
    with pytest.raises(Refused) as refused:
        model_path("", model, version)
    assert refused.value.reason is Reason.UNKNOWN_MODEL


@given(st.text(min_size=1), st.text())
def test_a_name_stays_in_its_segment(model, version):
    try:
        path = model_path("", model, version)
    except Refused:
        assert {model, version} & {".", ".."}
        return
    assert path.count("/") == (5 if version else 3)
    assert path.isascii()
    assert not set(path) & set(" \r\n?#")

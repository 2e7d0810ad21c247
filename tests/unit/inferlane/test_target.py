# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from inferlane.target import Scheme, Target, parse_target


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://gateway.example:4433", Target(Scheme.HTTP3, "gateway.example", 4433)),
        ("https://gateway.example/", Target(Scheme.HTTP3, "gateway.example", 4433)),
        ("quic://127.0.0.1:1", Target(Scheme.STREAM, "127.0.0.1", 1)),
        ("quic+datagram://[::1]:5000", Target(Scheme.DATAGRAM, "::1", 5000)),
        ("udp://localhost", Target(Scheme.UDP, "localhost", 4433)),
    ],
)
def test_a_url_names_a_transport_and_a_place(url, expected):
    assert parse_target(url) == expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://host", "the scheme must be one of https://, quic://"),
        ("host:4433", "the scheme must be one of"),
        ("", "the scheme must be one of"),
        ("https://", "names no host"),
        ("https://:4433", "names no host"),
        ("udp://host:0", "port 0"),
        ("udp://host:70000", "range 0-65535"),
        ("udp://host:x", "x"),
        ("https://[::1", "IPv6"),
        ("https://host/v2/models/m", "models are named in infer"),
        ("https://user@host", "only a scheme, a host and a port"),
        ("https://host?x=1", "only a scheme, a host and a port"),
    ],
)
def test_what_cannot_be_asked_is_an_error_that_says_why(url, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_target(url)


def test_an_ipv6_host_is_written_in_brackets():
    assert str(parse_target("quic://[::1]")) == "quic://[::1]:4433"
    assert parse_target("https://host").authority == "host:4433"

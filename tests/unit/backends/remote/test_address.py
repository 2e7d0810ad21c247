# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from time import monotonic

import pytest
from structlog.testing import capture_logs

from backends.remote import address
from backends.remote.address import connects, open_socket, reaching, resolve, unreachable
from inferlane.errors import Reason, Refused

SOON = 0.02  # a deadline that a test waits for


async def test_an_address_resolves_to_itself():
    assert await resolve("127.0.0.1", 80, socket.SOCK_STREAM) == [(socket.AF_INET, ("127.0.0.1", 80))]
    assert await resolve("::1", 80, socket.SOCK_DGRAM) == [(socket.AF_INET6, ("::1", 80, 0, 0))]


async def test_a_name_is_looked_up():
    found = await resolve("localhost", 80, socket.SOCK_STREAM)
    assert {host for _, (host, *_) in found} <= {"127.0.0.1", "::1"}


async def test_a_name_that_does_not_exist():
    with pytest.raises(Refused, match="cannot be resolved") as refused:
        async with reaching(monotonic() + 60):
            await resolve("nowhere.invalid", 80, socket.SOCK_STREAM)
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 503)


def test_a_socket_does_not_block():
    with open_socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        assert not sock.getblocking()


async def test_the_requests_own_deadline_is_told_from_a_slow_backend(monkeypatch):
    with pytest.raises(Refused) as refused:
        async with reaching(monotonic() + SOON):
            await asyncio.Event().wait()
    assert refused.value.reason is Reason.DEADLINE

    monkeypatch.setattr(address, "CONNECT_S", SOON)
    with pytest.raises(Refused, match=r"no connection within 0\.02 s") as refused:
        async with reaching(monotonic() + 60):
            await asyncio.Event().wait()
    assert (refused.value.reason, refused.value.status) == (Reason.BACKEND_FAILED, 503)


async def test_what_is_no_failure_to_connect_passes():
    with pytest.raises(ZeroDivisionError):
        async with reaching(monotonic() + 60):
            raise ZeroDivisionError


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.20.0.5', 80)"), "Connection refused"),
        (OSError("closed"), "closed"),
        (socket.gaierror(-2, "Name or service not known"), "its name cannot be resolved (Name or service not known)"),
        (certificate_error(), "not accepted (self-signed certificate); tls.ca names whom to believe"),
        (ssl.SSLError(1, "wrong version number"), "the TLS handshake failed"),
        ("no place", "no place"),
    ],
)
def test_why_a_backend_is_unreachable_names_no_address(why, told):
    refusal = unreachable(why)
    assert told in refusal.detail
    assert "10.20" not in refusal.detail
    assert refusal.status == 503


async def test_a_knock_is_a_connection_and_no_more(server):
    await connects("127.0.0.1", server.port, deadline=monotonic() + 60)
    peer = await server.accept()
    assert await peer.end() == b""


async def test_a_knock_tries_every_address_and_the_last_one_tells(server, monkeypatch):
    async def two(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, ("127.0.0.1", closed)), (socket.AF_INET, ("127.0.0.1", port))]

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()[1]
        monkeypatch.setattr(address, "resolve", two)
        await connects("a.example", server.port, deadline=monotonic() + 60)
        with pytest.raises(Refused, match="Connection refused"):
            await connects("a.example", closed, deadline=monotonic() + 60)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_descriptors_is_the_gateways_own_trouble_and_told_once_in_a_while(monkeypatch, number):
    monkeypatch.setattr(address, "_told_at", -address.TELL_S)
    with capture_logs() as logs:
        refusals = [unreachable(OSError(number, "x")) for _ in range(3)]
    assert {(each.reason, each.status) for each in refusals} == {(Reason.NO_ENDPOINT, 503)}
    assert refusals[0].detail.startswith("no descriptors")
    assert [(each["event"], each["log_level"]) for each in logs] == [("no_descriptors", "error")]
    assert "LimitNOFILE" in logs[0]["remedy"]

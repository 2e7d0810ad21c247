# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.bind import bind_tcp
from proxy.certificate import development_certificate
from proxy.listeners import tcp
from proxy.listeners.tcp import Acceptor, more_descriptors, tls_context
from proxy.listeners.tcp_marks import arrived_ds_field
from tests.fakes.http1_site import until

EF = 46 << 2


class Listening:
    """A bound socket whose `accept` fails with the errors that a test lines up."""

    def __init__(self) -> None:
        self.sock = bind_tcp("127.0.0.1", 0)
        self.address = self.sock.getsockname()
        self.failures: list[int] = []
        self.accepted: list[socket.socket] = []
        self.clients: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise OSError(self.failures.pop(0), "as the test wants it")
        return self.sock.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self.sock, name)

    def acceptor(self) -> Acceptor:
        return Acceptor(self, self.accepted.append)  # type: ignore[arg-type]  # a socket but for accept

    def dial(self, ds_field: int = 0) -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, ds_field)
        self.clients.append(client)
        client.connect(self.address)
        return client


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    made = Listening()
    yield made
    for each in (*made.clients, *made.accepted, made.sock):
        each.close()


async def test_connections_are_handed_on_with_the_mark_they_came_with(listening):
    acceptor = listening.acceptor()
    for ds_field in (EF, 0):
        listening.dial(ds_field)
    await until(lambda: len(listening.accepted) == 2)
    assert [arrived_ds_field(each) for each in listening.accepted] == [EF, 0]
    assert not any(each.getblocking() for each in listening.accepted)
    acceptor.close()


async def test_a_closed_one_accepts_nobody(listening):
    acceptor = listening.acceptor()
    acceptor.close()
    acceptor.close()
    with pytest.raises(ConnectionRefusedError):
        listening.dial()
    assert repr(acceptor) == "<Acceptor closed>"


async def test_a_connection_that_is_gone_before_it_is_accepted_holds_up_nobody(listening):
    listening.failures = [errno.ECONNABORTED, errno.EPROTO]
    acceptor = listening.acceptor()
    listening.dial()
    await until(lambda: listening.accepted)
    acceptor.close()


async def test_without_descriptors_it_waits_instead_of_spinning(listening, monkeypatch):
    monkeypatch.setattr(tcp, "_PAUSE_S", 0.01)
    listening.failures = [errno.EMFILE]
    with capture_logs() as logs:
        acceptor = listening.acceptor()
        listening.dial()
        await until(lambda: not listening.failures)
        assert repr(acceptor) == "<Acceptor paused>"
        await until(lambda: listening.accepted)
    assert [each["event"] for each in logs] == ["cannot_accept"]
    acceptor.close()


async def test_it_can_be_closed_while_it_waits(listening):
    listening.failures = [errno.ENFILE]
    acceptor = listening.acceptor()
    listening.dial()
    await until(lambda: not listening.failures)
    acceptor.close()
    await asyncio.sleep(0)
    assert listening.accepted == []


def test_tls_is_new_enough_for_http_1_1_and_nothing_else(tmp_path: Path):
    certificate, key = development_certificate(tmp_path)
    server = tls_context(certificate, key)
    client = ssl.create_default_context(cafile=certificate)
    client.set_alpn_protocols(["h2", "http/1.1"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    serving = server.wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        for each in (asking, serving):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert (asking.selected_alpn_protocol(), asking.version()) == ("http/1.1", "TLSv1.3")
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    assert server.options & ssl.OP_NO_RENEGOTIATION


def test_as_many_descriptors_as_the_hard_limit_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        assert more_descriptors() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

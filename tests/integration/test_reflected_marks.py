# SPDX-License-Identifier: Apache-2.0
"""Replies of backends on the wire: `serve` sends back the DSCP that came, other servers as docs/marking.md has it."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from backends.backend import Backend
from backends.remote.address import open_socket
from backends.remote.datagram import DatagramBackend
from backends.remote.marks import mark_socket
from backends.remote.oip import OipBackend
from inferlane import oip
from proxy.config.settings import Bind
from proxy.serve import ModelServer, find_models, pools_of
from qos.marking import Mark, mark_of
from qos.settings import BUILT_IN_CLASSES, class_table
from tests.fakes.asking import request_of
from tests.fakes.capture import ACK, SYN, Wire, capturing
from tests.fakes.models import identity
from tests.fakes.namespaces import Host, alone

pytestmark = pytest.mark.needs_root

CLASSES = tuple(class_table(BUILT_IN_CLASSES))
FIELDS = {each.name: each.dscp << 2 for each in CLASSES}
DOCUMENT = Path(__file__).parents[2] / "docs/marking.md"


@asynccontextmanager
async def serving(folder: Path, host: str) -> AsyncIterator[ModelServer]:
    """`inferlane serve` of one model."""
    (folder / "same.onnx").write_bytes(identity())
    server = ModelServer(pools_of(find_models(folder)), http=Bind(host, 0), udp=Bind(host, 0))
    await server.start()
    try:
        yield server
    finally:
        await server.close()


def a_request(class_name: str, *, rows: int = 1):
    body, json_length = oip.encode_request({"x": np.zeros((rows, 4), np.float32)}, outputs=(), request_id="1")
    traffic_class = next(each for each in CLASSES if each.name == class_name)
    return request_of(body, traffic_class=traffic_class, json_length=json_length, model="same")


def replies(wire: Wire, port: int) -> list[int]:
    """The DS fields of what carried replies, in their order."""
    return [each.ds_field for each in wire.packets(by=port) if each.payload]


@asynccontextmanager
async def closing(backend: Backend) -> AsyncIterator[Backend]:
    """Whatever happens."""
    try:
        yield backend
    finally:
        await backend.close()


by_host = pytest.mark.parametrize(("host", "named"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])


@by_host
async def test_serve_replies_over_http_with_what_came(tmp_path, host, named):
    async with serving(tmp_path, host) as server:
        port = server.http[1]
        async with closing(OipBackend(f"http://{named}:{port}", slots=4)) as backend:
            with capturing() as wire:
                for _ in range(2):
                    for name, field in FIELDS.items():
                        wire.forget()
                        reply = await backend.infer(a_request(name))
                        assert reply.status == 200
                        assert set(replies(wire, port)) == {field}


@by_host
async def test_serve_replies_over_udp_with_what_came(tmp_path, host, named):
    async with serving(tmp_path, host) as server:
        port = server.udp[1]
        async with closing(DatagramBackend(f"{named}:{port}")) as backend:
            with capturing() as wire:
                for name, field in FIELDS.items():
                    wire.forget()
                    await backend.infer(a_request(name, rows=200))
                    # the challenge, acknowledgements and three fragments
                    assert len(replies(wire, port)) > 3
                    assert set(replies(wire, port)) == {field}


async def test_the_command_does_too(model_server):
    """It runs on uvloop, whose sockets are others."""
    port = int(model_server.http.rpartition(":")[2])
    async with closing(OipBackend(f"http://{model_server.http}", slots=4)) as backend:
        with capturing() as wire:
            for name, field in FIELDS.items():
                wire.forget()
                await backend.metadata("linear", "", deadline=request_of().deadline)
                assert set(replies(wire, port)) == {0}
                wire.forget()
                request = a_request(name)
                request.model = "absent"
                assert (await backend.infer(request)).status == 404
                assert set(replies(wire, port)) == {field}


# Servers that know nothing of marks.


@dataclass
class Talk:
    """A marked client, and a server that marks nothing, on a namespace's loopback."""

    client: socket.socket
    server: socket.socket
    wire: Wire
    port: int

    def exchange(self) -> None:
        self.client.sendall(b"question")
        assert self.server.recv(100)
        self.server.sendall(b"answer")
        assert self.client.recv(100) == b"answer"

    def answered(self) -> set[int]:
        """The DS fields of the server's packets, the SYN-ACK's among them."""
        packets = self.wire.packets(by=self.port)
        assert any(each.flags & (SYN | ACK) == SYN | ACK for each in packets)
        return {each.ds_field for each in packets}


@contextmanager
def talk(host: Host, address: str, mark: Mark) -> Iterator[Talk]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packets = host.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with (
        capturing(sock=packets) as wire,
        host.socket(family, socket.SOCK_STREAM) as listening,
        host.call(lambda: open_socket(family, socket.SOCK_STREAM, mark)) as client,
    ):
        listening.settimeout(30)
        listening.bind((address, 0))
        listening.listen()
        client.settimeout(30)
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        with server:
            server.settimeout(30)
            yield Talk(client, server, wire, listening.getsockname()[1])


@pytest.fixture
def host() -> Iterator[Host]:
    with alone("marks") as host:
        yield host


needs_reflection = pytest.mark.skipif(
    not Path("/proc/sys/net/ipv4/tcp_reflect_tos").exists(), reason="Linux before 5.10 has no tcp_reflect_tos"
)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("traffic_class", CLASSES, ids=lambda each: each.name)
@needs_reflection
def test_the_kernel_reflects_for_a_server_that_does_not(host, address, traffic_class):
    with talk(host, address, mark_of(traffic_class)) as unmarked:
        unmarked.exchange()
        assert unmarked.answered() == {0}
    (line,) = re.findall(r"sysctl -w (net\.ipv4\.tcp_reflect_tos=1)", DOCUMENT.read_text(encoding="utf-8"))
    host.run(f"sysctl -qw {line}")
    with talk(host, address, mark_of(traffic_class)) as reflected:
        reflected.exchange()
        assert reflected.answered() == {traffic_class.dscp << 2}


@needs_reflection
def test_the_kernel_reflects_the_syn_alone(host):
    """Why a connection whose class has a new mark is not kept."""
    host.run("sysctl -qw net.ipv4.tcp_reflect_tos=1")
    with talk(host, "127.0.0.1", Mark(46, 6)) as reflected:
        reflected.exchange()
        mark_socket(reflected.client, Mark(10, 0))
        reflected.exchange()
        assert reflected.answered() == {46 << 2}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_nftables_restores_the_mark_where_the_kernel_cannot_reflect(host, address):
    (rules,) = re.findall(r"```nft\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    with talk(host, address, Mark(46, 6)) as talking:
        rules = rules.replace("8000", str(talking.port))
        host.call(lambda: _load(rules))
        talking.wire.forget()
        talking.exchange()
        assert {each.ds_field for each in talking.wire.packets(by=talking.port)} == {46 << 2}
        mark_socket(talking.client, Mark(10, 0))
        talking.wire.forget()
        talking.exchange()
        assert {each.ds_field for each in talking.wire.packets(by=talking.port) if each.payload} == {10 << 2}


def _load(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_congestion_marks_are_the_kernel_s(host, address):
    """TCP with ECN (RFC 3168): data travel as ECT(0), and a new DSCP leaves these bits alone."""
    host.run("sysctl -qw net.ipv4.tcp_ecn=1")
    with talk(host, address, Mark(46, 6)) as talking:
        talking.exchange()
        mark_socket(talking.client, Mark(10, 0))
        talking.exchange()
        data = [each.ds_field for each in talking.wire.packets(to=talking.port) if each.payload]
    assert data == [46 << 2 | 2, 10 << 2 | 2]

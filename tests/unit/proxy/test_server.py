# SPDX-License-Identifier: Apache-2.0
"""The gateway's life: it starts as a whole or not at all, and leaves nothing behind. Requests: tests/integration."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from pathlib import Path

import pytest

from backends.errors import BackendError
from proxy.bind import bind_tcp
from proxy.config.loading import Config, load
from proxy.quic.configuration import TlsError
from proxy.reload import merge, reload
from proxy.server import Gateway
from qos.classify import Policy


def config(tmp_path: Path, *, listener: str = "accept: [h3, udp], tls: development", endpoint: str = "") -> Config:
    path = tmp_path / "gateway.yaml"
    path.write_text(
        "listeners:\n"
        f'  - {{name: main, bind: ["127.0.0.1:0", "[::1]:0"], {listener}}}\n'
        "pools:\n"
        f"  - {{name: all, model: '*', endpoints: [{endpoint or '{oip: http://127.0.0.1:9}'}]}}\n"
        'admin: {bind: "127.0.0.1:0"}\n'
    )
    return load(path)


async def page(address: tuple[str, int], path: str) -> str:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_it_binds_every_address_answers_admin_and_leaves_nothing_behind(tmp_path: Path) -> None:
    gateway = Gateway(config(tmp_path), state_dir=tmp_path)
    await gateway.start()
    (door,) = gateway.doors
    bound = door.bound
    assert [host for host, _ in bound] == ["127.0.0.1", "::1"]
    assert "200 OK" in await page(gateway.admin, "/readyz")
    assert 'inferlane_endpoint_slots{endpoint="oip:127.0.0.1:9"' in await page(gateway.admin, "/metrics")
    await gateway.drain(longest_s=0.0)
    assert "503" in await page(gateway.admin, "/readyz")
    await gateway.close()
    for host, port in bound:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind((host, port))


async def test_http_1_1_is_served_at_every_address_and_leaves_nothing_behind(tmp_path: Path) -> None:
    gateway = Gateway(config(tmp_path, listener="accept: [h1], tls: development"), state_dir=tmp_path)
    await gateway.start()
    client = ssl.create_default_context(cafile=tmp_path / "development.pem")
    bound = gateway.doors[0].bound
    for address in bound:
        reader, writer = await asyncio.open_connection(*address, ssl=client)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert b"inferlane" in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert 'inferlane_tcp_handshakes_total{listener="main"} 2.0' in await page(gateway.admin, "/metrics")
    await gateway.close()
    for host, port in bound:
        bind_tcp(host, port, listening=True).close()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"listener": "accept: [h3], tls: {cert: missing.pem, key: missing.key}"}, TlsError, "missing.pem"),
        ({"listener": "accept: [h1], tls: {cert: missing.pem, key: missing.key}"}, TlsError, "missing.pem"),
        ({"endpoint": "{onnx: missing.onnx}"}, BackendError, "missing.onnx"),
    ],
)
async def test_what_cannot_start_says_why_and_holds_no_port(
    tmp_path: Path, settings: dict[str, str], error: type[Exception], words: str
) -> None:
    gateway = Gateway(config(tmp_path, **settings), state_dir=tmp_path)
    with pytest.raises(error, match=words):
        await gateway.start()
    assert gateway.doors == []
    with pytest.raises(OSError):
        await asyncio.open_connection(*gateway.admin)


async def test_another_config_takes_effect_at_once_and_only_where_it_can(tmp_path: Path) -> None:
    gateway = Gateway(config(tmp_path), state_dir=tmp_path)
    await gateway.start()
    bound = gateway.doors[0].bound
    text = (tmp_path / "gateway.yaml").read_text()
    classes = "classes:\n  - {name: only, dscp: VA, deadline: 1s}\nrules: [{when: {path: '*'}, class: only}]\n"
    (tmp_path / "gateway.yaml").write_text(classes + text.replace("name: all", "name: some"))
    merged = merge(gateway.config, load(tmp_path / "gateway.yaml"))
    gateway.use(merged)
    assert (set(merged.changed), merged.restart) == ({"classes", "rules"}, ("pools",))
    assert [each.name for each in gateway.pipeline.policy.classes] == ["only"]
    assert gateway.marks.at("main").dscp == gateway.marks.of("only").dscp == 44
    assert 'inferlane_gate_waiting{class="only",pool="all"} 0.0' in await page(gateway.admin, "/metrics")
    assert gateway.doors[0].bound == bound
    await gateway.close()


async def test_a_reload_prepares_everything_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy of a thousand rules takes a second."""
    gateway, threads, prepare = Gateway(config(tmp_path), state_dir=tmp_path), [], Config.policy

    def policy(config: Config) -> Policy:
        threads.append(threading.get_ident())
        return prepare(config)

    monkeypatch.setattr(Config, "policy", policy)
    assert await reload(tmp_path / "gateway.yaml", gateway)
    (thread,) = threads
    assert thread != threading.get_ident()


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    first = Gateway(config(tmp_path), state_dir=tmp_path)
    await first.start()
    host, port = first.doors[0].bound[0]
    text = (tmp_path / "gateway.yaml").read_text().replace("127.0.0.1:0", f"{host}:{port}", 1)
    (tmp_path / "second.yaml").write_text(text)
    second = Gateway(load(tmp_path / "second.yaml"), state_dir=tmp_path)
    with pytest.raises(OSError, match=f"udp {host}:{port}"):
        await second.start()
    await first.close()

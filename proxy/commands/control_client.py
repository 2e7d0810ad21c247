# SPDX-License-Identifier: Apache-2.0
"""Asks a running gateway by its admin Unix socket, or, for reading, by its admin port."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from proxy.config.settings import AdminSettings

__all__ = ["ControlError", "ask_pools", "ask_socket", "set_draining"]

ANSWER_S = 10.0
"""Longest wait for a gateway on this machine."""


class ControlError(Exception):
    """The gateway is not there, or said no: one line with the remedy."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(os.fspath(self._path))


def ask_pools(admin: AdminSettings) -> Any:
    """All pools as they are now, by the admin port where there is no socket. Raises ControlError."""
    if admin.socket is not None:
        return _asked(_UnixConnection(admin.socket), f"unix {admin.socket}", "GET", "/v1/pools")
    connection = http.client.HTTPConnection(admin.bind.host, admin.bind.port, timeout=ANSWER_S)
    return _asked(connection, f"tcp {admin.bind}", "GET", "/v1/pools")


def set_draining(admin: AdminSettings, pool: str, endpoint: str, *, draining: bool) -> Any:
    """Take an endpoint out, or put it back; how it stands then. Raises ControlError."""
    if admin.socket is None:
        raise ControlError("this gateway has no admin socket: give it `admin: {socket: PATH}`, and restart it")
    verb = "drain" if draining else "undrain"
    path = f"/v1/pools/{quote(pool, safe='')}/endpoints/{quote(endpoint, safe='')}/{verb}"
    return _asked(_UnixConnection(admin.socket), f"unix {admin.socket}", "POST", path)


def ask_socket(socket_path: Path, method: str, path: str) -> Any:
    """Whatever the admin's socket answers at a path. Raises ControlError."""
    return _asked(_UnixConnection(socket_path), f"unix {socket_path}", method, path)


def _asked(connection: http.client.HTTPConnection, where: str, method: str, path: str) -> Any:
    try:
        connection.request(method, path)
        response = connection.getresponse()
        document = msgspec.json.decode(response.read())
    except PermissionError:
        raise ControlError(f"{where}: permission denied; become root or the gateway's own user") from None
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ControlError(f"{where}: {reason}; is the gateway of this config running?") from None
    finally:
        connection.close()
    if response.status != 200:
        raise ControlError(_told(document))
    return document


def _told(document: Any) -> str:
    """The gateway's own words, and the names that there are."""
    if not isinstance(document, dict):
        return "the gateway answered something that makes no sense; is it of this version?"
    names = document.get("endpoints") or document.get("pools")
    return f"{document.get('error')}{'; there are: ' + ', '.join(names) if names else ''}"

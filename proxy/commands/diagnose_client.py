# SPDX-License-Identifier: Apache-2.0
"""Asks a running gateway, by its admin port, how its promises stand."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import msgspec

from proxy.config.loading import Config
from qos.promise import Report

__all__ = ["DiagnoseError", "address_in", "address_of", "ask"]

_ADMIN = "http://127.0.0.1:9433"
ANSWER_S = 10.0
"""Longest wait for the gateway."""
_PATH = "/v1/diagnose"
_MOST_BYTES = 16 << 20


class DiagnoseError(Exception):
    """The gateway is not there, or makes no sense: one line with the remedy."""


def address_of(url: str) -> tuple[str, int]:
    """Host and port of an admin address, `http://127.0.0.1:9433`. ValueError says how to write it."""
    wrong = f"{url} is not an admin address; write it as {_ADMIN}"
    try:
        parsed = urlsplit(url)
        host, port = parsed.hostname, parsed.port
    except ValueError:
        raise ValueError(wrong) from None
    if parsed.scheme != "http" or not host or not port or parsed.path.strip("/"):
        raise ValueError(wrong)
    return host, port


def address_in(config: Config) -> tuple[str, int]:
    """Host and port of a config's admin port. ValueError where only the gateway itself knows it."""
    bind = config.admin.bind
    if bind.port == 0:
        raise ValueError(f"admin.bind is {bind}, any free port; give the address that the gateway logged as a URL")
    return bind.host, bind.port


def ask(host: str, port: int) -> Report:
    """The report of the gateway whose admin port that is. Raises DiagnoseError."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S)
    place = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        connection.request("GET", _PATH)
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DiagnoseError(f"{place}: {reason}; is the gateway running, and is this its admin address?") from None
    finally:
        connection.close()
    try:
        if answer.status == http.client.OK:
            return msgspec.json.decode(body, type=Report)
    except msgspec.DecodeError:
        pass  # told below: it is no gateway, or not one of this version
    raise DiagnoseError(f"{place}: no {_PATH} that makes sense there (status {answer.status}); is it this version?")

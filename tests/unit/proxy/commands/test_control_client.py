# SPDX-License-Identifier: Apache-2.0
"""Asking a gateway that is there, one that is not, and one that says no."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from proxy.commands import control_client
from proxy.commands.control_client import ControlError, ask_pools, set_draining
from proxy.config.settings import AdminSettings, Bind
from tests.fakes.control_socket import answer_once, control_running

POOLS = {"pools": [{"name": "far", "ready": True, "endpoints": []}]}


def admin_at(path: Path | None, port: int = 9433) -> AdminSettings:
    return AdminSettings(socket=path, bind=Bind("127.0.0.1", port))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "admin.sock"


def test_pools_and_draining_by_the_socket(path):
    with control_running(path, "oip:a:1/b", "second"):
        told = ask_pools(admin_at(path))
        assert [each["name"] for each in told["pools"][0]["endpoints"]] == ["oip:a:1/b", "second"]
        assert set_draining(admin_at(path), "digits", "oip:a:1/b", draining=True)["state"] == "draining"
        assert set_draining(admin_at(path), "digits", "oip:a:1/b", draining=False)["state"] == "healthy"


def test_a_name_that_is_not_there_is_told_with_those_that_are(path):
    with control_running(path, "first", "second"):
        with pytest.raises(ControlError, match="no endpoint of pool digits is named third; there are: first, second"):
            set_draining(admin_at(path), "digits", "third", draining=True)
        with pytest.raises(ControlError, match="no pool is named x; there are: digits"):
            set_draining(admin_at(path), "x", "first", draining=True)


def test_without_a_socket_pools_are_read_at_the_admin_port_and_nothing_is_changed():
    with answer_once(json.dumps(POOLS).encode()) as port:
        assert ask_pools(admin_at(None, port)) == POOLS
    with pytest.raises(ControlError, match=r"no admin socket: give it `admin: \{socket: PATH\}`"):
        set_draining(admin_at(None), "far", "e", draining=True)


def test_a_gateway_that_is_not_there(path):
    with pytest.raises(ControlError, match="No such file or directory; is the gateway of this config running"):
        ask_pools(admin_at(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with pytest.raises(ControlError, match="Connection refused; is the gateway"):
        ask_pools(admin_at(path))


def test_a_gateway_that_may_not_be_asked(path, monkeypatch):
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(control_client._UnixConnection, "connect", denied)
    with pytest.raises(ControlError, match="become root or the gateway's own user"):
        ask_pools(admin_at(path))


@pytest.mark.parametrize("body", [b"hello", b""])
def test_something_else_that_answers(body):
    with answer_once(body) as port, pytest.raises(ControlError, match="is the gateway of this config running"):
        ask_pools(admin_at(None, port))


def test_something_else_that_refuses():
    with answer_once(b'["no"]', status=404) as port, pytest.raises(ControlError, match="makes no sense"):
        ask_pools(admin_at(None, port))

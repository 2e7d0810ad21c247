# SPDX-License-Identifier: Apache-2.0
"""Asking an admin port for its diagnosis."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from proxy.commands.diagnose_client import DiagnoseError, address_in, address_of, ask
from proxy.config.loading import load
from tests.fakes.reports import BROKEN, admin_port

CONFIG = """\
version: 1
listeners: [{{name: main, bind: ["127.0.0.1:0"], accept: [udp]}}]
pools: [{{name: magika, model: magika, endpoints: [{{oip: "http://127.0.0.1:9"}}]}}]
admin: {{bind: "{admin}"}}
"""


def test_the_report_comes_back_as_it_was():
    with admin_port(msgspec.json.encode(BROKEN)) as port:
        assert ask("127.0.0.1", port) == BROKEN


@pytest.mark.parametrize(("body", "status"), [(b"not JSON", 200), (b'{"holds": 1}', 200), (b'{"error": "x"}', 404)])
def test_what_is_no_report_is_one_line(body, status):
    with (
        admin_port(body, status) as port,
        pytest.raises(DiagnoseError, match=rf"127\.0\.0\.1:{port}: no /v1/diagnose .* \(status {status}\)"),
    ):
        ask("127.0.0.1", port)


def test_where_nobody_listens_the_line_says_so():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(DiagnoseError, match=rf"127\.0\.0\.1:{port}: Connection refused; is the gateway running"):
            ask("127.0.0.1", port)


def test_who_speaks_something_else_is_told_as_such():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(DiagnoseError, match=r"220 mail\.example"):
            ask("127.0.0.1", port)
        thread.join()


def test_an_address_is_a_url_of_an_admin_port():
    assert address_of("http://127.0.0.1:9433") == ("127.0.0.1", 9433)
    assert address_of("http://[::1]:1/") == ("::1", 1)


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:9433", "http://127.0.0.1", "http://:9433", "http://h:99999", "http://h:1/metrics"]
)
def test_what_is_none_says_how_to_write_it(url):
    with pytest.raises(ValueError, match=r"is not an admin address; write it as http://127\.0\.0\.1:9433"):
        address_of(url)


def test_a_config_names_its_admin_port(tmp_path):
    conf = tmp_path / "gateway.yaml"
    conf.write_text(CONFIG.format(admin="[::1]:9444"))
    assert address_in(load(conf)) == ("::1", 9444)
    conf.write_text(CONFIG.format(admin="127.0.0.1:0"))
    with pytest.raises(ValueError, match=r"any free port; give the address that the gateway logged"):
        address_in(load(conf))

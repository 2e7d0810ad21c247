# SPDX-License-Identifier: Apache-2.0
"""Envoy and Caddy, from their wheels, in front of a gateway or behind it.

Both with a certificate that clients check, and no state: nothing is written but their logs.
"""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from string import Template

from tests.fakes.authority import Certificates
from tests.fakes.programs import PATIENCE_S, running

# Cleartext in front, HTTP/3 to the gateway. Envoy hands on the :scheme of its own client, here http.
_ENVOY_IN_FRONT = Template("""\
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config:
            virtual_hosts:
            - {name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: upstream, timeout: 60s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 10s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http3_protocol_options: {}}
    transport_socket:
      name: envoy.transport_sockets.quic
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.quic.v3.QuicUpstreamTransport
        upstream_tls_context:
          sni: localhost
          common_tls_context: {validation_context: {trusted_ca: {filename: $ca}}}
    load_assignment:
      cluster_name: upstream
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $host, port_value: $port}}}}]}]
""")

# TLS in front, cleartext to the model server.
_ENVOY_BEHIND = Template("""\
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: main
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates: [{certificate_chain: {filename: $cert}, private_key: {filename: $key}}]
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          route_config:
            virtual_hosts:
            - {name: all, domains: ['*'], routes: [{match: {prefix: /}, route: {cluster: upstream, timeout: 60s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: upstream
    type: STATIC
    connect_timeout: 10s
    load_assignment:
      cluster_name: upstream
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: $host, port_value: $port}}}}]}]
""")

_CADDY_IN_FRONT = Template("""\
{
    admin off
    auto_https off
    persist_config off
}
http://127.0.0.1:$port {
    reverse_proxy https://$upstream {
        transport http {
            versions 3
            tls_trust_pool file $ca
        }
    }
}
""")

_CADDY_BEHIND = Template("""\
{
    admin off
    auto_https off
    persist_config off
}
$scheme://127.0.0.1:$port {
    $tls
    reverse_proxy $upstream
}
""")


@contextmanager
def envoy_in_front(upstream: str, folder: Path, *, ca: Path) -> Iterator[str]:
    """host:port where Envoy takes HTTP/1.1 and asks the gateway at `upstream` over HTTP/3."""
    host, _, port = upstream.rpartition(":")
    with _envoy(_ENVOY_IN_FRONT.substitute(host=host, port=port, ca=ca), folder) as address:
        yield address


@contextmanager
def envoy_behind(upstream: str, folder: Path, certificates: Certificates) -> Iterator[str]:
    """host:port where Envoy takes TLS and asks the model server at `upstream` over HTTP/1.1."""
    host, _, port = upstream.rpartition(":")
    conf = _ENVOY_BEHIND.substitute(host=host, port=port, cert=certificates.cert, key=certificates.key)
    with _envoy(conf, folder) as address:
        yield address


@contextmanager
def caddy_in_front(upstream: str, folder: Path, *, ca: Path) -> Iterator[str]:
    """host:port where Caddy takes HTTP/1.1 and asks the gateway at `upstream` over HTTP/3, by quic-go."""
    port = _free_port()
    with _caddy(_CADDY_IN_FRONT.substitute(port=port, upstream=upstream, ca=ca), port, folder) as address:
        yield address


@contextmanager
def caddy_behind(upstream: str, folder: Path, certificates: Certificates | None) -> Iterator[str]:
    """host:port where Caddy takes HTTP/1.1, with certificates over TLS, and asks the model server at `upstream`."""
    port = _free_port()
    scheme, tls = ("http", "") if certificates is None else ("https", f"tls {certificates.cert} {certificates.key}")
    conf = _CADDY_BEHIND.substitute(scheme=scheme, tls=tls, port=port, upstream=upstream)
    with _caddy(conf, port, folder) as address:
        yield address


@contextmanager
def _envoy(conf: str, folder: Path) -> Iterator[str]:
    file, admin = folder / "envoy.yaml", folder / "envoy.admin"
    file.write_text(conf)
    package = find_spec("envoy")
    assert package is not None and package.origin is not None
    program_file = Path(package.origin).parent / "_bin" / "envoy"
    command: list[str | Path] = [program_file, "-c", file, "--admin-address-path", admin]
    command += ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    with running(command, folder / "envoy.log") as program:
        address = program.waited_for(lambda: admin.read_text() if admin.exists() else None, "the admin address")
        yield program.waited_for(lambda: _listener(address), "the listener")


def _listener(admin: str) -> str | None:
    """Where Envoy's listener is, as its admin page tells it."""
    try:
        with urllib.request.urlopen(f"http://{admin}/listeners?format=json", timeout=PATIENCE_S) as page:
            listeners = json.load(page).get("listener_statuses", [])
    except (urllib.error.URLError, ValueError):
        return None
    if not listeners:
        return None
    bound = listeners[0]["local_address"]["socket_address"]
    return f"{bound['address']}:{bound['port_value']}"


@contextmanager
def _caddy(conf: str, port: int, folder: Path) -> Iterator[str]:
    file = folder / "Caddyfile"
    file.write_text(conf)
    caddy = Path(sys.prefix) / "bin" / "caddy"
    with running([caddy, "run", "--adapter", "caddyfile", "--config", file], folder / "caddy.log") as program:
        program.waited_for(lambda: _connects(port), "a port that is open")
        yield f"127.0.0.1:{port}"


def _connects(port: int) -> bool | None:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return None
    return True


def _free_port() -> int:
    """Caddy tells nowhere which port 0 became; nobody else here binds fixed ports."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

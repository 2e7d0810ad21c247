# SPDX-License-Identifier: Apache-2.0
"""What a request tells about itself, on the reply, in the log and in the metrics, and that the three agree."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

import inferlane
from inferlane import oip
from tests.fakes import models
from tests.fakes.live_gateway import GatewayProcess, Observed, gateway_process, write_config
from tests.fakes.raw_quic import RawClient, http3, section
from tests.fakes.raw_server import RawServer

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver-timing: compute;dur=12.5, other;dur=9\r\n"
    b"x-request-id: theirs\r\nserver: them\r\ncontent-length: 2\r\n\r\n{}"
)
SCHEMES = {"https": "h3", "quic": "stream", "quic+datagram": "datagram", "udp": "udp"}
X = {"x": np.ones((1, 4), np.float32)}


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(backend: RawServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """One for all tests that leave it running."""
    async with started(backend, tmp_path_factory.mktemp("shared")) as shared:
        yield shared


@pytest_asyncio.fixture(loop_scope="module")
async def own_gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """For a test that counts everything, or ends it."""
    async with started(backend, tmp_path) as own:
        yield own


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: GatewayProcess) -> AsyncIterator[RawClient]:
    async with http3(await gateway.address()) as connected:
        yield connected


@pytest_asyncio.fixture(loop_scope="module")
async def own_client(own_gateway: GatewayProcess) -> AsyncIterator[RawClient]:
    async with http3(await own_gateway.address()) as connected:
        yield connected


@asynccontextmanager
async def started(backend: RawServer, tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """`near` runs here, `far` is the backend's, `batch-*` gets its class by a rule."""
    models.saved(models.identity(), tmp_path)
    pools = (
        "[{name: near, model: [near, 'batch-*'], endpoints: [{onnx: model.onnx}]}, "
        f"{{name: far, model: far, endpoints: [{{oip: 'http://127.0.0.1:{backend.port}'}}]}}]"
    )
    conf = write_config(tmp_path, pools)
    conf.write_text(conf.read_text() + "rules: [{when: {model: 'batch-*'}, class: batch}]\n")
    async with gateway_process(conf) as gateway:
        yield gateway


def timing(value: bytes) -> dict[str, float]:
    """Server-Timing's metrics in ms."""
    parts = re.findall(rb"(\w+);dur=([0-9.]+)", value)
    assert b", ".join(b"%b;dur=%b" % each for each in parts) == value
    return {name.decode(): float(duration) for name, duration in parts}


async def test_a_reply_tells_its_way(client: RawClient, gateway: GatewayProcess, backend: RawServer) -> None:
    asking = client.send(
        section(
            b"/v2/models/far/infer",
            (b"x-request-id", b"mine-1"),
            (b"traceparent", TRACE),
            (b"inferlane-class", b"realtime"),
        ),
        b"{}",
    )
    peer = await backend.accept()
    head, _ = await peer.request()
    peer.say(ANSWER)
    await asking.over()
    line = await gateway.request("mine-1")

    assert b"\r\nx-request-id: mine-1\r\n" in head
    assert b"\r\ntraceparent: " + TRACE + b"\r\n" in head
    assert b"\r\ninferlane-class: realtime\r\n" in head
    assert re.search(rb"\r\ninferlane-timeout: [0-9]+(ms|us)\r\n", head)

    assert (asking.status, bytes(asking.body)) == (200, b"{}")
    assert asking.head[b"x-request-id"] == b"mine-1"
    assert asking.head[b"inferlane-class"] == b"realtime"
    assert asking.head[b"inferlane-endpoint"].startswith(b"oip:127.0.0.1:")  # loopback is trusted
    told = timing(asking.head[b"server-timing"])
    assert told.keys() == {"network", "queue", "backend", "compute"}
    assert told["compute"] == 12.5

    assert {name: line[name] for name in ("request_id", "traceparent", "listener", "transport", "client")} == {
        "request_id": "mine-1",
        "traceparent": TRACE.decode(),
        "listener": "main",
        "transport": "h3",
        "client": "127.0.0.1",
    }
    assert (line["class"], line["why"], line["model"], line["pool"]) == (
        "realtime",
        "a trusted client asked for it",
        "far",
        "far",
    )
    assert (line["status"], line["reason"], line["bytes_in"], line["bytes_out"]) == (200, "ok", 2, 2)
    assert line["endpoint"].encode() == asking.head[b"inferlane-endpoint"]
    assert line["compute_ms"] == 12.5
    for part in ("network", "queue", "backend"):
        assert line[f"{part}_ms"] == pytest.approx(told[part], abs=0.001)
    assert line["total_ms"] > 0


async def test_a_compute_time_that_the_backend_does_not_tell_is_absent(client: RawClient, backend: RawServer) -> None:
    asking = client.send(section(b"/v2/models/far/infer"), b"{}")
    peer = await backend.accept()
    await peer.request()
    peer.say(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    await asking.over()
    assert timing(asking.head[b"server-timing"]).keys() == {"network", "queue", "backend"}


@pytest.mark.parametrize(
    ("name", "value"),
    [(b"x-request-id", b"spaces in it"), (b"x-request-id", b"x" * 200), (b"traceparent", b"00-zz-1-01")],
)
async def test_an_id_that_could_break_a_log_is_not_taken_over(
    client: RawClient, gateway: GatewayProcess, name: bytes, value: bytes
) -> None:
    answer = await client.ask(section(b"/v2/health/live", (name, value), method=b"GET"))
    ours = answer.head[b"x-request-id"].decode()
    assert re.fullmatch("[0-9a-f]{16}", ours)
    line = await gateway.request(ours)
    assert line["traceparent"] is None


async def test_a_refusal_is_observed_like_a_reply(client: RawClient, gateway: GatewayProcess) -> None:
    answer = await client.ask(section(b"/v2/models/none/infer", (b"x-request-id", b"mine-2")), b"{}")
    assert (answer.status, answer.document["request_id"]) == (404, "mine-2")
    assert answer.head[b"inferlane-class"] == b"interactive"
    line = await gateway.request("mine-2")
    assert (line["status"], line["reason"], line["pool"], line["endpoint"]) == (404, "unknown_model", "", "")
    observed = await gateway.observed()
    labels = {"listener": "main", "transport": "h3", "class": "interactive", "reason": "unknown_model"}
    assert await observed.value("inferlane_requests_total", **labels) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_transport_is_observed_alike(gateway: GatewayProcess, scheme: str) -> None:
    host, port = await gateway.address()
    observed = await gateway.observed()
    before = await timed(observed)
    async with inferlane.Client(f"{scheme}://{host}:{port}", insecure=True) as client:
        reply = await client.infer("batch-1", X, cls="realtime")
    assert reply.served_class == "batch"  # the rule goes before what the client asks for
    assert reply.timing.queue is not None and reply.timing.backend is not None and reply.timing.compute is not None
    assert reply.timing.total >= reply.timing.queue + reply.timing.backend + reply.timing.compute
    line = await gateway.request(reply.request_id)
    assert (line["transport"], line["class"], line["why"]) == (SCHEMES[scheme], "batch", "rules[0]: model batch-*")
    assert line["compute_ms"] == pytest.approx(reply.timing.compute * 1e3, abs=0.0011)
    assert line["dscp"] == "EF"  # the library marks for what it asked; on loopback the mark arrives
    labels = {"transport": SCHEMES[scheme], "class": "batch", "pool": "near", "reason": "ok"}
    assert await observed.value("inferlane_requests_total", **labels) == 1
    assert await timed(observed) == [count + 1 for count in before]


async def timed(observed: Observed) -> list[float]:
    """How many requests of the pool `near` the histograms of time have."""
    of_pool = {"class": "batch", "pool": "near"}
    return [
        await observed.value("inferlane_request_seconds_count", **of_pool),
        await observed.value("inferlane_stage_seconds_count", stage="queue", **of_pool),
        await observed.value("inferlane_stage_seconds_count", stage="compute", **of_pool),
    ]


async def test_the_metrics_are_a_page_that_prometheus_reads(own_client: RawClient, own_gateway: GatewayProcess) -> None:
    client, gateway = own_client, own_gateway
    body, json_length = oip.encode_request(X)
    fields = (b"inference-header-content-length", b"%d" % (json_length or 0))
    assert (await client.ask(section(b"/v2/models/near/infer", fields), body)).status == 200
    # Names that a client chooses are no labels: they would be without number.
    for name in (b"near", b"secret-1", b"secret-2"):
        await client.ask(section(b"/v2/models/" + name + b"/infer", (b"inferlane-class", name)), b"{}")
    observed = await gateway.observed()
    status, page = await observed.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert status == 200
    ours = {name for name in families if name.startswith("inferlane_")}
    assert ours >= {
        "inferlane_requests",
        "inferlane_request_bytes",
        "inferlane_reply_bytes",
        "inferlane_request_seconds",
        "inferlane_stage_seconds",
        "inferlane_client_rtt_seconds",
        "inferlane_gate_waiting",
        "inferlane_in_flight",
        "inferlane_endpoint_slots",
        "inferlane_endpoint_ready",
        "inferlane_datagrams",
        "inferlane_datagrams_dropped",
        "inferlane_quic_connections",
        "inferlane_quic_handshakes",
        "inferlane_build_info",
    }
    assert all(family.documentation for family in families.values())
    assert "secret" not in page
    assert await observed.value("inferlane_requests_total") == 4
    assert await observed.value("inferlane_requests_total", reason="ok") == 1
    assert await observed.value("inferlane_quic_connections") == 1
    assert await observed.value("inferlane_quic_handshakes_total") == 1
    assert await observed.value("inferlane_datagrams_total", direction="in") > 0
    assert await observed.value("inferlane_endpoint_slots", pool="far") == 16
    assert await observed.value("inferlane_request_bytes_total", pool="near") == len(body) + 2


async def test_the_health_pages(gateway: GatewayProcess) -> None:
    observed = await gateway.observed()
    pages = {path: await observed.get(path) for path in ("/healthz", "/readyz", "/nothing")}
    assert {path: status for path, (status, _) in pages.items()} == {"/healthz": 200, "/readyz": 200, "/nothing": 404}
    assert json.loads(pages["/readyz"][1]) == {"ready": True, "not_ready": []}
    assert json.loads(pages["/healthz"][1]) == {"alive": True}


async def test_health_over_http3(client: RawClient, gateway: GatewayProcess) -> None:
    for path, document in (
        (b"/v2/health/live", {"live": True}),
        (b"/v2/health/ready", {"ready": True}),
        (b"/v2/models/near/ready", {"ready": True}),
        (b"/v2/models/far/ready", {"ready": True}),
    ):
        answer = await client.ask(section(path, method=b"GET"))
        assert (answer.status, answer.document) == (200, document), path


async def test_a_log_is_a_json_object_a_line_whatever_clients_send(
    own_client: RawClient, own_gateway: GatewayProcess
) -> None:
    client, gateway = own_client, own_gateway
    names = (b"a%22b", b"%F0%9F%9A%80", b"%E2%80%AEb", b"%FF", b"x" * 255)
    for name in names:
        await client.ask(section(b"/v2/models/" + name + b"/infer"), b"{}")
    await client.ask(section(b"/x", (b"x", b"1\n{}")), b"{}")
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 0
    lines = [json.loads(line) for line in gateway.lines]
    assert all(line.isascii() or line.rstrip("\n").isprintable() for line in gateway.lines)
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)
    assert all(datetime.fromisoformat(line["timestamp"]).tzinfo is not None for line in lines)
    finished = [line for line in lines if line["event"] == "request_finished"]
    assert [line["model"] for line in finished[:2]] == ['a"b', "\U0001f680"]
    assert len(finished) == len(names) + 1
    assert [line["event"] for line in lines if line["event"] != "request_finished"] == [
        "listening",
        "admin_listening",
        "draining",
        "drained",
    ]


async def test_requests_at_once_are_counted_and_logged_once_each(gateway: GatewayProcess) -> None:
    observed = await gateway.observed()
    before = await observed.value("inferlane_requests_total", reason="ok")
    host, port = await gateway.address()
    async with inferlane.Client(f"https://{host}:{port}", insecure=True) as client:
        replies = await asyncio.gather(*(client.infer("near", X) for _ in range(50)))
    for reply in replies:
        await gateway.request(reply.request_id)
    logged = [json.loads(line).get("request_id") for line in gateway.lines]
    assert [logged.count(reply.request_id) for reply in replies] == [1] * 50
    assert await observed.value("inferlane_requests_total", reason="ok") == before + 50
    await observed.nothing_in_flight()

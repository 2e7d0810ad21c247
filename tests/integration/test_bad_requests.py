# SPDX-License-Identifier: Apache-2.0
"""Request hygiene on a running gateway: what two servers could read in two ways is refused, and no backend sees it.

The requests go past aioquic's own checks (tests/fakes/raw_quic.py), the backend is a TCP server that counts who comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aioquic.h3.connection import ErrorCode

from tests.fakes.live_gateway import LiveGateway, live_gateway, write_config
from tests.fakes.raw_quic import Field, RawClient, endless_headers, http3, section
from tests.fakes.raw_server import RawServer

INFER = b"/v2/models/m/infer"
MAX_BODY = 64 * 1024
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"

BAD_LENGTHS: dict[str, tuple[Field, ...]] = {
    "a sign": ((b"content-length", b"+3"),),
    "an underscore": ((b"content-length", b"0_3"),),
    "a space before": ((b"content-length", b" 3"),),
    "a space behind": ((b"content-length", b"3 "),),
    "hexadecimal": ((b"content-length", b"0x3"),),
    "a point": ((b"content-length", b"3.0"),),
    "negative": ((b"content-length", b"-3"),),
    "empty": ((b"content-length", b""),),
    "a list": ((b"content-length", b"3, 3"),),
    "two that differ": ((b"content-length", b"3"), (b"content-length", b"5")),
    "two that agree": ((b"content-length", b"3"), (b"content-length", b"3")),
    "longer than the body": ((b"content-length", b"9"),),
    "shorter than the body": ((b"content-length", b"2"),),
    "zero with a body": ((b"content-length", b"0"),),
    "20 digits": ((b"content-length", b"99999999999999999999"),),
    "arabic digits": ((b"content-length", "٣".encode()),),
}
BAD_FIELDS: dict[str, tuple[Field, ...]] = {
    "connection": ((b"connection", b"keep-alive"),),
    "keep-alive": ((b"keep-alive", b"timeout=5"),),
    "proxy-connection": ((b"proxy-connection", b"close"),),
    "transfer-encoding": ((b"transfer-encoding", b"chunked"),),
    "transfer-encoding beside a length": ((b"content-length", b"3"), (b"transfer-encoding", b"chunked")),
    "upgrade": ((b"upgrade", b"h2c"),),
    "te": ((b"te", b"gzip"),),
    "host that disagrees": ((b"host", b"elsewhere"),),
    "two hosts": ((b"host", b"localhost"), (b"host", b"localhost")),
    "an upper-case name": ((b"Content-Type", b"a/b"),),
    "a space in a name": ((b"x y", b"1"),),
    "a colon in a name": ((b"x:", b"1"),),
    "a line end in a name": ((b"x\r\ny", b"1"),),
    "NUL in a name": ((b"x\0", b"1"),),
    "a name that is not ASCII": (("ü".encode(), b"1"),),
    "a line end in a value": ((b"x", b"1\r\nhost: elsewhere"),),
    "LF in a value": ((b"x", b"1\nx-y: 2"),),
    "CR in a value": ((b"x", b"1\r"),),
    "NUL in a value": ((b"x", b"1\0"),),
    "DEL in a value": ((b"x", b"1\x7f"),),
    "a space before a value": ((b"x", b" 1"),),
    "a pseudo-field after fields": ((b"x", b"1"), (b":path", INFER)),
    "an unknown pseudo-field": ((b":status", b"200"),),
    "a second path": ((b":path", b"/v2"),),
}
BAD_PATHS = (
    b"/v2/models/a b/infer",
    b"/v2/models/m/infer HTTP/1.1\r\nhost: x\r\n\r\nGET /",
    b"/v2/models/a\tb/infer",
    b"/v2/models/a\0b/infer",
    b"/v2/models/a\\b/infer",
    b"/v2/models/a%00b/infer",
    b"/v2/models/a%0d%0ab/infer",
    b"/v2/models/a%2fb/infer",
    b"/v2/models/a%5cb/infer",
    b"/v2/models/%2e%2e/infer",
    b"/v2/models/../models/m/infer",
    b"/v2/models/..;/m/infer",
    b"/v2/models/./m/infer",
    b"/v2/models/m/infer/..",
    b"/v2/models/a%/infer",
    b"/v2/models/a%zz/infer",
    b"/v2/models/a#b/infer",
    b'/v2/models/a"b/infer',
    b"/v2/models/a<b>/infer",
    "/v2/models/ä/infer".encode(),
    b"v2/models/m/infer",
    b"https://localhost/v2/models/m/infer",
    b"*",
    b"",
    b"/" + b"a" * 5000,
)
BAD_METHODS = (b"PO ST", b"post", b"POST /x HTTP/1.1\r\n", b"", b"PO\0ST", b"G" * 40)
BAD_PSEUDO: dict[str, list[Field]] = {
    "no method": section(INFER)[1:],
    "no scheme": [*section(INFER)[:1], *section(INFER)[2:]],
    "no path": section(INFER)[:3],
    "no authority": [*section(INFER)[:2], *section(INFER)[3:]],
    "two methods": [(b":method", b"POST"), *section(INFER)],
    "another scheme": [(each[0], b"ftp") if each[0] == b":scheme" else each for each in section(INFER)],
    "a user in the authority": [
        (each[0], b"me@localhost") if each[0] == b":authority" else each for each in section(INFER)
    ],
    "a line end in the authority": [
        (each[0], b"localhost\r\nx: y") if each[0] == b":authority" else each for each in section(INFER)
    ],
    "fields before": [(b"x", b"1"), *section(INFER)],
    "CONNECT": [(b":method", b"CONNECT"), (b":authority", b"127.0.0.1:22")],
    "extended CONNECT": [*section(INFER, method=b"CONNECT"), (b":protocol", b"websocket")],
}


@pytest.fixture
async def backend() -> AsyncIterator[RawServer]:
    server = RawServer()
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def gateway(backend: RawServer, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    pools = f'[{{name: far, model: "m*", endpoints: [{{oip: "http://127.0.0.1:{backend.port}"}}]}}]'
    listener = f"tls: development, max_class: realtime, max_body: {MAX_BODY // 1024}KiB"
    async with live_gateway(write_config(tmp_path, pools, listener=listener)) as started:
        yield started


@pytest.fixture
async def client(gateway: LiveGateway) -> AsyncIterator[RawClient]:
    async with http3(gateway.address) as connected:
        yield connected


async def refused(client: RawClient, backend: RawServer, *requests: tuple[list[Field], bytes | None]) -> None:
    """Each is answered 400; the connection lives; a good request is the first that the backend ever sees."""
    for fields, body in requests:
        answer = await client.ask(fields, body)
        assert (answer.status, answer.document["reason"]) == (400, "bad_request"), fields
        assert backend.accepted == 0, fields
    good = client.send(section(INFER, (b"content-length", b"4")), b"good")
    peer = await backend.accept()
    head, body = await peer.request()
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    assert body == b"good"
    peer.say(ANSWER)
    assert (await good.over()).status == 200
    assert backend.accepted == 1


async def test_a_length_that_can_be_read_in_two_ways(client: RawClient, backend: RawServer) -> None:
    await refused(client, backend, *((section(INFER, *fields), b"abc") for fields in BAD_LENGTHS.values()))


async def test_fields_that_have_no_place_in_http3(client: RawClient, backend: RawServer) -> None:
    await refused(client, backend, *((section(INFER, *fields), b"abc") for fields in BAD_FIELDS.values()))


async def test_paths_and_methods_that_servers_read_differently(client: RawClient, backend: RawServer) -> None:
    paths = [(section(path), b"abc") for path in BAD_PATHS]
    methods = [(section(INFER, method=method), b"abc") for method in BAD_METHODS]
    await refused(client, backend, *paths, *methods)


async def test_pseudo_fields(client: RawClient, backend: RawServer) -> None:
    await refused(client, backend, *((fields, b"abc") for fields in BAD_PSEUDO.values()))


@pytest.mark.parametrize("declared", [9, 2])
async def test_a_length_that_lies_over_several_packets(client: RawClient, backend: RawServer, declared: int) -> None:
    slow = client.send(section(INFER, (b"content-length", b"%d" % declared)), b"a", end=False)
    await client.ping()
    slow.send(b"b")
    await client.ping()
    slow.send(b"c", end=True)
    answer = await slow.over()
    assert (answer.status, answer.document["reason"]) == (400, "bad_request")
    assert "content-length" in answer.document["detail"]
    await refused(client, backend)


async def test_what_is_for_this_hop_only_is_not_handed_on(client: RawClient, backend: RawServer) -> None:
    fields = (
        (b"proxy-authorization", b"Basic c2VjcmV0"),
        (b"te", b"trailers"),
        (b"authorization", b"Bearer secret"),
        (b"expect", b"100-continue"),
        (b"x-other", b"stays"),
    )
    asking = client.send(section(INFER, *fields), b"abc")
    peer = await backend.accept()
    head, _ = await peer.request()
    peer.say(ANSWER)
    assert (await asking.over()).status == 200
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert b"x-other" in names
    assert not names & {b"proxy-authorization", b"te", b"authorization", b"expect", b"connection"}


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        (b"POST", b"/v2/models/other/infer", 404, "unknown_model"),
        (b"GET", b"/v2/models/other", 404, "unknown_model"),
        (b"GET", b"/v2/models/other/ready", 404, "unknown_model"),
        (b"POST", b"/v2/models/" + b"x" * 300 + b"/infer", 404, "not_found"),
        (b"POST", b"/v1/images/generations", 404, "not_found"),
        (b"GET", b"/v1/chat/completions", 405, "method_not_allowed"),
        (b"POST", b"/v2/models//infer", 404, "not_found"),
        (b"POST", b"/v2/models/m/versions//infer", 404, "not_found"),
        (b"POST", b"/v2/models/m/infer/more", 404, "not_found"),
        (b"GET", b"/", 404, "not_found"),
        (b"GET", INFER, 405, "method_not_allowed"),
        (b"DELETE", INFER, 405, "method_not_allowed"),
        (b"OPTIONS", b"/v2/models/m", 405, "method_not_allowed"),
        (b"POST", b"/v2", 405, "method_not_allowed"),
        (b"POST", b"/v2/health/live", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_here(
    client: RawClient, backend: RawServer, method: bytes, path: bytes, status: int, reason: str
) -> None:
    answer = await client.ask(section(path, method=method), b"{}" if method == b"POST" else None)
    assert (answer.status, answer.document["reason"], answer.document["status"]) == (status, reason, status)
    assert answer.head[b"content-type"] == b"application/problem+json"
    assert backend.accepted == 0
    await refused(client, backend)


@pytest.mark.parametrize(("name", "value"), [(b"inferlane-timeout", b"50"), (b"inferlane-timeout", b"-1s")])
async def test_a_steering_field_that_makes_no_sense(
    client: RawClient, backend: RawServer, name: bytes, value: bytes
) -> None:
    answer = await client.ask(section(INFER, (name, value)), b"{}")
    assert answer.status == 400
    assert name.decode() in answer.document["detail"]
    await refused(client, backend)


async def test_a_body_over_the_cap_by_its_length(client: RawClient, backend: RawServer) -> None:
    """It is refused before a byte of it came, and the client asked to stop."""
    asking = client.send(section(INFER, (b"content-length", b"%d" % (MAX_BODY + 1))), end=False)
    await asking.over()
    assert (asking.status, asking.document["reason"]) == (413, "too_large")
    assert str(MAX_BODY) in asking.document["detail"]
    await client.until(lambda: asking.stopped is not None)
    assert asking.stopped == ErrorCode.H3_NO_ERROR
    await refused(client, backend)


@pytest.mark.parametrize("fields", [(), ((b"content-length", b"%d" % MAX_BODY),)])
async def test_a_body_over_the_cap_without_a_length_or_with_a_false_one(
    client: RawClient, backend: RawServer, fields: tuple[Field, ...]
) -> None:
    asking = client.send(section(INFER, *fields), bytes(MAX_BODY), end=False)
    asking.send(b"!", end=True)
    await asking.over()
    assert (asking.status, asking.document["reason"]) == ((400, "bad_request") if fields else (413, "too_large"))
    await refused(client, backend)


async def test_a_body_without_end_over_the_cap(client: RawClient, backend: RawServer) -> None:
    """Whatever is sent after the refusal is dropped, and flow control goes on for the others."""
    asking = client.send(section(INFER), bytes(MAX_BODY), end=False)
    asking.send(bytes(8 << 20))
    await asking.over()
    assert (asking.status, asking.document["reason"]) == (413, "too_large")
    await refused(client, backend)


async def test_a_head_that_expands_beyond_the_limit(client: RawClient, backend: RawServer) -> None:
    """A byte on the wire is a field of 42: the static table has it (RFC 9204 appendix A)."""
    answer = await client.ask([*section(INFER), *[(b"accept", b"*/*")] * 15_000])
    assert (answer.status, answer.document["reason"]) == (431, "fields_too_large")
    assert backend.accepted == 0
    await refused(client, backend)


async def test_trailers_end_a_request(client: RawClient, backend: RawServer) -> None:
    asking = client.send(section(INFER), b"abc", end=False)
    asking.send_fields([(b"x-checksum", b"1")], end=True)
    peer = await backend.accept()
    head, body = await peer.request()
    assert body.startswith((b"abc", b"3\r\nabc"))
    assert b"x-checksum" not in head + body
    peer.say(ANSWER)
    assert (await asking.over()).status == 200


@pytest.mark.parametrize(
    "trailers",
    [[(b":path", b"/v2")], [(b"Content-Length", b"3")], [(b"transfer-encoding", b"chunked")], [(b"x", b"1\r\ny: 2")]],
)
async def test_bad_trailers_do_no_harm(
    gateway: LiveGateway, client: RawClient, backend: RawServer, trailers: list[Field]
) -> None:
    """The request fails alone or with its connection, and no backend sees it as a whole one."""
    asking = client.send(section(INFER), b"abc", end=False)
    asking.send_fields(trailers, end=True)
    await asking.over()
    assert asking.status in (400, None)
    await gateway.nothing_in_flight()
    assert backend.accepted == 0
    async with http3(gateway.address) as other:
        await refused(other, backend)


@pytest.mark.parametrize("length", [1 << 40, (1 << 62) - 1, 64 * 1024])
async def test_headers_without_end_close_the_connection(
    gateway: LiveGateway, client: RawClient, backend: RawServer, length: int
) -> None:
    exchange = client.stream()
    exchange.send_raw(endless_headers(length))
    exchange.send_raw(b"\0\0")
    await client.until(lambda: client.terminated is not None)
    assert client.terminated is not None
    assert client.terminated.error_code == ErrorCode.H3_EXCESSIVE_LOAD
    async with http3(gateway.address) as other:
        await refused(other, backend)


async def test_headers_that_trickle_are_no_request(gateway: LiveGateway, client: RawClient, backend: RawServer) -> None:
    exchange = client.stream()
    exchange.send_raw(endless_headers(1000))
    for _ in range(20):
        exchange.send_raw(b"\0")
        await client.ping()
    assert gateway.gateway.pipeline.in_flight == 0
    await refused(client, backend)


async def test_trailers_and_frames_that_make_no_sense(gateway: LiveGateway, backend: RawServer) -> None:
    """Each ends its connection by the code that RFC 9114 has for it, and no other's."""
    cases = {
        b"\x00\x03abc": ErrorCode.H3_FRAME_UNEXPECTED,  # DATA before HEADERS
        b"\x04\x00": ErrorCode.H3_FRAME_UNEXPECTED,  # SETTINGS on a request stream
        b"\x05\x01\x00": ErrorCode.H3_FRAME_UNEXPECTED,  # PUSH_PROMISE from a client
        b"\x02\x00": ErrorCode.H3_FRAME_UNEXPECTED,  # a frame of HTTP/2
        b"\x01\x02\xff\xff": ErrorCode.QPACK_DECOMPRESSION_FAILED,
    }
    for frames, code in cases.items():
        async with http3(gateway.address) as client:
            client.stream().send_raw(frames)
            await client.until(lambda client=client: client.terminated is not None)
            assert client.terminated is not None
            assert client.terminated.error_code == code, frames
    assert backend.accepted == 0
    async with http3(gateway.address) as client:
        await refused(client, backend)
